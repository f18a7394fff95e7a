"""Which example when: batches and their views as pure functions of a few numbers."""

import zlib
from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from kdjax import _checks
from kdjax._types import AnyArray

# Away from the key of the step itself, ``fold_in(rng, step)``.
_OF_VIEWS = zlib.crc32(b"views")


def epoch_indices(
    examples: int, batch_size: int, *, seed: int | Int[Array, ""], epoch: int | Int[Array, ""]
) -> Int[Array, "steps batch"]:
    """Shuffle one epoch: a pure function of (seed, epoch), so that the place in the data is known from three numbers.

    Epoch e is a permutation of all examples, drawn from ``fold_in(key(seed), e)`` and cut into
    ``examples // batch_size`` batches. **The remainder sits this epoch out**: the last ``examples % batch_size`` of the
    permutation. They are others each epoch, so none is lost to the training as a whole, and all batches have one size,
    so that the step compiles once.

    Args:
      examples: how many there are.
      batch_size: how many make a batch.
      seed: a whole number; it may be traced.
      epoch: a whole number, likewise.

    Returns:
      int32 [steps, batch_size]: row s holds the indices of batch s.

    Raises:
      ValueError: if batch_size is less than 1 or more than examples, or a number is not whole.

    Example:
      >>> from kdjax.batches import epoch_indices
      >>> indices = epoch_indices(10, 3, seed=0, epoch=5)
      >>> indices.shape, len(set(indices.ravel().tolist()))
      ((3, 3), 9)
      >>> bool((indices == epoch_indices(10, 3, seed=0, epoch=5)).all())
      True
    """
    _checks.whole("examples", examples, 1)
    _checks.whole("batch_size", batch_size, 0)
    _whole("seed", seed, -(2**31))
    _whole("epoch", epoch, 0)
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size must lie between 1 and the {examples} examples there are; got {batch_size}.")
    return _epoch_indices(examples, batch_size, seed, epoch)


@partial(jax.jit, static_argnums=(0, 1))
def _epoch_indices(examples: int, batch_size: int, seed: int | Array, epoch: int | Array) -> Array:
    steps = examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


def evaluation_indices(examples: int, batch_size: int) -> tuple[Int[Array, "steps batch"], Float[Array, "steps batch"]]:
    """Batches in which every example occurs exactly once, in order; the last one is filled up.

    Args:
      examples: how many there are.
      batch_size: how many make a batch; it may exceed `examples`.

    Returns:
      Indices, int32 [steps, batch_size], and a mask, float32 [steps, batch_size]: 1 for an example, 0 for the filling, whose
      index is 0. Count only what the mask marks, by `where`, and divide by its sum.

    Raises:
      ValueError: if either number is less than 1.

    Example:
      >>> from kdjax.batches import evaluation_indices
      >>> indices, mask = evaluation_indices(5, 3)
      >>> indices.tolist(), mask.tolist()
      ([[0, 1, 2], [3, 4, 0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    """
    _checks.whole("examples", examples, 1)
    _checks.whole("batch_size", batch_size, 1)
    steps = -(-examples // batch_size)
    position = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)
    real = position < examples
    return jnp.asarray(np.where(real, position, 0)), jnp.asarray(real, jnp.float32)


def take(arrays: Mapping[str, Any], indices: Int[AnyArray, " *batch"]) -> dict[str, Any]:
    """One batch: the rows of every array at `indices`, also of arrays in pytrees, such as a teacher's cached outputs.

    While tracing nobody can tell whether an index is in bounds. Beyond the end it gives NaN in floating-point arrays, in
    others the largest number of an unsigned type or the smallest of a signed one; from −1 down to −examples it counts from
    the end, as elsewhere in JAX.

    Args:
      arrays: by name, arrays [examples, ...] or pytrees of such.
      indices: whole numbers of any shape.

    Returns:
      By name, [*indices.shape, ...].

    Raises:
      ValueError: if an index, where it is known, is below 0 or beyond the end, or `indices` are no whole numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.batches import take
      >>> take({"labels": jnp.array([7, 8, 9])}, jnp.array([2, 0]))["labels"].tolist()
      [9, 7]
    """
    _checks.arrays_by_name("arrays", arrays)
    kind = getattr(indices, "dtype", None)
    if kind is None or not jnp.issubdtype(kind, jnp.integer):
        found = f"dtype {kind}" if kind is not None else f"a {type(indices).__name__}"
        raise ValueError(f"indices must be an array of whole numbers; got {found}.")
    if not isinstance(indices, jax.core.Tracer) and getattr(indices, "is_fully_addressable", True) and np.size(indices):
        examples = min((jnp.shape(array)[0] for array in jax.tree.leaves(dict(arrays))), default=0)
        lowest, highest = np.min(indices), np.max(indices)
        if lowest < 0 or highest >= examples:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"indices must lie between 0 and {examples - 1}, of {examples} examples; got {wrong}.")
    return jax.tree.map(lambda array: jnp.take(array, indices, axis=0), dict(arrays))


def view_key(rng: PRNGKeyArray, number: int | Int[Array, ""]) -> PRNGKeyArray:
    """Make the key of one batch's views: the one law for them, whether the teacher sees them in the step or before.

    Args:
      rng: the training state's key; views and the step's own noise never draw from the same one.
      number: of the update, counted from the start of the run; where an epoch's views are kept and seen again, of the
        update that saw them first. It may be traced.

    Returns:
      A key. Each example then draws from the key's ``fold_in`` of its own place in the data set.

    Raises:
      ValueError: if number is not whole, from 0 to 2³¹ − 1.

    Example:
      >>> rng = jax.random.key(0)
      >>> bool(view_key(rng, 3) == view_key(rng, 3)), bool(view_key(rng, 3) == jax.random.fold_in(rng, 3))
      (True, False)
    """
    _whole("number", number, 0)
    return jax.random.fold_in(jax.random.fold_in(rng, _OF_VIEWS), number)


def keys_of_each(rng: PRNGKeyArray, numbers: Int[AnyArray, " batch"]) -> Key[Array, " batch"]:
    """Each number's own key, the ``fold_in`` of `rng`, of threefry2x32 for any `rng`.

    Under `jax.vmap`, what keys of rbg and unsafe_rbg draw depends on the first of them, and so on the batch.

    Args:
      rng: a key.
      numbers: whole numbers, such as the examples' places in the batch or in the data set.

    Example:
      >>> bool(keys_of_each(jax.random.key(0), jnp.arange(3))[2] == jax.random.fold_in(jax.random.key(0), 2))
      True
    """
    if jax.random.key_impl(rng) != "threefry2x32":
        rng = reduce(jax.random.fold_in, jax.random.key_data(rng).ravel(), jax.random.key(0, impl="threefry2x32"))
    return jax.vmap(partial(jax.random.fold_in, rng))(jnp.asarray(numbers))


def _whole(name: str, number: Any, least: int) -> None:
    """A whole number that int32 holds, also in an array; of one that is traced, its type alone is known."""
    if jnp.issubdtype(getattr(number, "dtype", object), jnp.integer) and np.ndim(number) == 0:
        if isinstance(number, jax.core.Tracer):
            return
        number = np.asarray(number)[()]
    _checks.whole(name, number, least)
    if number >= 2**31:
        raise ValueError(f"{name} must be less than 2**31; got {number}.")
