"""What the numeric law of the losses measures, row by row: the tests assert on it and the verification report prints it."""

import functools
import inspect
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from calling import (
    bound,
    converted,
    floating,
    jitted,
    made,
    reference_of,
    traceable,
    value_and_gradients,
    value_and_gradients_at,
)
from compiler import careful_compiler
from jax.flatten_util import ravel_pytree

from kdjax import losses

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CASES = {case["case"]: case for case in json.loads((GOLDEN / "losses.json").read_text())}
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

# How much of the largest number's size is forgiven to every number: a gradient near 0 is a sum whose terms cancel.
OF_VALUES = 0.01
OF_GRADIENTS = 1.0


class Measured(NamedTuple):
    """The largest relative error found, and the largest that the law allows."""

    error: float
    limit: float

    @property
    def holds(self) -> bool:
        return bool(self.error <= self.limit)  # NaN does not

    def __add__(self, other: "Measured") -> "Measured":
        """The worse of two under one law."""
        assert self.limit == other.limit
        return self if not self.error <= other.error else other


def relative_error(actual, wanted, share=OF_VALUES):
    """The largest |actual − wanted| / (|wanted| + share · max |wanted|); NaN where either has one."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, f"{actual.shape} is compared with {wanted.shape}"
    difference, size = np.abs(actual - wanted), np.abs(wanted)
    size = size + share * size.max()
    return float(np.max(np.where(difference == 0, 0.0, difference / np.where(size == 0, 1e-300, size))))


def relative_error_of_trees(actual, wanted, share):
    """The largest of any leaf, each leaf against its own size."""
    return max_or_nan(jax.tree.leaves(jax.tree.map(lambda a, w: relative_error(a, w, share), actual, wanted)))


def max_or_nan(numbers):
    return float(np.max([*numbers]))


# Is the value right?


def agreement_with_reference(case, precision):
    """Values at every setting of the row."""
    compiled = functools.cache(lambda **static: jax.jit(functools.partial(case.function, **static)))
    errors = []
    for seed, keywords in enumerate(case.settings):
        arrays = case.make(np.random.default_rng(seed), 6)
        numbers, static = traceable(case, keywords)
        with jax.enable_x64(precision is np.float64):
            values = compiled(**static)(*converted(arrays, precision), **numbers)
        assert values.shape == (6,)
        assert values.dtype == precision
        errors.append(relative_error(values, reference_of(case)(*arrays, **keywords)))
    return Measured(max_or_nan(errors), 1e-10 if precision is np.float64 else 2e-4)


def gradient_of_reference(case):
    """The gradient of every array against the slow reference's slopes: two evaluations for each number of the input."""
    arrays = case.make(np.random.default_rng(1), 4)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, 4)
    reference = functools.partial(reference_of(case), **case.keywords)
    errors = []
    with jax.enable_x64(True):
        which = floating(arrays)
        weighted = lambda *args: jnp.sum(weights * bound(case)(*args))  # noqa: E731
        gradients = jax.jit(jax.grad(weighted, argnums=which))(*converted(arrays, np.float64))
    for position, gradient in zip(which, gradients, strict=True):

        def value(flat, position=position):
            changed = flat.reshape(arrays[position].shape)
            return weights @ reference(*arrays[:position], changed, *arrays[position + 1 :])

        errors.append(relative_error(gradient.ravel(), _slopes(value, arrays[position].ravel()), OF_GRADIENTS))
    return Measured(max_or_nan(errors), 1e-6)


def _slopes(function, at, step=1e-5):
    directions = step * np.eye(at.size)
    return np.array([(function(at + d) - function(at - d)) / (2 * step) for d in directions])


def agreement_with_golden(name, precision):
    """Value, and gradient for the student, of one golden case."""
    golden = GOLDEN_CASES[name]
    relative = 1e-6 if precision is np.float64 else 1e-4
    with np.load(GOLDEN / "losses.npz") as arrays, jax.enable_x64(precision is np.float64):
        keywords = {
            key: arrays[golden["arrays"][value["array"]]] if isinstance(value, dict) else value
            for key, value in golden["keywords"].items()
        }
        inputs = converted([arrays[golden["arrays"][key]] for key in golden["args"]], precision)
        function = getattr(losses, golden["function"])
        value, gradient = jax.jit(jax.value_and_grad(lambda *args: function(*args, **keywords).mean()))(*inputs)
        wanted = arrays[golden["arrays"]["grad_student"]]
    return (
        Measured(relative_error(value, golden["value"]), relative),
        Measured(relative_error(gradient, wanted, OF_GRADIENTS), relative),
    )


def numerical_gradient(case):
    """The loss's own slopes, of every number in every array and of every traced hyper-parameter."""
    numbers, static = traceable(case, case.keywords)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, 6)
    with jax.enable_x64(True):
        arrays = made(case, np.float64, seed=3)
        which = floating(arrays)
        start, unravel = ravel_pytree(([arrays[i] for i in which], numbers))

        def weighted(flat):
            moving, traced = unravel(flat)
            values = list(arrays)
            for position, value in zip(which, moving, strict=True):
                values[position] = value
            return jnp.sum(weights * case.function(*values, **traced, **static))

        step = 1e-5
        slope = lambda d: (weighted(start + step * d) - weighted(start - step * d)) / (2 * step)  # noqa: E731
        gradient, slopes = jax.jit(lambda: (jax.grad(weighted)(start), jax.lax.map(slope, jnp.eye(start.size))))()
        return Measured(relative_error_of_trees(unravel(gradient), unravel(slopes), OF_GRADIENTS), 1e-6)


