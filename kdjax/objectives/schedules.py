"""Numbers that change while training runs: a weight or a temperature as a function of the step.

A schedule is a pytree. Its numbers are leaves, so changing them compiles nothing again; its formula is static.
"""

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks
from kdjax._types import Number, Tree


@partial(jax.tree_util.register_dataclass, data_fields=("numbers",), meta_fields=("formula",))
@dataclass(frozen=True)
class Schedule:
    """``formula(step, *numbers)``. Any function of the step, such as one of optax's, is `Schedule(function)`."""

    formula: Callable[..., Any]
    numbers: tuple[Any, ...] = field(default=())

    def __call__(self, step: Number) -> Any:
        return self.formula(step, *self.numbers)


def at(tree: Tree, step: Number) -> Tree:
    """The same pytree with every `Schedule` in it replaced by its value at `step`.

    Example:
      >>> values = at({"soft": linear(4.0, 2.0, steps=10), "hard": 0.1}, step=5)
      >>> float(values["soft"]), values["hard"]
      (3.0, 0.1)
    """

    def scheduled(node: Any) -> bool:
        return isinstance(node, Schedule)

    return jax.tree.map(lambda node: node(step) if scheduled(node) else node, tree, is_leaf=scheduled)


def linear(start: Number, end: Number, *, steps: Number) -> Schedule:
    """A straight line from `start` to `end` over `steps` updates, then `end`.

    Raises:
      ValueError: if `steps` is not positive, or `start` or `end` is not finite.

    Example:
      >>> [round(float(linear(4.0, 2.0, steps=10)(step)), 3) for step in (0, 5, 10, 99)]
      [4.0, 3.0, 2.0, 2.0]
    """
    return _between(_line, start, end, steps)


def cosine(start: Number, end: Number, *, steps: Number) -> Schedule:
    """Half a cosine wave from `start` to `end` over `steps` updates, then `end`: flat at both ends.

    Raises:
      ValueError: if `steps` is not positive, or `start` or `end` is not finite.

    Example:
      >>> [round(float(cosine(1.0, 0.0, steps=4)(step)), 3) for step in (0, 1, 2, 4, 9)]
      [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    return _between(_half_wave, start, end, steps)


def staircase(start: Number, *, factor: Number, every: Number) -> Schedule:
    """`start`, multiplied by `factor` each time another `every` updates have passed.

    Raises:
      ValueError: if `every` is not positive, or `start` or `factor` is not finite.

    Example:
      >>> [round(float(staircase(0.5, factor=0.5, every=10)(step)), 4) for step in (0, 9, 10, 25)]
      [0.5, 0.5, 0.25, 0.125]
    """
    _checks.positive("every", every)
    return Schedule(_stairs, (_number("start", start), _number("factor", factor), _number("every", every)))


def leaf_of(name: str, value: Any) -> Any:
    """A number or a schedule as a leaf of an objective, or the ValueError that says why it is none."""
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return Schedule(value)
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or hasattr(value, "dtype")):
        raise ValueError(f"{name} must be a number or a function of the step; got {value!r}.")
    return _number(name, value)


def plain(value: Any) -> Any:
    """A single number of JAX or NumPy that is known now as Python's own; tracers, arrays and all else as they are."""
    is_array = hasattr(value, "dtype") and not isinstance(value, type | jax.core.Tracer)
    return np.asarray(value).item() if is_array and np.ndim(value) == 0 else value


def _number(name: str, value: Any) -> Any:
    """A finite number, as a float where it is known.

    One type for all: an int or a float32 today and a float tomorrow would compile twice, and an int has no gradient.
    """
    _checks.finite(name, value)
    known = plain(value)
    return float(known) if isinstance(known, numbers.Real) else value


def _between(formula: Callable[..., Any], start: Number, end: Number, steps: Number) -> Schedule:
    _checks.positive("steps", steps)
    return Schedule(formula, (_number("start", start), _number("end", end), _number("steps", steps)))


def _line(step: Number, start: Number, end: Number, steps: Number) -> jax.Array:
    return start + (end - start) * jnp.clip(step / steps, 0.0, 1.0)


def _half_wave(step: Number, start: Number, end: Number, steps: Number) -> jax.Array:
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0.0, 1.0)))


def _stairs(step: Number, start: Number, factor: Number, every: Number) -> jax.Array:
    # XLA multiplies by the reciprocal of a constant, and 41 · (1 / 41) may be less than 1: products say which stair it is.
    stair = jnp.floor(step / every)
    stair = stair + (step >= (stair + 1) * every) - (step < stair * every)
    return start * factor**stair


FORMULAS = (_line, _half_wave, _stairs)  # those whose last number is a step at which they have changed
