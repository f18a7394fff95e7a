"""Is the value right, and the gradient? The laws that need numbers of another origin, or of the loss itself elsewhere."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from kdjax.testing._calling import (
    bound,
    compiled,
    converted,
    floating,
    jitted,
    made,
    said,
    traceable,
    value_and_gradients,
    value_and_gradients_at,
)
from kdjax.testing._case import Case
from kdjax.testing._measured import OF_GRADIENTS, Measured, max_or_nan, relative_error, relative_error_of_trees


def agreement_with_reference(case: Case, precision: Any) -> Measured:
    """Values at every setting."""
    assert case.reference is not None
    of_static = functools.cache(lambda **static: jax.jit(functools.partial(case.function, **static)))
    found = []
    for seed, keywords in enumerate(case.settings):
        arrays = case.make(np.random.default_rng(seed), 6)
        numbers, static = traceable(case, keywords)
        with jax.enable_x64(precision is np.float64):
            values = of_static(**static)(*converted(arrays, precision), **numbers)
        assert values.shape == (6,), f"values have the shape {values.shape}, where (6,) was due: one for each example"
        assert values.dtype == precision, f"values are {values.dtype} of arrays in {np.dtype(precision)}"
        error = relative_error(values, case.reference(*arrays, **keywords))
        found.append(Measured(error, 1e-10 if precision is np.float64 else 2e-4, f"{said(seed)}, {keywords}"))
    return functools.reduce(Measured.__add__, found)


def gradient_of_reference(case: Case) -> Measured:
    """The gradient of every array against the slow reference's slopes: two evaluations for each number of the input."""
    assert case.reference is not None
    arrays = case.make(np.random.default_rng(1), 4)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, 4)
    reference = functools.partial(case.reference, **case.keywords)
    errors = []
    with jax.enable_x64(True):
        which = floating(arrays)
        weighted = lambda *args: jnp.sum(weights * bound(case)(*args))  # noqa: E731
        gradients = jax.jit(jax.grad(weighted, argnums=which))(*converted(arrays, np.float64))
    for position, gradient in zip(which, gradients, strict=True):

        def value(flat: Any, position: int = position) -> Any:
            changed = flat.reshape(arrays[position].shape)
            return weights @ reference(*arrays[:position], changed, *arrays[position + 1 :])

        errors.append(relative_error(gradient.ravel(), _slopes(value, arrays[position].ravel()), OF_GRADIENTS))
    return Measured(max_or_nan(errors), 1e-6, said(1, 4))


def _slopes(function: Callable, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    directions = step * np.eye(at.size)
    return np.array([(function(at + d) - function(at - d)) / (2 * step) for d in directions])


def numerical_gradient(case: Case) -> Measured:
    """The loss's own slopes, of every number in every array and of every traced hyper-parameter."""
    numbers, static = traceable(case, case.keywords)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, 6)
    with jax.enable_x64(True):
        arrays = made(case, np.float64, seed=3)
        which = floating(arrays)
        start, unravel = ravel_pytree(([arrays[i] for i in which], numbers))

        def weighted(flat: Any) -> jax.Array:
            moving, traced = unravel(flat)
            values = list(arrays)
            for position, value in zip(which, moving, strict=True):
                values[position] = value
            return jnp.sum(weights * case.function(*values, **traced, **static))

        step = 1e-5
        slope = lambda d: (weighted(start + step * d) - weighted(start - step * d)) / (2 * step)  # noqa: E731
        gradient, slopes = jax.jit(lambda: (jax.grad(weighted)(start), jax.lax.map(slope, jnp.eye(start.size))))()
        return Measured(relative_error_of_trees(unravel(gradient), unravel(slopes), OF_GRADIENTS), 1e-6, said(3))


def at_equality(case: Case) -> Measured:
    """The value where student and teacher are equal, which is 0."""
    values = jitted(case)(*converted(case.equal(case.make(np.random.default_rng(4), 6)), np.float32))
    return Measured(max_or_nan(np.abs(values)), 1e-7 if case.agree is None else 2e-6, f"{said(4)}, made equal")


def below_lowest(case: Case) -> Measured:
    """How far the value lies below the lowest that it is said to take; somewhere it must lie above."""
    values = np.asarray(jitted(case)(*made(case, seed=4)))
    return Measured(max_or_nan(case.lowest + 1e-5 - values), 0.0, said(4))


def invariance(case: Case, change: Callable) -> Measured:
    """The values after a change that should leave them as they are."""
    arrays = case.make(np.random.default_rng(5), 6)
    before = jitted(case)(*converted(arrays, np.float32))
    if "keywords" in inspect.signature(change).parameters:
        changed, keywords = change(arrays, case.keywords)
        program = value_and_gradients_at(case, floating(converted(arrays, np.float32)), keywords)
        after = program(*converted(changed, np.float32))[0][1]
    else:
        changed = change(arrays)
        after = jitted(case)(*converted(changed, np.float32))
    assert any(not np.array_equal(old, new) for old, new in zip(arrays, changed, strict=True)), "nothing was changed"
    return Measured(relative_error(after, before, share=0.05), 2e-4, f"{said(5)}, changed by {name_of(change)}")


def name_of(change: Callable) -> str:
    return getattr(change, "__name__", repr(change))


def order_of_the_batch(case: Case) -> Measured:
    """The values of the batch in another order."""
    order = np.arange(6)[::-1] if case.ordered else np.random.default_rng(9).permutation(6)
    arrays = made(case, seed=9)
    error = relative_error(jitted(case)(*case.taken(arrays, order)), jitted(case)(*arrays)[order])
    return Measured(error, 1e-4, f"{said(9)}, in the order {order.tolist()}")


