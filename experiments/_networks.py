"""The networks of the articles and of the benchmarks, by name; beside each, how many parameters it has."""

from typing import Any

from kdjax import _checks
from kdjax.models import CNN, WideResNet

PYTORCH = 1 / 3

NETWORKS: dict[str, CNN | WideResNet] = {
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


def make_model(name: str, **settings: Any) -> CNN | WideResNet:
    """The network called `name`, with any fields of its class replaced."""
    _checks.one_of("name", name, list(NETWORKS))
    return NETWORKS[name].clone(**settings)
