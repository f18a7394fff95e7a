"""Data sets as checked arrays, chosen by a string, and batches as pure functions of (seed, epoch).

TFDS and scikit-learn are imported when a source that needs them is read, not before.
"""

from kdjax.data.batches import epoch_indices as epoch_indices
from kdjax.data.batches import evaluation_indices as evaluation_indices
from kdjax.data.batches import on_device as on_device
from kdjax.data.batches import symmetric_range as symmetric_range
from kdjax.data.batches import take as take
from kdjax.data.batches import unit_range as unit_range
from kdjax.data.dataset import Dataset as Dataset
from kdjax.data.dataset import make_dataset as make_dataset
from kdjax.data.sources import load as load

__all__ = [
    "Dataset",
    "epoch_indices",
    "evaluation_indices",
    "load",
    "make_dataset",
    "on_device",
    "symmetric_range",
    "take",
    "unit_range",
]
