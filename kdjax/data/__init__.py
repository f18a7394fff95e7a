"""Data sets as checked arrays, chosen by a string, and batches as pure functions of (seed, epoch).

What is larger than memory is opened rather than loaded, and streamed. TFDS, scikit-learn, Pillow and Grain are imported when
something that needs them is called, not before.
"""

from kdjax.data.batches import epoch_indices as epoch_indices
from kdjax.data.batches import evaluation_indices as evaluation_indices
from kdjax.data.batches import on_device as on_device
from kdjax.data.batches import symmetric_range as symmetric_range
from kdjax.data.batches import take as take
from kdjax.data.batches import unit_range as unit_range
from kdjax.data.dataset import Dataset as Dataset
from kdjax.data.dataset import make_dataset as make_dataset
from kdjax.data.examples import Examples as Examples
from kdjax.data.sources import load as load
from kdjax.data.sources import open_examples as open_examples
from kdjax.data.streams import open_evaluation as open_evaluation
from kdjax.data.streams import open_stream as open_stream

__all__ = [
    "Dataset",
    "Examples",
    "epoch_indices",
    "evaluation_indices",
    "load",
    "make_dataset",
    "on_device",
    "open_evaluation",
    "open_examples",
    "open_stream",
    "symmetric_range",
    "take",
    "unit_range",
]
