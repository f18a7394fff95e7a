"""Measures: what an evaluation sums over a data set, and what a distillation bought, with intervals."""

from kdjax.metrics._calibration import brier_score as brier_score
from kdjax.metrics._calibration import calibration_error as calibration_error
from kdjax.metrics._calibration import reliability as reliability
from kdjax.metrics._costs import Cost as Cost
from kdjax.metrics._costs import Latency as Latency
from kdjax.metrics._costs import cost as cost
from kdjax.metrics._costs import latency as latency
from kdjax.metrics._measures import Measure as Measure
from kdjax.metrics._measures import accuracy as accuracy
from kdjax.metrics._measures import agreeing as agreeing
from kdjax.metrics._measures import as_measure as as_measure
from kdjax.metrics._measures import class_iou as class_iou
from kdjax.metrics._measures import finished as finished
from kdjax.metrics._measures import label_accuracy as label_accuracy
from kdjax.metrics._measures import mean_iou as mean_iou
from kdjax.metrics._measures import perplexity as perplexity
from kdjax.metrics._measures import sums_of as sums_of
from kdjax.metrics._measures import top_k_accuracy as top_k_accuracy
from kdjax.metrics._results import Interval as Interval
from kdjax.metrics._results import accuracy_transfer_rate as accuracy_transfer_rate
from kdjax.metrics._results import agreement as agreement
from kdjax.metrics._results import mean_interval as mean_interval
from kdjax.metrics._results import paired_difference as paired_difference
from kdjax.metrics._results import parameter_count as parameter_count
from kdjax.metrics._similarity import cka as cka

__all__ = [
    "Cost",
    "Interval",
    "Latency",
    "Measure",
    "accuracy",
    "accuracy_transfer_rate",
    "agreeing",
    "agreement",
    "as_measure",
    "brier_score",
    "calibration_error",
    "cka",
    "class_iou",
    "cost",
    "finished",
    "label_accuracy",
    "latency",
    "mean_interval",
    "mean_iou",
    "paired_difference",
    "parameter_count",
    "perplexity",
    "reliability",
    "sums_of",
    "top_k_accuracy",
]
