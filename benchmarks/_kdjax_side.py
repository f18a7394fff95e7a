"""kdjax's three steps, made as the experiments make them: `make_train_step` under `jit_step`, one step a call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, TEMPERATURE, Batches, Step

from kdjax import Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.models import make_model
from kdjax.networks import from_linen
from kdjax.training import jit_step

LABELS_ONLY = weighted_sum(labels=(1.0, cross_entropy))
WITH_TEACHER = weighted_sum(
    labels=(ALPHA, cross_entropy), soft=(1.0 - ALPHA, on_logits(soft_target_kl, temperature=TEMPERATURE))
)


def initial_params(name: str) -> dict:
    """Plain NumPy arrays, from which both sides start."""
    init, _ = from_linen(make_model(name))
    seed = {TEACHER: 0, STUDENT: 1}[name]
    return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(seed), jnp.zeros((1, 28, 28, 1))).params)


def steps(params: dict[str, dict], batches: Batches) -> dict[str, Step]:
    """The three pieces of work by name. The arrays lie on the device before the clock runs."""
    placed = jax.device_put([{"inputs": images, "labels": labels} for images, labels in batches])
    frozen = Weights(jax.device_put(params[TEACHER]), {})
    return {
        "teacher": _step(params, TEACHER, None, placed),
        "distillation": _step(params, STUDENT, frozen, placed),
        "student": _step(params, STUDENT, None, placed),
    }


def _step(params: dict[str, dict], name: str, teacher: Weights | None, batches: list[dict]) -> Step:
    _, apply = from_linen(make_model(name))
    teacher_apply = None if teacher is None else from_linen(make_model(TEACHER))[1]
    optimizer = optax.adam(LEARNING_RATE)
    step = jit_step(make_train_step(apply, teacher_apply, optimizer))
    objective = LABELS_ONLY if teacher is None else WITH_TEACHER
    # Copies: the step gives its state's memory away.
    state = init_state(Weights(jax.tree.map(jnp.array, params[name]), {}), optimizer, jax.random.key(0))
    jax.block_until_ready((state, teacher, batches))

    def run(count: int) -> float:
        nonlocal state
        for number in range(count):
            state, metrics = step(state, teacher, objective, batches[number % len(batches)])
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run
