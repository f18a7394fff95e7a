"""kdjax's distillation step of the two wide residual networks, as `make_train_step` gives it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _work import Batches, Step
from _wrn_work import (
    ALPHA,
    BFLOAT16,
    CHUNK,
    CLASSES,
    DECAY,
    FLOAT32,
    IMAGE,
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

from kdjax import Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.models import make_model
from kdjax.networks import from_linen

MATMUL_PRECISION = {FLOAT32: "float32", TF32: "tensorfloat32", BFLOAT16: "default"}


def initial_weights(batch: np.ndarray) -> dict[str, Weights]:
    """Plain NumPy arrays, from which both sides start. The teacher's statistics are the batch's, as if it were trained."""
    weights = {}
    for seed, name in enumerate((TEACHER, STUDENT)):
        init, apply = from_linen(make_model(name, classes=CLASSES))
        fresh = jax.jit(init)(jax.random.key(seed), jnp.zeros((1, *IMAGE)))
        if name == TEACHER:
            _, moved = jax.jit(partial(apply, train=True))(*fresh, batch)
            seen = jax.tree.map(lambda after, before: (after - 0.9 * before) / 0.1, moved, fresh.model_state)
            fresh = Weights(fresh.params, seen)
        weights[name] = jax.tree.map(np.asarray, fresh)
    return weights


def steps(weights: dict[str, tuple], batches: Batches, size: int, way: Way) -> dict[str, Step]:
    """The distillation step, and a product of two square matrices of `size` rows."""
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION[way.precision])
    dtype = jnp.bfloat16 if way.precision == BFLOAT16 else jnp.float32
    return {STEP: _distillation(weights, batches, dtype, way.scanned), PRODUCT: _product(size, dtype)}


def _distillation(weights: dict[str, tuple], batches: Batches, dtype: type, scanned: bool) -> Step:
    applies = {name: from_linen(make_model(name, classes=CLASSES, dtype=dtype))[1] for name in (TEACHER, STUDENT)}
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    )
    objective = weighted_sum(
        labels=(ALPHA, cross_entropy), soft=(1.0 - ALPHA, on_logits(soft_target_kl, temperature=TEMPERATURE))
    )
    step = make_train_step(applies[STUDENT], applies[TEACHER], optimizer)
    teacher = jax.device_put(Weights(*weights[TEACHER]))
    # Copies: the step gives its state's memory away.
    state = init_state(Weights(*jax.tree.map(jnp.array, tuple(weights[STUDENT]))), optimizer, jax.random.key(0))
    placed = jax.device_put([{"inputs": images, "labels": labels} for images, labels in batches])

    @partial(jax.jit, donate_argnums=0)
    def one(state, teacher, batch):
        state, metrics = step(state, teacher, objective, batch)
        return state, metrics["loss"]

    @partial(jax.jit, donate_argnums=0)
    def many(state, teacher, stacked):
        state, losses = jax.lax.scan(lambda state, batch: one(state, teacher, batch), state, stacked)
        return state, losses[-1]

    if scanned:
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *(placed * CHUNK)[:CHUNK])
        chunk = many.lower(state, teacher, stacked).compile()
    jax.block_until_ready((state, teacher, placed))

    def run(count: int) -> float:
        nonlocal state
        done = 0
        if scanned:
            for _ in range(count // CHUNK):
                state, loss = chunk(state, teacher, stacked)
                done += CHUNK
        for number in range(done, count):
            state, loss = one(state, teacher, placed[number % len(placed)])
        jax.block_until_ready(state)
        return float(loss)

    return run


def _product(size: int, dtype: type) -> Step:
    matrix = jnp.asarray(square(size), dtype)
    multiply = jax.jit(jnp.matmul)

    def run(count: int) -> float:
        for _ in range(count):
            result = multiply(matrix, matrix)
        return float(result[0, 0])

    return run
