"""What a step must cost at least: its floating-point operations, by arithmetic, over what the machine reaches at best.

Only convolutions and matrix products are counted, a multiplication and an addition as two; all else is small beside them.
"""

import time
from collections.abc import Sequence
from statistics import median

import jax
import jax.numpy as jnp

SIDE, CLASSES, TAPS = 28, 10, 9


def forward_flops(widths: Sequence[int], batch: int) -> list[int]:
    """Of each layer of a CNN without hidden layer on 28 × 28 × 1: 3 × 3 convolutions, halved after each, then the logits."""
    layers, channels, side = [], 1, SIDE
    for width in widths:
        layers.append(2 * batch * side * side * TAPS * channels * width)
        channels, side = width, side // 2
    return [*layers, 2 * batch * side * side * channels * CLASSES]


def update_flops(widths: Sequence[int], batch: int) -> int:
    """Forwards and backwards: each layer three times, but nobody asks for the images' gradient."""
    layers = forward_flops(widths, batch)
    return 3 * sum(layers) - layers[0]


def mlp_update_flops(hidden: int, batch: int) -> int:
    """The same of one hidden layer on the flattened images."""
    first, second = 2 * batch * SIDE * SIDE * hidden, 2 * batch * hidden * CLASSES
    return 2 * first + 3 * second


def distillation_flops(student: Sequence[int], teacher: Sequence[int] | None, batch: int) -> int:
    """The student's update and the teacher's forward pass, where it is run."""
    return update_flops(student, batch) + (0 if teacher is None else sum(forward_flops(teacher, batch)))


class Peak:
    """The rate of a large square matrix product, in FLOP/s, measured several times in a run: the best median counts.

    At JAX's default precision, which for float32 is TF32 on recent NVIDIA GPUs.
    """

    def __init__(self, dtype: jnp.dtype = jnp.float32, size: int | None = None) -> None:
        self.size = size or (2048 if jax.default_backend() == "cpu" else 8192)
        keys = jax.random.split(jax.random.key(0))
        self.factors = [jax.random.normal(key, (self.size, self.size), dtype) for key in keys]
        self.product = jax.jit(jnp.matmul).lower(*self.factors).compile()
        self.rates: list[float] = []

    def measure(self, products: int = 5) -> None:
        jax.block_until_ready(self.product(*self.factors))
        rates = []
        for _ in range(products):
            started = time.perf_counter()
            jax.block_until_ready(self.product(*self.factors))
            rates.append(2 * self.size**3 / (time.perf_counter() - started))
        self.rates.append(median(rates))

    @property
    def rate(self) -> float:
        return max(self.rates)
