"""How tests and the verification report call a row's loss: in which dtype, with which hyper-parameters, compiled once."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import references
from compiler import careful_compiler


def reference_of(case):
    """The slow NumPy form that the row's loss must agree with."""
    return case.reference or getattr(references, case.name)


def made(case, dtype=np.float32, seed=0, batch=6):
    """The row's inputs; labels and indices keep their type."""
    return converted(case.make(np.random.default_rng(seed), batch), dtype)


def converted(arrays, dtype):
    return tuple(jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None) for a in arrays)


def floating(arrays):
    return tuple(position for position, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating))


def bound(case, **keywords):
    return functools.partial(case.function, **{**case.keywords, **keywords})


def traceable(case, keywords):
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


def _floats(value):
    return isinstance(value, tuple) and bool(value) and all(isinstance(number, float) for number in value)


def jitted(case):
    """The per-example values alone, from the program that all tests share: most of the tests' time is compilation."""
    return lambda *arrays: value_and_gradients(case, floating(arrays))(*arrays)[0][1]


@functools.cache
def value_and_gradients(case, argnums):
    """Per-example values, and the gradients of their mean; hyper-parameters are constants of the program."""
    return _value_and_gradients(bound(case), argnums)


def value_and_gradients_at(case, argnums, keywords):
    """The same at another setting: numbers are traced, so that settings which differ in them share a program."""
    numbers, static = traceable(case, keywords)
    return functools.partial(_traced(case, argnums, tuple(static.items())), numbers)


@functools.cache
def _traced(case, argnums, static):
    def function(numbers, *arrays):
        return case.function(*arrays, **numbers, **dict(static))

    return _value_and_gradients(function, tuple(1 + position for position in argnums))


def _value_and_gradients(function, argnums):
    def mean(*arguments):
        values = function(*arguments)
        return values.mean(), values

    # What is asked is often of the last digits.
    return jax.jit(jax.value_and_grad(mean, argnums=argnums, has_aux=True), compiler_options=careful_compiler())
