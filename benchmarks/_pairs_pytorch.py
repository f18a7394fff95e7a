"""PyTorch's side of the pairs: a plain, eager loop, as a distillation script in PyTorch has it. Neither JAX nor kdjax."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pairs_methods import Batch, Terms
from _pairs_networks import network
from _pairs_work import BORDER, Data, Recipe, epochs, normal, read, terms_of
from _work import cores
from torch import Tensor, nn


def steps(file: Path, recipe: Recipe, compared: int, precision: str, device: str) -> dict[str, Callable[..., Any]]:
    """`train`, as kdjax's side has it, with CRD's negatives as one argument more."""
    torch.set_num_threads(cores())
    torch.set_default_dtype(torch.float64 if precision == "float64" else torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "TF32"
    data = read(file)
    images, labels = _placed(data.images, device), _placed(data.labels, device).long()
    pictures = nn.functional.pad(images, (BORDER,) * 4) if recipe.views else _normal(data.images, data, device)
    mean, deviation = (_number(numbers, device)[:, None, None] for numbers in (data.mean, data.deviation))

    def seen_as(rows: Tensor, seen: dict[str, Tensor]) -> Tensor:
        if not recipe.views:
            return pictures[rows]
        height, width = images.shape[2:]
        down, right = (seen["corner"][rows, axis, None] + torch.arange(size, device=device)
                       for axis, size in ((0, height), (1, width)))  # fmt: skip
        cut = pictures[rows[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
        cut = torch.where(seen["mirrored"][rows, None, None, None] > 0, cut.flip(3), cut)
        return (cut.to(mean.dtype) / 255 - mean) / deviation

    def train(
        method: str, seed: int, order: np.ndarray, student: tuple, teacher: tuple, negatives: np.ndarray | None
    ) -> dict[str, Any]:
        torch.manual_seed(seed)
        params, state = student
        beside = "connectors" in params
        own = (params["student"], state["student"]) if beside else student
        parts = (params["connectors"], state["connectors"]) if beside else ({}, {})
        learner, teaching = (
            network(name, *weights).to(device, mean.dtype)
            for name, weights in ((recipe.student, own), (recipe.teacher, teacher))
        )
        terms = Terms(method, recipe, *parts, labels).to(device, mean.dtype)
        weights = terms_of(method, recipe)
        teaching.eval().requires_grad_(False)
        learner.train()
        optimizer = torch.optim.SGD(
            [*learner.parameters(), *terms.parameters()],
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.decay,
        )
        curves: list[dict[str, Tensor]] = []
        seconds, step = [], 0
        for rows_of_epoch, seen in epochs(order, data, recipe, seed):
            started = time.perf_counter()
            placed = {name: _placed(array, device) for name, array in seen.items()}
            for rows in torch.from_numpy(rows_of_epoch).long().to(device):
                optimizer.param_groups[0]["lr"] = recipe.rate_at(step)
                batch = Batch(
                    labels[rows], rows, None if negatives is None else _placed(negatives[step], device).long()
                )
                inputs = seen_as(rows, placed)
                with torch.no_grad():
                    taught = teaching(inputs)
                found = terms(learner(inputs), taught, batch)
                loss = sum(weights[name] * value for name, value in found.items())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step < compared:
                    curves.append({"loss": loss.detach()} | {name: value.detach() for name, value in found.items()})
                step += 1
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        curve = {name: [float(one[name]) for one in curves] for name in ("loss", *weights)}
        return {"curves": curve, "epochs_s": seconds, "accuracy": accuracy(learner)}

    @torch.no_grad()
    def accuracy(learner: nn.Module) -> float:
        learner.eval()
        right = 0
        for first in range(0, len(data.test_labels), 500):
            piece = slice(first, first + 500)
            logits, _ = learner(_normal(data.test_images[piece], data, device))
            right += int((logits.argmax(1) == _placed(data.test_labels[piece], device)).sum())
        return right / len(data.test_labels)

    return {"train": train}


def _placed(array: np.ndarray, device: str) -> Tensor:
    """On the device; pictures with channels first."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array).to(device)


def _number(array: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(array).to(device, torch.get_default_dtype())


def _normal(images: np.ndarray, data: Data, device: str) -> Tensor:
    return _placed(normal(images, data), device).to(torch.get_default_dtype())
