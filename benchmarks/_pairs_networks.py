"""PyTorch's networks of the pairs, made from kdjax's weights: channels first, features by kdjax's names."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _pairs_work import CNNS
from _wrn_pytorch import WideResNet, filled
from torch import Tensor, nn

Said = tuple[Tensor, dict[str, Tensor]]
"""Logits, and features by name."""


def network(name: str, params: dict[str, Any], model_state: dict[str, Any]) -> nn.Module:
    if name in CNNS:
        return CNN(params, model_state["batch_stats"])
    return filled(WideResNet(name, len(params["logits"]["bias"])), params, model_state)


class CNN(nn.Module):
    """Convolution, normalisation, ReLU and pooling, stage by stage; a hidden layer; the logits."""

    def __init__(self, params: dict[str, Any], statistics: dict[str, Any]) -> None:
        super().__init__()
        names = sorted(name for name in params if name.startswith("stage"))
        self.stages = nn.ModuleDict(
            {
                name: nn.Sequential(
                    convolution(params[name]["kernel"]), norm(params[name]["norm"], **statistics[name]["norm"])
                )
                for name in names
            }
        )
        self.hidden, self.logits = dense(**params["hidden"]), dense(**params["logits"])

    def forward(self, images: Tensor) -> Said:
        x, features = images, {}
        for name, stage in self.stages.items():
            x = features[name] = F.max_pool2d(F.relu(stage(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order of kdjax's positions and channels
        x = features["embedding"] = F.relu(self.hidden(x))
        return self.logits(x), features


def convolution(kernel: np.ndarray, bias: np.ndarray | None = None, stride: tuple[int, int] | None = None) -> nn.Conv2d:
    """From [height, width, in, out] or, for 1 × 1, [in, out]; with a stride, nothing is padded."""
    kernel = kernel[None, None] if kernel.ndim == 2 else kernel
    padding = "valid" if stride else "same"
    layer = nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], stride or 1, padding, bias=bias is not None)
    return _with(layer, weight=kernel.transpose(3, 2, 0, 1), bias=bias)


def dense(kernel: np.ndarray, bias: np.ndarray) -> nn.Linear:
    return _with(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias)


def norm(params: dict[str, np.ndarray], mean: np.ndarray, var: np.ndarray) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(mean))
    return _with(layer, weight=params["scale"], bias=params["bias"], running_mean=mean, running_var=var)


def _with(layer: Any, **arrays: np.ndarray | None) -> Any:
    with torch.no_grad():
        for name, array in arrays.items():
            if array is not None:
                getattr(layer, name).copy_(torch.from_numpy(array.copy()))
    return layer
