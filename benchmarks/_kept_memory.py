"""One network's training step in a process that keeps memory or does not, for kept_memory.py."""

import resource
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from _work import random_batches

from kdjax import cross_entropy, init_state, make_train_step, models, weighted_sum
from kdjax.networks import from_linen
from kdjax.training import compiler_options, jit_init, jit_step, keep_memory

IMAGE = (32, 32, 3)
NETWORKS: dict[str, tuple[Any, str | None]] = {
    "WideResNet-16-2": (models.WideResNet(depth=16, width=2), "residual"),
    "ResNet-20": (models.ResNet(depth=20), "residual"),
    "VGG-8": (models.VGG(depth=8), None),
    "MobileNetV2": (models.MobileNetV2(), None),
    "ViT": (models.ViT(), None),
}
"""Each as it comes, and for which networks its compiler is set."""


def steps(name: str, batch: int, keep: bool) -> dict[str, Callable[[int], Any]]:
    """The step, and what the process has been given so far: how many pages, and how many MB at most at one time."""
    if keep and not keep_memory():
        raise RuntimeError("This C library is not glibc: there is nothing to compare.")
    model, compile_for = NETWORKS[name]
    init, apply = from_linen(model)
    (pair,) = random_batches(batch, image=IMAGE)[:1]
    images, labels = jax.device_put(pair)
    optimizer = optax.sgd(0.01, momentum=0.9)
    step = jit_step(make_train_step(apply, None, optimizer), compiler_options=compiler_options(compile_for))
    state = init_state(jit_init(init)(jax.random.key(0), images[:1]), optimizer, jax.random.key(0))
    objective = weighted_sum(labels=(1.0, cross_entropy))

    def run(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, None, objective, {"inputs": images, "labels": labels})
        return float(np.asarray(jax.block_until_ready((state, metrics))[1]["loss"]))

    def pages(_: int) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def most(_: int) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    return {"step": run, "pages": pages, "MB": most}
