"""Is it finite everywhere, and in every dtype? And is NaN shown where NaN is given?"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.testing._calling import converted, floating, jitted, value_and_gradients, value_and_gradients_at
from kdjax.testing._case import Case

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def at_bad_points(case: Case, dtype: Any, settings: Collection[int] | None = None) -> Mapping[Any, list[str]]:
    """What is wrong at each bad point and setting of hyper-parameters; nothing should be.

    `settings` are the numbers of those to try, 0 being the case's own and 1 the defaults; None: all.
    """
    arrays = case.make(np.random.default_rng(6), 6)
    points = case.hard_inputs(arrays, largest=case.largest_in_float16 if dtype is jnp.float16 else 1e4)
    which = floating(converted(arrays, dtype))
    # The first setting is the case's own, in the program that other laws share; the others trace their numbers.
    programs = [value_and_gradients(case, which)]
    programs += [value_and_gradients_at(case, which, setting) for setting in case.settings[1:]]
    return {
        (point, number): _faults(program, converted(hard, dtype), dtype)
        for number, program in enumerate(programs)
        for point, hard in points.items()
        if settings is None or number in settings
    }


def _faults(program: Callable, inputs: Any, dtype: Any) -> list[str]:
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


def hides_nan(case: Case) -> list[int]:
    """The positions of arrays of which one example may be NaN, and that example's value is a number."""
    arrays = case.make(np.random.default_rng(7), 6)
    hidden = []
    for position in floating(arrays):
        broken = [a.copy() for a in arrays]
        broken[position][2] = np.nan
        if not np.isnan(jitted(case)(*converted(broken, np.float32))[2]):
            hidden.append(position)
    return hidden
