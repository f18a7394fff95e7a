"""Which entries of a batch count: a mask, labels that are missing, and weights that are 0.

What does not count changes nothing: it is replaced on the way in and left out on the way out, so that not even NaN gets
through, neither forward nor back.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kdjax import _checks
from kdjax._apply import map_examples
from kdjax._types import Batch, Tree

MASK, LABELLED = "mask", "labelled"
_AT_ONCE = 10_000_000  # numbers read at a time

Counted = Bool[Array, "..."] | None


def read_counted(batch: Batch, name: str, entries: tuple[int, ...]) -> Counted:
    """``batch[name]`` as bools, or None. 0 does not count.

    Args:
      batch: the batch.
      name: ``"mask"`` or ``"labelled"``.
      entries: the shape of what one number is for, [batch] or [batch, *positions]; leading axes of it do.

    Raises:
      ValueError: if it is of another shape, or holds no numbers.
    """
    return None if name not in batch else _bools(batch, name, entries)


def check_zeros_and_ones(what: str, arrays: Batch) -> None:
    """A ValueError where the mask, or what says which are labelled, is neither 0 nor 1, as far as the values are known."""
    for name in (MASK, LABELLED):
        given: Any = arrays.get(name)
        kind = getattr(given, "dtype", None)
        known = not isinstance(given, jax.core.Tracer) and getattr(given, "is_fully_addressable", True)
        if kind is None or not jnp.issubdtype(kind, jnp.number) or not known or not np.ndim(given):
            continue
        rows = max(1, _AT_ONCE // max(1, math.prod(np.shape(given)[1:])))
        for start in range(0, len(given), rows):  # it may be larger than memory
            part = np.asarray(given[start : start + rows]).astype(np.float32)
            if (odd := part[(part != 0) & (part != 1)]).size:
                raise ValueError(
                    f'{what} must have 0 and 1 in "{name}", which says what counts; got {odd[0]:g}. Weights of examples go '
                    "in an array of their own, which kdjax.scaled reads."
                )


def _bools(batch: Batch, name: str, entries: tuple[int, ...]) -> Array:
    given = batch[name]
    shape = tuple(np.shape(given))
    if not shape or shape != entries[: len(shape)]:
        wanted = " or ".join(str(entries[:axes]) for axes in range(1, len(entries) + 1))
        raise ValueError(
            f'batch["{name}"] must have shape {wanted}, 0 where an entry does not count; got shape {shape}.'
        )
    kind = getattr(given, "dtype", None)
    if kind is None or not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)):
        raise ValueError(f'batch["{name}"] must hold bools or numbers; got {kind or type(given).__name__}.')
    return jnp.asarray(given).astype(bool)


def without_ignored(batch: Batch, ignore_label: int | None) -> Batch:
    """The batch whose ignored labels are 0, and that says under ``"labelled"`` which are not.

    Raises:
      ValueError: if the labels or `ignore_label` are no whole numbers, or examples are mixed.
    """
    if ignore_label is None:
        return batch
    if isinstance(ignore_label, bool) or not isinstance(ignore_label, int | np.integer):
        raise ValueError(f"ignore_label must be a whole number, such as -100, or None; got {ignore_label!r}.")
    if not -(2**31) <= ignore_label < 2**31:
        raise ValueError(f"ignore_label must be a number that int32 holds; got {ignore_label}.")
    if "labels" not in batch:
        return batch
    if "partner_labels" in batch:
        raise ValueError(
            "ignore_label must be None where examples are mixed: a partner's label may be the ignored one."
        )
    labels = _checks.labels('batch["labels"], of which one is ignored,', batch["labels"], np.shape(batch["labels"]))
    known = labels != ignore_label
    if LABELLED in batch:
        known &= _bools(batch, LABELLED, labels.shape)
    return {**batch, "labels": jnp.where(known, labels, 0), LABELLED: known}


def counting(batch: Batch, ignore_label: int | None) -> Batch:
    """The batch as networks and terms see it: without ignored labels, and without inputs of examples that do not count.

    Raises:
      ValueError: if the mask or the labels do not belong to the inputs' examples.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch["inputs"])}
    for name in {"labels", MASK, LABELLED} & batch.keys():
        if jnp.shape(batch[name])[:1] not in sizes:
            raise ValueError(
                f'batch["{name}"] must have one row for each example of batch["inputs"], {sorted(sizes)}; '
                f"got shape {jnp.shape(batch[name])}."
            )
    batch = without_ignored(batch, ignore_label)
    if MASK not in batch:
        return batch
    mask = _bools(batch, MASK, jnp.shape(batch[MASK]))
    examples = jnp.any(mask, axis=tuple(range(1, mask.ndim)))
    return {**batch, "inputs": keep(batch["inputs"], examples), MASK: mask}


