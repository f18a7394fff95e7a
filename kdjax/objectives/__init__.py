"""What is minimised: terms read their arrays by name, `weighted_sum` gives them weights, schedules make numbers change."""

from kdjax.objectives import schedules as schedules
from kdjax.objectives._heads import on_heads as on_heads
from kdjax.objectives._supervised import binary_cross_entropy as binary_cross_entropy
from kdjax.objectives._supervised import cross_entropy as cross_entropy
from kdjax.objectives._supervised import mixed_cross_entropy as mixed_cross_entropy
from kdjax.objectives._supervised import smoothed_cross_entropy as smoothed_cross_entropy
from kdjax.objectives._supervised import squared_error as squared_error
from kdjax.objectives._terms import computed as computed
from kdjax.objectives._terms import on_feature as on_feature
from kdjax.objectives._terms import on_logits as on_logits
from kdjax.objectives._terms import on_outputs as on_outputs
from kdjax.objectives._weighted_sum import Objective as Objective
from kdjax.objectives._weighted_sum import Scores as Scores
from kdjax.objectives._weighted_sum import scaled as scaled
from kdjax.objectives._weighted_sum import weighted_sum as weighted_sum

__all__ = [
    "Objective",
    "Scores",
    "binary_cross_entropy",
    "computed",
    "cross_entropy",
    "mixed_cross_entropy",
    "on_feature",
    "on_heads",
    "on_logits",
    "on_outputs",
    "scaled",
    "schedules",
    "smoothed_cross_entropy",
    "squared_error",
    "weighted_sum",
]
