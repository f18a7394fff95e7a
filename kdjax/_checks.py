"""Named errors for bad arguments.

All checks here are static: they read shapes, dtypes and Python numbers, so under `jax.jit` they run once, while tracing, and
cost nothing afterwards. A traced number has no value to check and passes.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._types import Shared


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"shape {tuple(value.shape)} and dtype {value.dtype}"
    return repr(value)


class OutOfRangeError(ValueError):
    """A number that is not what it must be, or no number at all. `argument` is the name that the message begins with."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument} {message}")
        self.argument = argument


def _numbers(name: str, value: Any, wanted: str) -> np.ndarray | None:
    """`value` as float64 where it is known now; None for a tracer."""
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise OutOfRangeError(name, f"must be {wanted}; got {value!r}.")
    return array.astype(np.float64)


def rank(name: str, array: Any, wanted: int, axes: str) -> None:
    """`axes` names the wanted shape for the reader, such as ``"[batch, classes]"``."""
    if np.ndim(array) != wanted:
        raise ValueError(f"{name} must have {wanted} axes, {axes}; got {_described(array)}.")


def rank_at_least(name: str, array: Any, wanted: int, axes: str) -> None:
    if np.ndim(array) < wanted:
        raise ValueError(
            f"{name} must have at least {wanted} {'axis' if wanted == 1 else 'axes'}, {axes}; got {_described(array)}."
        )


def floating(name: str, array: Any) -> None:
    if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        raise ValueError(f"{name} must hold floating-point numbers; got {_described(array)}.")


def same_shape(first_name: str, first: Any, second_name: str, second: Any) -> None:
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape; "
            f"got {tuple(np.shape(first))} for {first_name} and {tuple(np.shape(second))} for {second_name}."
        )


def same_batch(first_name: str, first: Any, second_name: str, second: Any) -> None:
    if np.shape(first)[0] != np.shape(second)[0]:
        raise ValueError(
            f"{first_name} and {second_name} must have the same batch size, their first axis; "
            f"got shapes {tuple(np.shape(first))} for {first_name} and {tuple(np.shape(second))} for {second_name}."
        )


def same_leading_axes(first_name: str, first: Any, second_name: str, second: Any) -> None:
    if np.shape(first)[:-1] != np.shape(second)[:-1]:
        raise ValueError(
            f"{first_name} and {second_name} must have the same axes before the last, the batch size and the positions; "
            f"got shapes {tuple(np.shape(first))} for {first_name} and {tuple(np.shape(second))} for {second_name}."
        )


def per_channel(name: str, array: Any, features_name: str, features: Any) -> None:
    """One number for each channel, the last axis of the features."""
    if np.shape(array) != np.shape(features)[-1:]:
        raise ValueError(
            f"{name} must have shape {tuple(np.shape(features)[-1:])}, one number per channel of {features_name}, "
            f"whose shape is {tuple(np.shape(features))}; got shape {tuple(np.shape(array))}."
        )


def labels(name: str, array: Any, shape: tuple[int, ...]) -> jax.Array:
    """Whole class numbers of a shape, as int32; one that int32 does not hold stays out of any range of classes."""
    kind = getattr(array, "dtype", None)
    if np.shape(array) != shape or kind is None or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"{name} must be whole class numbers of shape {shape}; got {_described(array)}.")
    # In uint8 the number of classes, 256, would be 0; and 2³² + 1, cut to 32 bits, would be class 1.
    own, kept = jnp.iinfo(kind), jnp.iinfo(jnp.int32)
    if own.max > kept.max:
        numpy = jnp if isinstance(array, jax.Array) else np
        array = numpy.clip(array, max(own.min, kept.min), kept.max)
    return jnp.asarray(array.astype(jnp.int32))


