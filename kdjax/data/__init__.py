"""Data sets as checked arrays, chosen by a string, and batches as pure functions of (seed, epoch).

What is larger than memory is opened rather than loaded, and streamed. TFDS, scikit-learn, Pillow and Grain are imported when
something that needs them is called, not before.
"""

from kdjax.batches import epoch_indices as epoch_indices
from kdjax.batches import evaluation_indices as evaluation_indices
from kdjax.batches import take as take
from kdjax.data.augmentation import color_jitter as color_jitter
from kdjax.data.augmentation import example_keys as example_keys
from kdjax.data.augmentation import horizontal_flip as horizontal_flip
from kdjax.data.augmentation import random_crop as random_crop
from kdjax.data.dataset import Dataset as Dataset
from kdjax.data.dataset import make_dataset as make_dataset
from kdjax.data.examples import Examples as Examples
from kdjax.data.mixing import cutmix as cutmix
from kdjax.data.mixing import make_views as make_views
from kdjax.data.mixing import mixup as mixup
from kdjax.data.preprocessing import on_device as on_device
from kdjax.data.preprocessing import symmetric_range as symmetric_range
from kdjax.data.preprocessing import unit_range as unit_range
from kdjax.data.sources import load as load
from kdjax.data.sources import open_examples as open_examples
from kdjax.data.streams import open_evaluation as open_evaluation
from kdjax.data.streams import open_stream as open_stream

__all__ = [
    "Dataset",
    "Examples",
    "color_jitter",
    "cutmix",
    "epoch_indices",
    "evaluation_indices",
    "example_keys",
    "horizontal_flip",
    "load",
    "make_dataset",
    "make_views",
    "mixup",
    "on_device",
    "open_evaluation",
    "open_examples",
    "open_stream",
    "random_crop",
    "symmetric_range",
    "take",
    "unit_range",
]
