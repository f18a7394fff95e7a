"""Named errors for bad arguments.

All checks here are static: they read shapes, dtypes and Python numbers, so under `jax.jit` they run once, while tracing, and
cost nothing afterwards. A traced number has no value to check and passes.
"""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"shape {tuple(value.shape)} and dtype {value.dtype}"
    return repr(value)


def _number(value: Any) -> float | None:
    """`value` as a float where it is a single number known now; None for a tracer or an array of several."""
    if isinstance(value, jax.core.Tracer) or np.size(value) != 1:
        return None
    return float(value)


def rank(name: str, array: Any, wanted: int, axes: str) -> None:
    """`axes` names the wanted shape for the reader, such as ``"[batch, classes]"``."""
    if np.ndim(array) != wanted:
        raise ValueError(f"{name} must have {wanted} axes, {axes}; got {_described(array)}.")


def rank_at_least(name: str, array: Any, wanted: int, axes: str) -> None:
    if np.ndim(array) < wanted:
        raise ValueError(f"{name} must have at least {wanted} axes, {axes}; got {_described(array)}.")


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


def per_channel(name: str, array: Any, features_name: str, features: Any) -> None:
    """One number for each channel, the last axis of the features."""
    if np.shape(array) != np.shape(features)[-1:]:
        raise ValueError(
            f"{name} must have shape {tuple(np.shape(features)[-1:])}, one number per channel of {features_name}, "
            f"whose shape is {tuple(np.shape(features))}; got shape {tuple(np.shape(array))}."
        )


def labels(name: str, array: Any, batch: int) -> None:
    """One integer class number per example."""
    if np.shape(array) != (batch,) or not jnp.issubdtype(jnp.result_type(array), jnp.integer):
        raise ValueError(f"{name} must be whole class numbers of shape ({batch},); got {_described(array)}.")


def positive(name: str, value: Any) -> None:
    known = _number(value)
    if known is not None and not (known > 0 and math.isfinite(known)):
        raise ValueError(f"{name} must be a finite number greater than 0; got {value!r}.")


def finite(name: str, value: Any) -> None:
    if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
        raise ValueError(f"{name} must be a finite number; got {value!r}.")


def between(name: str, value: Any, low: float, high: float) -> None:
    known = _number(value)
    if known is not None and not low <= known <= high:
        raise ValueError(f"{name} must lie between {low} and {high}; got {value!r}.")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Names the near misses, so that a slip of the keyboard is mended at first sight."""
    if value in known:
        return
    near = get_close_matches(value, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.{hint}")