def uncut(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Its labels of 64 bits, which JAX would cut to 32, kept out of any range of classes instead; all else as it is."""
    found = batch.get("labels")
    if isinstance(found, np.ndarray) and found.dtype in (np.int64, np.uint64) and not jax.config.read("jax_enable_x64"):
        kept = np.iinfo(np.int32)
        return {**batch, "labels": np.clip(found, max(np.iinfo(found.dtype).min, kept.min), kept.max)}
    return dict(batch)


def where(value: Any, shape: tuple[int, ...]) -> None:
    """What counts of a batch: None for all, or bools of `shape` or of its first axes."""
    if value is None:
        return
    kind = getattr(value, "dtype", None)
    if not np.ndim(value) or np.shape(value) != shape[: np.ndim(value)] or kind is None or np.dtype(kind) != np.bool_:
        raise ValueError(
            f"where must be bools of shape {shape}, or of its first axes: what counts of the batch; got {_described(value)}."
        )


def positive(name: str, value: Any) -> None:
    _one(name, value)
    _all_positive(name, value)


def _all_positive(name: str, value: Any) -> np.ndarray | None:
    known = _numbers(name, value, "a finite number greater than 0")
    if known is not None and not ((known > 0) & np.isfinite(known)).all():
        raise OutOfRangeError(name, f"must be a finite number greater than 0; got {value!r}.")
    return known


def _one(name: str, value: Any) -> None:
    if np.ndim(value):
        raise OutOfRangeError(name, f"must be one number; got shape {tuple(np.shape(value))}.")


def temperature(name: str, value: Any, examples: tuple[int, ...] = ()) -> None:
    """One number, or one for each of `examples`, greater than 0; float32 holds its square, by which losses multiply.

    Of examples with positions, [batch, time], the number may be each position's own or each example's, [batch].
    """
    if not examples:
        _one(name, value)
    elif np.ndim(value) and np.shape(value) != examples[: np.ndim(value)]:
        raise ValueError(
            f"{name} must be one number, or one for each example, shape {examples}; got shape {tuple(np.shape(value))}."
        )
    known = _all_positive(name, value)
    if known is not None and known.size:
        low, high = math.sqrt(np.finfo(np.float32).tiny), math.sqrt(np.finfo(np.float32).max)
        if known.min() < low or known.max() > high:
            raise OutOfRangeError(
                name, f"must lie between {low:.2g} and {high:.2g}, so that float32 holds its square; got {value!r}."
            )


def finite(name: str, value: Any) -> None:
    known = _numbers(name, value, "a finite number")
    if known is not None and not np.isfinite(known).all():
        raise OutOfRangeError(name, f"must be a finite number; got {value!r}.")


def between(name: str, value: Any, low: float, high: float) -> None:
    _one(name, value)
    known = _numbers(name, value, f"a number between {low} and {high}")
    if known is not None and not ((low <= known) & (known <= high)).all():
        raise OutOfRangeError(name, f"must lie between {low} and {high}; got {value!r}.")


def whole(name: str, value: Any, least: int) -> None:
    """A whole number of Python's or NumPy's own; True is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OutOfRangeError(name, f"must be a whole number of {least} or more; got {value!r}.")


def function(name: str, value: Any, form: str) -> None:
    """A function; an array or a network's weights in its place are told apart before they are called."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, {form}; got {_of_type(value)}.")


def optimizer(name: str, value: Any) -> None:
    """An optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise ValueError(f"{name} must be an optax transformation, such as optax.adam(1e-3); got {_of_type(value)}.")


def instance(name: str, value: Any, kind: type, form: str) -> None:
    """Of one of kdjax's or JAX's own types, said as `form`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {form}; got {_of_type(value)}.")


def batch(value: Any) -> None:
    """Arrays by name, the inputs among them."""
    if not isinstance(value, Mapping):
        raise ValueError(f"batch must be arrays by name, {{'inputs': …}}; got {_of_type(value)}.")
    if "inputs" not in value:
        raise ValueError(f'batch must have "inputs"; got {sorted(map(str, value))}.')


def arrays_by_name(name: str, value: Any) -> None:
    """A mapping, whose arrays all have an axis of examples."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be arrays by name, {{'inputs': …}}; got {_of_type(value)}.")
    for entry, tree in value.items():
        for leaf in jax.tree.leaves(tree):
            if not np.ndim(leaf):
                raise ValueError(f"{name}[{entry!r}] must have an axis of examples; got {_described(leaf)}.")


def _of_type(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    return _described(value) if hasattr(value, "shape") and hasattr(value, "dtype") else f"a {type(value).__name__}"


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Names the near misses, so that a typing error is mended at first sight."""
    if isinstance(value, str) and value in known:
        return
    near = get_close_matches(value, known, n=3) if isinstance(value, str) else []
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.{hint}")


def feature(who: str, outputs: Any, name: str) -> Any:
    """The logits or the feature `name` of a network's `Outputs`, or the error that says what there is."""
    if name == "logits" and outputs.logits is not None:
        return outputs.logits
    if name == "logits":
        raise ValueError(
            f"The {who}'s logits are not in its cache, which kept features alone, {sorted(outputs.features)}."
        )
    if name not in outputs.features:
        near = get_close_matches(name, outputs.features, n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        if outputs.logits is None:
            hint = " Of kept outputs, what is Shared, as a head is, is taken from the teacher's Weights: give them too."
        raise ValueError(f"The {who} has no feature {name!r}; it has {sorted(outputs.features)}.{hint}")
    found = outputs.features[name]
    return found.array if isinstance(found, Shared) else found