def both(first: Counted, second: Counted) -> Counted:
    """What counts in both; a mask of examples counts for all their positions."""
    if first is None or second is None:
        return second if first is None else first
    axes = max(first.ndim, second.ndim)
    return spread(first, axes) & spread(second, axes)


def spread(counted: Array, axes: int) -> Array:
    """With axes of size 1 after its own, so that it stands beside an array of that many."""
    return counted.reshape(counted.shape + (1,) * (axes - counted.ndim))


def keep(tree: Tree, counted: Counted) -> Tree:
    """What counts of arrays [batch, …] of floating-point numbers; the rest is 0 and passes no gradient on.

    An array without the positions' axes keeps what belongs to an example of which any position counts.
    """
    if counted is None:
        return tree

    def kept(array: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating) or np.shape(array)[:1] != counted.shape[:1]:
            return array
        own = counted
        # A mask of positions is of an array that has something at each of them; [batch, dim] may only look like it.
        if np.shape(array)[: counted.ndim] != counted.shape or (counted.ndim > 1 and np.ndim(array) == counted.ndim):
            own = jnp.any(counted, axis=tuple(range(1, counted.ndim)))
        return jnp.where(spread(own, np.ndim(array)), array, jnp.zeros((), jnp.result_type(array)))

    return map_examples(kept, tree)


def is_of_entries(array: Any, counted: Array) -> bool:
    """Whether it is a floating-point number for each entry of which it is said whether it counts, or for its example."""
    axes = min(np.ndim(array), counted.ndim)
    return bool(
        axes and jnp.issubdtype(jnp.result_type(array), jnp.floating) and np.shape(array)[:axes] == counted.shape[:axes]
    )


def count_of(name: str) -> str:
    """Under which a step tells of how many entries a metric is the mean; no term's name ends so, nor a number's."""
    return f"{name} count"


class Unmade(NamedTuple):
    """A number for each entry, of which there will only be a sum with weights that are known before.

    Attributes:
      shape: of the entries.
      weighted_sum: from weights of that shape to the sum.
    """

    shape: tuple[int, ...]
    weighted_sum: Callable[[Array], Array]

    @property
    def ndim(self) -> int:
        """How many axes the entries have."""
        return len(self.shape)

    def times(self, factor: Array) -> "Unmade":
        """Each entry's number times a factor, one for all or each entry's own."""
        return Unmade(self.shape, lambda weights: self.weighted_sum(weights * factor))


def mean_of(values: Array | Unmade, counted: Counted) -> Array:
    """The mean over what counts; 0 where nothing does."""
    if isinstance(values, Unmade):
        counts = jnp.ones(values.shape, bool) if counted is None else counted
        counts = jnp.broadcast_to(spread(counts, values.ndim), values.shape)
        return values.weighted_sum(counts / jnp.maximum(jnp.sum(counts), 1))
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if counted is None:
        return jnp.mean(values)
    counted = jnp.broadcast_to(spread(counted, values.ndim), values.shape)
    total = jnp.sum(jnp.where(counted, values, 0))
    return total / jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)


def size_of(values: Array | Unmade, counted: Counted) -> Array:
    """Of how many numbers `mean_of` is the mean."""
    whole = (
        jnp.ones(values.shape, bool)
        if counted is None
        else jnp.broadcast_to(spread(counted, values.ndim), values.shape)
    )
    return jnp.sum(whole, dtype=jnp.float32)


def weighted(weight: Array, mean: Array) -> Array:
    """Weight · mean; 0 where the weight is, be the mean NaN or infinite."""
    nothing = (weight == 0) & ~jnp.isfinite(mean)
    return weight * jnp.where(nothing, 0, mean)


@jax.custom_vjp
def passing(array: Any, weight: Any) -> Any:
    """The array itself; where `weight` is 0 the gradient that comes back has neither NaN nor ∞."""
    del weight
    return array


def _pass(array: Any, weight: Any) -> tuple[Any, Any]:
    return array, weight


def _pass_back(weight: Any, cotangent: Any) -> tuple[Any, Array]:
    # Only what is not finite is replaced: a derivative of this gradient by the weight, at 0, is what it should be.
    if cotangent.dtype != jax.dtypes.float0:
        cotangent = jnp.where((weight == 0) & ~jnp.isfinite(cotangent), jnp.zeros((), cotangent.dtype), cotangent)
    return cotangent, jnp.zeros_like(weight)


passing.defvjp(_pass, _pass_back)
