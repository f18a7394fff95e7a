"""One process that trains one network, keeping memory or not, for kept_memory.py.

python benchmarks/_kept_memory.py NETWORK BATCH kept|"given back" prints milliseconds a step, the pages that a step was
given, the most MB that the process held, and the last loss.
"""

import json
import resource
import sys
from typing import Any

import jax
import optax
from _turns import milliseconds
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
SETTLING, TURNS, STEPS = 10, 5, 4
"""Steps before the clock runs; how often it runs, and over how many steps each time."""


def measured(name: str, batch: int) -> dict[str, Any]:
    model, compile_for = NETWORKS[name]
    init, apply = from_linen(model)
    images, labels = jax.device_put(random_batches(batch, 1, IMAGE)[0])
    optimizer = optax.sgd(0.01, momentum=0.9)
    step = jit_step(make_train_step(apply, None, optimizer), compiler_options=compiler_options(compile_for))
    state = init_state(jit_init(init)(jax.random.key(0), images[:1]), optimizer, jax.random.key(0))
    objective, loss = weighted_sum(labels=(1.0, cross_entropy)), 0.0

    def run(count: int) -> None:
        nonlocal state, loss
        for _ in range(count):
            state, metrics = step(state, None, objective, {"inputs": images, "labels": labels})
        loss = float(jax.block_until_ready((state, metrics))[1]["loss"])

    run(SETTLING)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = [milliseconds(run, STEPS) for _ in range(TURNS)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    pages = (after.ru_minflt - before) / (STEPS * TURNS)
    return {"ms": times, "pages": pages, "mb": after.ru_maxrss / 1000, "loss": loss}


if __name__ == "__main__":
    network, batch, way = sys.argv[1:]
    if way == "kept" and not keep_memory():
        sys.exit("This C library is not glibc: there is nothing to compare.")
    print(json.dumps(measured(network, int(batch))))
