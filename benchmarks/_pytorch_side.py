"""The same three steps in PyTorch, in each of the ways that a PyTorch user would try to make them fast."""

import numpy as np
import torch
import torch.nn.functional as F
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, TEMPERATURE, WAYS, WIDTHS, Batches, Step, cores
from torch import nn


def steps(params: dict[str, dict], batches: Batches, way: str, pool_first: bool) -> dict[str, Step]:
    """The three pieces of work by name.

    `pool_first` pools before the ReLU, which gives the same values: kdjax's models do so, and PyTorch gets the same chance.
    """
    torch.set_num_threads(cores())
    channels_last, compiled = WAYS[way]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    placed = [
        (
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout),
            torch.from_numpy(labels).long(),
        )
        for images, labels in batches
    ]

    def network(name: str) -> nn.Module:
        return _network(params[name], WIDTHS[name], pool_first).to(memory_format=layout)

    frozen = network(TEACHER).eval().requires_grad_(False)
    return {
        "teacher": _step(network(TEACHER), None, placed, compiled),
        "distillation": _step(network(STUDENT), frozen, placed, compiled),
        "student": _step(network(STUDENT), None, placed, compiled),
    }


def _network(params: dict, widths: tuple[int, ...], pool_first: bool) -> nn.Module:
    """With kdjax's weights, moved from channels last to channels first, also where the last stage is flattened."""
    layers: list[nn.Module] = []
    channels = 1
    for number, width in enumerate(widths, 1):
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        stage = params[f"stage{number}"]
        _fill(convolution, stage["kernel"].transpose(3, 2, 0, 1), stage["bias"])
        after = [nn.MaxPool2d(2), nn.ReLU()] if pool_first else [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [convolution, *after]
        channels = width
    logits = nn.Linear(49 * channels, 10)
    kernel = params["logits"]["kernel"].reshape(7, 7, channels, 10).transpose(3, 2, 0, 1)
    _fill(logits, kernel.reshape(10, -1), params["logits"]["bias"])
    return nn.Sequential(*layers, nn.Flatten(), logits)


def _fill(layer: nn.Module, kernel: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.copy()))
        layer.bias.copy_(torch.from_numpy(bias.copy()))


def _step(model: nn.Module, teacher: nn.Module | None, batches: list, compiled: bool) -> Step:
    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        hard = F.cross_entropy(logits, labels)
        if teacher is None:
            return hard
        with torch.no_grad():
            taught = F.softmax(teacher(images) / TEMPERATURE, 1)
        soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), taught, reduction="batchmean")
        return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft

    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    if compiled:
        # torch.compile counts its programs by code object, and goes back to eager after eight: each step gets its own.
        loss_of.__code__ = loss_of.__code__.replace()
        loss_of = torch.compile(loss_of, fullgraph=True)

    def run(count: int) -> float:
        for number in range(count):
            optimizer.zero_grad()
            loss = loss_of(*batches[number % len(batches)])
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return run
