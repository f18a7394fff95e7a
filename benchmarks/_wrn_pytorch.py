"""The same distillation step in PyTorch, in each of the ways that a PyTorch user would try to make it fast."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from _work import Batches, Step, cores
from _wrn_work import (
    ALPHA,
    BFLOAT16,
    CLASSES,
    DECAY,
    FLOAT32,
    LEARNING_RATE,
    MOMENTUM,
    PRODUCT,
    STEP,
    STUDENT,
    TEACHER,
    TEMPERATURE,
    TF32,
    Way,
    square,
)
from torch import nn


class Block(nn.Module):
    """Twice normalisation, ReLU and convolution, added to the inputs."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = channels != width or stride != 1
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(inputs))
        beside = inputs if self.shortcut is None else self.shortcut(x)
        return beside + self.conv2(F.relu(self.norm2(self.conv1(x))))


class WideResNet(nn.Module):
    """The networks of kdjax.models, by the same names of layers."""

    def __init__(self, name: str, classes: int = CLASSES) -> None:
        super().__init__()
        _, depth, width = name.split("_")
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        self.blocks = nn.ModuleDict()
        for stage in range(3):
            for number in range((int(depth) - 4) // 6):
                wide = 16 * 2**stage * int(width)
                stride = 2 if stage > 0 and number == 0 else 1
                self.blocks[f"stage{stage + 1}_block{number + 1}"] = Block(channels, wide, stride)
                channels = wide
        self.norm = nn.BatchNorm2d(channels)
        self.logits = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and features by name."""
        x, features = self.stem(images), {}
        for name, block in self.blocks.items():
            x = features[name.split("_")[0]] = block(x)
        x = features["embedding"] = F.relu(self.norm(x)).mean((2, 3))
        return self.logits(x), features


def steps(weights: dict[str, tuple], batches: Batches, size: int, way: Way) -> dict[str, Step]:
    """The distillation step, and a product of two square matrices of `size` rows."""
    torch.set_num_threads(cores())
    device = "cpu" if way.precision == FLOAT32 else "cuda"
    if way.precision == TF32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return {STEP: _distillation(weights, batches, way, device), PRODUCT: _product(size, way.precision, device)}


def _distillation(weights: dict[str, tuple], batches: Batches, way: Way, device: str) -> Step:
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    placed = [
        (
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, memory_format=layout),
            torch.from_numpy(labels).long().to(device),
        )
        for images, labels in batches
    ]
    teacher, student = (
        filled(WideResNet(name), *weights[name]).to(device, memory_format=layout) for name in (TEACHER, STUDENT)
    )
    teacher.eval().requires_grad_(False)
    half = way.precision == BFLOAT16

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            logits, _ = student(images)
            with torch.no_grad():
                taught, _ = teacher(images)
        logits, taught = logits.float(), taught.float()
        hard = F.cross_entropy(logits, labels)
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1), F.softmax(taught / TEMPERATURE, 1), reduction="batchmean"
        )
        return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft

    optimizer = torch.optim.SGD(
        student.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, nesterov=True, fused=True
    )
    if way.compiled is not None:
        loss_of = torch.compile(loss_of, fullgraph=True, mode=way.compiled)

    def run(count: int) -> float:
        for number in range(count):
            optimizer.zero_grad()
            if way.compiled is not None:
                torch.compiler.cudagraph_mark_step_begin()
            loss = loss_of(*placed[number % len(placed)])
            loss.backward()
            optimizer.step()
        return float(loss.detach())  # waits for the device

    return run


def filled(model: WideResNet, params: dict, model_state: dict) -> WideResNet:
    """With kdjax's weights and statistics, kernels moved from channels last to channels first."""
    statistics = model_state["batch_stats"]

    def fill(layer: nn.Module, given: dict, seen: dict) -> None:
        for name, part in given.items():
            inner = layer.blocks[name] if name.startswith("stage") else getattr(layer, name)
            if isinstance(inner, Block):
                fill(inner, part, seen[name])
            elif isinstance(inner, nn.BatchNorm2d):
                copy = {"weight": part["scale"], "bias": part["bias"]}
                copy |= {"running_mean": seen[name]["mean"], "running_var": seen[name]["var"]}
                _copy(inner, copy)
            else:
                kernel = part["kernel"]
                moved = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
                _copy(inner, {"weight": moved} | {name: part[name] for name in part if name == "bias"})

    fill(model, params, statistics)
    return model


def _copy(layer: nn.Module, arrays: dict) -> None:
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(layer, name).copy_(torch.from_numpy(array.copy()))


def _product(size: int, precision: str, device: str) -> Step:
    matrix = torch.from_numpy(square(size)).to(device, torch.bfloat16 if precision == BFLOAT16 else torch.float32)

    def run(count: int) -> float:
        for _ in range(count):
            result = matrix @ matrix
        return float(result[0, 0])

    return run