def coupling(case: Case) -> list[Measured]:
    """The influence of each example's input on the others' values: none where it is not said, some of each where it is."""
    arrays = made(case, seed=10)
    moving = tuple(position for position in floating(arrays) if position not in case.shared)
    jacobians = jax.jit(jax.jacrev(bound(case), argnums=moving))(*arrays)
    # Of example j on the number of example i: by its student's array, and by any of its arrays.
    influences = [np.abs(np.asarray(jacobian)).reshape(6, 6, -1).max(axis=2) for jacobian in jacobians]
    of_student, influence = influences[0], np.max(influences, axis=0)
    coupled = abs(np.subtract.outer(range(6), range(6))) == 1 if case.ordered else ~np.eye(6, dtype=bool)
    own = Measured(
        float((np.diagonal(of_student) == 0).any()), 0.0, f"{said(10)}: an example's own input moves nothing"
    )
    if case.couples_batch:
        some = (influence[coupled] > 0).all()
        return [
            own,
            Measured(float(not some), 0.0, f"{said(10)}: of couples_batch=True, an example that moves no other"),
        ]
    others = max_or_nan(influence[coupled])
    alone = np.concatenate([jitted(case)(*case.taken(arrays, slice(i, i + 1))) for i in range(6)])
    return [
        own,
        Measured(
            others, 0.0, f"{said(10)}: of couples_batch=False, the slope of one example's number by another's input"
        ),
        Measured(relative_error(alone, jitted(case)(*arrays)), 1e-4, f"{said(10)}: each example alone"),
    ]


def with_leading_axes(case: Case) -> Measured:
    """Values and gradients of [2, 3, …] against those of the same six entries as [6, …], and of [1, …] against [...]."""
    flat = made(case)
    (_, wanted), gradients = value_and_gradients(case, floating(flat))(*flat)
    deep = tuple(a if position in case.shared else a.reshape(2, 3, *a.shape[1:]) for position, a in enumerate(flat))
    (_, values), deep_gradients = value_and_gradients(case, floating(deep))(*deep)
    assert values.shape == (2, 3), f"values have the shape {values.shape}, where (2, 3) was due"
    errors = [relative_error(values.reshape(6), wanted)]
    for gradient, other in zip(deep_gradients, gradients, strict=True):
        errors.append(relative_error(np.reshape(gradient, other.shape), other, OF_GRADIENTS))
    first = (a if position in case.shared else a[0] for position, a in enumerate(flat))
    alone, one = bound(case)(*first), bound(case)(*case.taken(flat, slice(1)))
    assert alone.shape == (), f"the value of one entry has the shape {alone.shape}"
    errors.append(relative_error(alone, one[0]))
    return Measured(max_or_nan(errors), 1e-5, f"{said(0)}, as [2, 3, …]")


@functools.cache
def _gradients_and_values(case: Case) -> Callable:
    function = bound(case)

    def total(arrays: Any, weights: Any, counted: Any, **keywords: Any) -> Any:
        values = function(*arrays, **keywords)
        return jnp.sum(jnp.where(counted, values, 0.0) * weights), values

    return compiled(jax.grad(total, has_aux=True, allow_int=True))


def left_out(case: Case, rubbish: float) -> Measured:
    """Values and gradients of a batch among others that do not count, against those of the batch alone.

    A loss with `where=` is told which count; of any other, the caller leaves the others' values out of the sum.
    """
    where = np.array([True, False, True, True, False, True, True, True, False])
    plain = made(case)
    longer = []
    for position, a in enumerate(plain):
        if position in case.shared:
            longer.append(a)
            continue
        filler = np.full((9, *a.shape[1:]), rubbish if jnp.issubdtype(a.dtype, jnp.floating) else 0, a.dtype)
        filler[where] = a
        longer.append(jnp.asarray(filler))
    weights = np.arange(1.0, 7.0, dtype=np.float32)
    of_all = np.zeros(9, np.float32)
    of_all[where] = weights
    step = _gradients_and_values(case)
    told = {"where": jnp.asarray(where)} if case.takes_where else {}
    gradients, values = step(tuple(longer), of_all, where, **told)
    wanted_gradients, wanted = step(plain, weights, np.ones(6, bool))
    errors = [relative_error(values[where], wanted)]
    errors += [relative_error(values[~where], np.zeros(3))] if told else []
    for position, (gradient, other) in enumerate(zip(gradients, wanted_gradients, strict=True)):
        if not jnp.issubdtype(plain[position].dtype, jnp.floating):
            continue
        if position in case.shared:
            # By way of 0 · NaN, an example that the caller leaves out reaches it: no loss without where= can help that.
            errors += [relative_error(gradient, other, OF_GRADIENTS)] if told else []
            continue
        errors.append(relative_error(gradient[where], other, OF_GRADIENTS))
        errors += [relative_error(gradient[~where], np.zeros_like(gradient[~where]))] if told else []
    return Measured(max_or_nan(errors), 1e-4, f"{said(0)} among three examples of {rubbish}")


def wrong_error(case: Case, bad: Any, arrays: Any) -> str:
    """What is wrong with the error of a bad call, compiled or not; nothing should be."""
    # Without a type checker around it, which would speak first: this is what a user meets.
    function = functools.partial(inspect.unwrap(case.function), **{**case.keywords, **bad.keywords})
    for call in (function, jax.jit(function)):
        try:
            call(*converted(arrays, np.float32))
        except ValueError as error:
            if not re.search(bad.words, str(error)):
                return f"the error says {error}, not {bad.words}"
        except Exception as error:
            return f"{type(error).__name__} instead of a ValueError: {error}"
        else:
            return f"no error, where {bad.words} is due"
    return ""
