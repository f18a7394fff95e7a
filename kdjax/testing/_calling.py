"""How the laws call a loss: in which dtype, with which hyper-parameters, compiled once."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.testing._case import Case

# What `jax.jit` is given: a test run whose compiler is quick and careless asks here for one that keeps many digits.
COMPILER_OPTIONS: dict[str, Any] = {}


def compiled(function: Callable) -> Callable:
    return jax.jit(function, compiler_options=COMPILER_OPTIONS or None)


def made(case: Case, dtype: Any = np.float32, seed: int = 0, batch: int = 6) -> tuple[jax.Array, ...]:
    """The case's inputs; labels and indices keep their type."""
    return converted(case.make(np.random.default_rng(seed), batch), dtype)


def said(seed: int, batch: int = 6) -> str:
    """The same in words, for who wants them again."""
    return f"make(np.random.default_rng({seed}), {batch})"


def converted(arrays: Any, dtype: Any) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None) for a in arrays)


def floating(arrays: Any) -> tuple[int, ...]:
    return tuple(position for position, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating))


def bound(case: Case, **keywords: Any) -> Callable:
    return functools.partial(case.function, **{**case.keywords, **keywords})


def traceable(case: Case, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The hyper-parameters that may be traced, the defaults included, and the others.

    The default's type tells which: a float may. Of those without a default, arrays and tuples of floats may.
    """
    parameters = inspect.signature(inspect.unwrap(case.function)).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    numbers = {
        name: jax.tree.map(np.asarray, value)
        for name, value in {**defaults, **keywords}.items()
        if name in defaults or isinstance(value, np.ndarray) or _floats(value)
    }
    return numbers, {name: value for name, value in keywords.items() if name not in numbers}


def _floats(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(number, float) for number in value)


def jitted(case: Case) -> Callable:
    """The per-example values alone, from the program that all laws share: most of their time is compilation."""
    return lambda *arrays: value_and_gradients(case, floating(arrays))(*arrays)[0][1]


@functools.cache
def value_and_gradients(case: Case, argnums: tuple[int, ...]) -> Callable:
    """Per-example values, and the gradients of their mean; hyper-parameters are constants of the program."""
    return _value_and_gradients(bound(case), argnums)


def value_and_gradients_at(case: Case, argnums: tuple[int, ...], keywords: Mapping[str, Any]) -> Callable:
    """The same at another setting: numbers are traced, so that settings which differ in them share a program."""
    numbers, static = traceable(case, keywords)
    return functools.partial(_traced(case, argnums, tuple(static.items())), numbers)


@functools.cache
def _traced(case: Case, argnums: tuple[int, ...], static: Any) -> Callable:
    def function(numbers: Any, *arrays: Any) -> Any:
        return case.function(*arrays, **numbers, **dict(static))

    return _value_and_gradients(function, tuple(1 + position for position in argnums))


def _value_and_gradients(function: Callable, argnums: tuple[int, ...]) -> Callable:
    def mean(*arguments: Any) -> Any:
        values = function(*arguments)
        return values.mean(), values

    return compiled(jax.value_and_grad(mean, argnums=argnums, has_aux=True))
