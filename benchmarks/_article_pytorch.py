"""Article C in PyTorch as such articles write it: eager, a DataLoader of single examples, the teacher run in every step.

The order of layers is the article's, and so are the numbers; the loss is the right one, with T² and log-probabilities.
Images are converted one by one when they are asked for, as torchvision's ToTensor does, but from an array, which is quicker
than by way of a picture.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, TEMPERATURE, WIDTHS, Batches, cores
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """Single images [1, height, width] in [0, 1], with their labels."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = torch.from_numpy(images), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].permute(2, 0, 1).float().div(255), self.labels[index]


def steps(splits: Batches, classes: int, epochs: int, batch: int, device: str) -> dict[str, Any]:
    """The article's three phases by name, each as in kdjax's side."""
    torch.set_num_threads(cores())
    kept: dict[str, nn.Module] = {}
    train, test = (
        DataLoader(Digits(images, labels), batch, shuffle=number == 0) for number, (images, labels) in enumerate(splits)
    )

    def phase(name: str, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        torch.manual_seed(seed)
        model = _network(WIDTHS[TEACHER if name == "teacher" else STUDENT], classes).to(device)
        teacher = kept["teacher"].eval() if name == "distilled" else None
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        seconds = []
        for _ in range(epochs):
            epoch_started = time.perf_counter()
            _train(model, teacher, optimizer, train, device)
            seconds.append(time.perf_counter() - epoch_started)
            accuracy = _accuracy(model, test, device)
        if name == "teacher":
            kept["teacher"] = model
        return {"seconds": time.perf_counter() - started, "epochs_s": seconds, "test_accuracy": accuracy}

    return {"phase": phase}


def _network(widths: tuple[int, ...], classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(49 * channels, classes))


def _train(
    model: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer, loader: DataLoader, device: str
) -> float:
    """One epoch; its mean loss, which the article prints."""
    model.train()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad():
                taught = F.softmax(teacher(images) / TEMPERATURE, 1)
            soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), taught, reduction="batchmean")
            loss = ALPHA * loss + (1 - ALPHA) * TEMPERATURE**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def _accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return correct / len(loader.dataset)