def invariance(case, change):
    arrays = case.make(np.random.default_rng(5), 6)
    before = jitted(case)(*converted(arrays, np.float32))
    if "keywords" in inspect.signature(change).parameters:
        changed, keywords = change(arrays, case.keywords)
        compiled = value_and_gradients_at(case, floating(converted(arrays, np.float32)), keywords)
        after = compiled(*converted(changed, np.float32))[0][1]
    else:
        changed = change(arrays)
        after = jitted(case)(*converted(changed, np.float32))
    assert any(not np.array_equal(old, new) for old, new in zip(arrays, changed, strict=True))
    return Measured(relative_error(after, before, share=0.05), 2e-4)


def order_of_the_batch(case):
    order = np.arange(6)[::-1] if case.ordered else np.random.default_rng(9).permutation(6)
    arrays = made(case, seed=9)
    return Measured(relative_error(jitted(case)(*case.taken(arrays, order)), jitted(case)(*arrays)[order]), 1e-4)


def with_leading_axes(case):
    """Values and gradients of [2, 3, …] against those of the same six entries as [6, …], and of [1, …] against [...]."""
    flat = made(case)
    (_, wanted), gradients = value_and_gradients(case, floating(flat))(*flat)
    deep = tuple(a.reshape(2, 3, *a.shape[1:]) for a in flat)
    (_, values), deep_gradients = value_and_gradients(case, floating(deep))(*deep)
    assert values.shape == (2, 3)
    errors = [relative_error(values.reshape(6), wanted)]
    for gradient, other in zip(deep_gradients, gradients, strict=True):
        errors.append(relative_error(np.reshape(gradient, other.shape), other, OF_GRADIENTS))
    alone, one = bound(case)(*(a[0] for a in flat)), bound(case)(*(a[:1] for a in flat))
    assert alone.shape == ()
    errors.append(relative_error(alone, one[0]))
    return Measured(max_or_nan(errors), 1e-5)


def with_some_left_out(case, rubbish):
    """Values and gradients of a batch among others that do not count, against those of the batch alone."""
    where = np.array([True, False, True, True, False, True, True, True, False])
    plain = made(case)
    longer = []
    for a in plain:
        filler = np.full((9, *a.shape[1:]), rubbish if jnp.issubdtype(a.dtype, jnp.floating) else 0, a.dtype)
        filler[where] = a
        longer.append(jnp.asarray(filler))
    function = bound(case)

    def total(arrays, weights, **keywords):
        values = function(*arrays, **keywords)
        return jnp.sum(values * weights), values

    weights = np.arange(1.0, 7.0, dtype=np.float32)
    of_all = np.zeros(9, np.float32)
    of_all[where] = weights
    step = jax.jit(jax.grad(total, has_aux=True, allow_int=True), compiler_options=careful_compiler())
    gradients, values = step(tuple(longer), of_all, where=jnp.asarray(where))
    wanted_gradients, wanted = step(plain, weights)
    errors = [relative_error(values[where], wanted), relative_error(values[~where], np.zeros(3))]
    for gradient, other, a in zip(gradients, wanted_gradients, plain, strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            errors.append(relative_error(gradient[where], other, OF_GRADIENTS))
            errors.append(relative_error(gradient[~where], np.zeros_like(gradient[~where])))
    return Measured(max_or_nan(errors), 1e-4)


# Is it finite everywhere, and in every dtype?


def at_bad_points(case, dtype, settings=None):
    """What is wrong at each bad point and setting of hyper-parameters; nothing should be.

    `settings` are the numbers of those to try, 0 being the row's own and 1 the defaults; None: all.
    """
    arrays = case.make(np.random.default_rng(6), 6)
    points = case.hard_inputs(arrays, largest=case.largest_in_float16 if dtype is jnp.float16 else 1e4)
    which = floating(converted(arrays, dtype))
    # The first setting is the row's own, in the program that other laws share; the others trace their numbers.
    programs = [value_and_gradients(case, which)]
    programs += [value_and_gradients_at(case, which, setting) for setting in case.settings[1:]]
    return {
        (point, number): _faults(program, converted(hard, dtype), dtype)
        for number, program in enumerate(programs)
        for point, hard in points.items()
        if settings is None or number in settings
    }


def _faults(program, inputs, dtype):
    (_, values), gradients = program(*inputs)
    # Half-precision input is computed in float32: rounding it before, by hand, changes nothing.
    widened = converted([np.asarray(a, np.float32) if a.dtype == dtype else a for a in inputs], np.float32)
    same = np.allclose(values, program(*widened)[0][1], 1e-4, 1e-5)
    found = {
        "a value is not finite": not np.isfinite(values).all(),
        "values are not float32": values.dtype != jnp.float32,
        "the value is not that of the same input in float32": not same,
        "a gradient is not finite": not all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients),
        "a gradient is not of its input's dtype": not all(g.dtype == dtype for g in gradients),
    }
    return [fault for fault, is_so in found.items() if is_so]
