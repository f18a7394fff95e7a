"""kdjax: knowledge distillation for JAX. Pure losses, objectives as values, one train step.

``import kdjax`` needs jax, optax, NumPy and jaxtyping. What needs more is imported by its own name: `kdjax.models` (flax),
`kdjax.checkpoints` (orbax), `kdjax.data` (tensorflow-datasets), `kdjax.runs.pictures` (matplotlib).
"""

from kdjax import connectors, losses, objectives, training
from kdjax._types import Apply, Outputs, Shared, Term, TrainState, Weights
from kdjax.objectives import (
    Objective,
    computed,
    cross_entropy,
    on_feature,
    on_heads,
    on_logits,
    on_outputs,
    scaled,
    schedules,
    weighted_sum,
)
from kdjax.training import init_state, make_eval_step, make_train_step

__version__ = "0.1.0"  # the package's metadata has it from here

__all__ = [
    "Apply",
    "Objective",
    "Outputs",
    "Shared",
    "Term",
    "TrainState",
    "Weights",
    "computed",
    "connectors",
    "cross_entropy",
    "init_state",
    "losses",
    "make_eval_step",
    "make_train_step",
    "objectives",
    "on_feature",
    "on_heads",
    "on_logits",
    "on_outputs",
    "scaled",
    "schedules",
    "training",
    "weighted_sum",
]
