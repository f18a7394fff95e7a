"""Values and gradients of the methods' widely used implementations: tests/golden, asked for by the loss's name."""

import json
from pathlib import Path

import jax
import numpy as np

from kdjax import losses
from kdjax.testing import Measured
from kdjax.testing._calling import converted
from kdjax.testing._measured import OF_GRADIENTS, relative_error

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CASES = {case["case"]: case for case in json.loads((GOLDEN / "losses.json").read_text())}


def golden_of(case):
    """The names of a loss's golden cases."""
    return tuple(name for name, golden in GOLDEN_CASES.items() if golden["function"] == case.name)


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
