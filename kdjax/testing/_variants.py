"""The same numbers by chex's variants, with jit and pmap faked, and by one program for all batches and settings."""

import unittest
from typing import Any

import chex
import jax
import numpy as np

from kdjax.testing._calling import bound, jitted, made, said, traceable
from kdjax.testing._case import Case
from kdjax.testing._measured import Measured, relative_error


def variants(case: Case) -> dict[str, Measured]:
    """By `chex.variants`: with and without jit, on a device, with pmap; values against those of the plain program."""
    arrays = made(case, seed=8)
    wanted = jitted(case)(*arrays)
    found: dict[str, Measured] = {}

    class Variants(chex.TestCase):  # type: ignore[misc]
        @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)  # type: ignore[untyped-decorator]
        def test(self) -> None:
            name = self._testMethodName.removeprefix("test").strip("_")
            # Of pmap: where the batch does not go by devices, each computes all of it.
            values = self.variant(bound(case))(*arrays)
            found[name] = Measured(relative_error(values, wanted), 1e-4, f"{name} of {said(8)}")

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Variants).run(result)
    for test, traceback in (*result.errors, *result.failures):
        name = str(test).split()[0]
        found[name] = Measured(np.nan, 1e-4, f"{name} of {said(8)}: {traceback.strip().splitlines()[-1]}")
    return found


def faked(case: Case) -> Measured:
    """Values where `chex.fake_pmap_and_jit` leaves nothing to be compiled."""
    arrays = made(case, seed=8)
    with chex.fake_pmap_and_jit():
        values = jax.jit(bound(case))(*arrays)
    return Measured(relative_error(values, jitted(case)(*arrays)), 1e-4, f"fake_pmap_and_jit of {said(8)}")


def traces(case: Case) -> Measured:
    """How often it is traced for three batches, each with other values of all hyper-parameters that are floats: once."""
    numbers, static = traceable(case, case.keywords)
    count = 0

    def function(numbers: Any, *arrays: Any) -> Any:
        nonlocal count
        count += 1
        return case.function(*arrays, **numbers, **static)

    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(function, n=1))
    try:
        for seed in range(3):
            moved = jax.tree.map(lambda number, seed=seed: np.asarray(number * (1 + 0.01 * seed), np.float32), numbers)
            step(moved, *made(case, seed=seed))
    except AssertionError:
        count = max(count, 2)
    finally:
        chex.clear_trace_counter()
    return Measured(float(count - 1), 0.0, "three batches of one shape: times it was traced anew")
