"""Distillation steps of all sizes, as they are timed and profiled: a pair of networks, some batches, one compiled step."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, TEMPERATURE, Batches, Step

from kdjax import (
    Apply,
    Objective,
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    weighted_sum,
)
from kdjax.losses import soft_target_kl
from kdjax.networks import from_linen
from kdjax.training import jit_init, jit_step

IMAGE = np.zeros((1, 28, 28, 1), np.float32)
PAIRS = {"teacher": (TEACHER, None), "distillation": (STUDENT, TEACHER), "student": (STUDENT, None)}
"""By piece of work: the network that learns, and the one that teaches it."""


def with_teacher(alpha: float, temperature: float) -> Objective:
    soft = on_logits(soft_target_kl, temperature=temperature)
    return weighted_sum(labels=(alpha, cross_entropy), soft=(1.0 - alpha, soft))


LABELS_ONLY, WITH_TEACHER = weighted_sum(labels=(1.0, cross_entropy)), with_teacher(ALPHA, TEMPERATURE)


class Case(NamedTuple):
    """A compiled step and what it is called with; it takes its state's memory."""

    step: Any
    state: Any
    teacher: Weights | None
    objective: Any
    batches: list[dict]

    def compiled(self) -> jax.stages.Compiled:
        return self.step.lower(self.state, self.teacher, self.objective, self.batches[0]).compile()

    def runner(self) -> Step:
        """The bare step, again and again, with no loop of training around it: that is what is timed."""
        step, state, teacher, objective, batches = self

        def run(count: int) -> float:
            nonlocal state
            for number in range(count):
                state, metrics = step(state, teacher, objective, batches[number % len(batches)])
            jax.block_until_ready((state, metrics))
            return float(np.mean(metrics["loss"]))

        return run


def make(
    student: Any,
    teacher: Any | None,
    batches: Batches,
    *,
    cached: bool = False,
    params: tuple[Any, Any] | None = None,
    compiled: Callable[[Any], Any] = jit_step,
    axis_name: str | None = None,
) -> Case:
    """The step of `student` with `teacher`, two Linen networks, or of the student alone.

    Both have the `params` given, or are untrained: the time of a step does not depend on what they know. With `cached` the
    teacher's logits come with the batch, and the step does not run it. All arrays lie on the device.
    """
    given = params or (None, None)
    weights, apply = _ready(student, 1, given[0])
    taught, teacher_apply = (None, None) if teacher is None or cached else _ready(teacher, 0, given[1])
    optimizer = optax.adam(LEARNING_RATE)
    state = init_state(weights, optimizer, jax.random.key(0))
    step = compiled(make_train_step(apply, teacher_apply, optimizer, axis_name=axis_name))
    objective = LABELS_ONLY if teacher is None else WITH_TEACHER
    return Case(step, *jax.block_until_ready((state, taught)), objective, placed(batches, cached=cached))


def placed(batches: Batches, *, cached: bool = False) -> list[dict]:
    """On the device; with `cached`, beside some teacher's logits."""
    made = [{"inputs": images, "labels": labels} for images, labels in batches]
    if cached:
        made = [batch | {"teacher": Outputs(jnp.zeros((len(batch["labels"]), 10)), {})} for batch in made]
    return jax.block_until_ready(jax.device_put(made))


@cache
def network(module: Any) -> tuple[Callable[..., Weights], Apply]:
    """A Linen network's functions; made once, so that the first is compiled once."""
    init, apply = from_linen(module)
    return jit_init(init), apply


def _ready(module: Any, seed: int, params: Any) -> tuple[Weights, Apply]:
    init, apply = network(module)
    weights = init(jax.random.key(seed), IMAGE) if params is None else Weights(params, {})
    return jax.device_put(weights), apply
