"""Networks in Flax Linen that return `Outputs` with named features. The only folder that imports Flax.

``kdjax.networks.from_linen`` turns each into `Weights` and an `Apply`. `MODELS` names each network's inputs and, beside it,
how many parameters it then has.
"""

import dataclasses
from typing import Any

from kdjax import _checks
from kdjax.models._cnn import CNN as CNN
from kdjax.models._convolution import convolve as convolve
from kdjax.models._layers import Dropout as Dropout
from kdjax.models._layers import max_pool as max_pool
from kdjax.models._wide_resnet import WideResNet as WideResNet

PYTORCH = 1 / 3

MODELS: dict[str, CNN | WideResNet] = {
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
    # 32 × 32 × 3, CIFAR's pictures, 10 classes
    "wrn_40_2": WideResNet(depth=40, width=2),  # 2,243,546
    "wrn_16_2": WideResNet(depth=16, width=2),  # 691,674
}


def make_model(name: str, **overrides: Any) -> CNN | WideResNet:
    """The network called `name`, with any of its settings replaced.

    Args:
      name: a key of `MODELS`.
      **overrides: fields of the model's class, `CNN` or `WideResNet`.

    Raises:
      ValueError: if there is no such model or no such setting, with the near misses; or as the model's class does.

    Example:
      >>> make_model("compression_student", classes=100).widths
      (8, 16)
    """
    _checks.one_of("name", name, list(MODELS))
    model = MODELS[name]
    # Flax adds two fields of its own to every module.
    settings = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")]
    for setting in overrides:
        _checks.one_of(f"A setting of {name}", setting, settings)
    return model.clone(**overrides)


__all__ = ["CNN", "MODELS", "Dropout", "WideResNet", "convolve", "make_model", "max_pool"]
