"""Networks in Flax Linen that return `Outputs` with named features. The only folder that imports Flax.

``kdjax.adapters.from_linen`` turns each into `Weights` and an `Apply`. `MODELS` names each network's inputs and, beside it,
how many parameters it then has.
"""

from typing import Any

from kdjax import _checks
from kdjax.models._cnn import CNN as CNN
from kdjax.models._cnn import settings
from kdjax.models._layers import Dropout as Dropout
from kdjax.models._layers import convolve as convolve
from kdjax.models._layers import max_pool as max_pool

PYTORCH = 1 / 3

MODELS: dict[str, CNN] = {
    # 28 × 28 × 1, the three MNIST experiments. Two of the articles are PyTorch's, and start as its networks do.
    "pipeline_teacher": CNN(widths=(32, 64), hidden=128, gain=PYTORCH),  # 421,642
    "pipeline_student": CNN(widths=(16, 32), hidden=64, gain=PYTORCH),  # 105,866
    "compression_teacher": CNN(widths=(64, 256), gain=PYTORCH),  # 273,802
    "compression_student": CNN(widths=(8, 16), gain=PYTORCH),  # 9,098
    "soft_targets_teacher": CNN(widths=(32, 64), hidden=128, padding="VALID"),  # 225,034
    "soft_targets_student": CNN(widths=(16,), hidden=64, padding="VALID"),  # 173,930
    # 8 × 8 × 1, the demo
    "digits_teacher": CNN(widths=(32, 64), hidden=64, batch_norm=True, dropout=0.3),  # 36,010
    "digits_student": CNN(widths=(4, 8), hidden=16),  # 1,034
}


def make_model(name: str, **overrides: Any) -> CNN:
    """The network called `name`, with any of its settings replaced.

    Args:
      name: a key of `MODELS`.
      **overrides: fields of `CNN`.

    Raises:
      ValueError: if there is no such model or no such setting, with the near misses; or as `CNN` does.

    Example:
      >>> make_model("compression_student", classes=100).widths
      (8, 16)
    """
    _checks.one_of("name", name, list(MODELS))
    for setting in overrides:
        _checks.one_of(f"A setting of {name}", setting, settings())
    return MODELS[name].clone(**overrides)


__all__ = ["CNN", "MODELS", "Dropout", "convolve", "make_model", "max_pool"]
