"""What both sides do: article C's networks and numbers, the same weights and the same batches."""

import os
from collections.abc import Callable

import numpy as np

TEACHER, STUDENT = "compression_teacher", "compression_student"
WIDTHS = {TEACHER: (64, 256), STUDENT: (8, 16)}
LEARNING_RATE = 1e-4
TEMPERATURE = 7.0
ALPHA = 0.3
WAYS = {
    "eager": (False, False),
    "channels-last": (True, False),
    "compiled": (False, True),
    "compiled, channels-last": (True, True),
}
"""PyTorch's: (channels last, compiled)."""

Batches = list[tuple[np.ndarray, np.ndarray]]
Step = Callable[[int], float]
"""Makes so many updates, waits until they are done, and returns the last loss, or the mean of all."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_batches(size: int, count: int = 8, image: tuple[int, ...] = (28, 28, 1)) -> Batches:
    """Float32 images [size, *image] and labels [size]: the time of a step does not depend on what is in them."""
    draw = np.random.default_rng(0)
    return [
        (draw.normal(size=(size, *image)).astype(np.float32), draw.integers(0, 10, size).astype(np.int32))
        for _ in range(count)
    ]
