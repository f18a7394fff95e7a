"""Property-test your own loss by the laws that kdjax's losses are held to. Needs chex and hypothesis (extra `testing`)."""

from kdjax.testing import inputs, invariances, strategies
from kdjax.testing._case import BadCall, Case
from kdjax.testing._check import Breach, BrokenLaws, check_loss
from kdjax.testing._laws import LAWS
from kdjax.testing._measured import Measured

__all__ = [
    "LAWS",
    "BadCall",
    "Breach",
    "BrokenLaws",
    "Case",
    "Measured",
    "check_loss",
    "inputs",
    "invariances",
    "strategies",
]
