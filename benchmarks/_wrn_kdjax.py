"""kdjax's distillation step of the two wide residual networks, as `make_epoch` makes many of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _cases import with_teacher
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

from experiments._networks import make_model
from kdjax import TrainState, Weights, init_state, make_train_step
from kdjax.networks import from_linen
from kdjax.training import compiler_options, jit_init, make_epoch

MATMUL_PRECISION = {FLOAT32: "float32", TF32: "tensorfloat32", BFLOAT16: "default"}


def initial_weights(batch: np.ndarray) -> dict[str, Weights]:
    """Plain NumPy arrays, from which both sides start. The teacher's statistics are the batch's, as if it were trained."""
    weights = {}
    for seed, name in enumerate((TEACHER, STUDENT)):
        init, apply = from_linen(make_model(name, classes=CLASSES))
        fresh = jit_init(init)(jax.random.key(seed), jnp.zeros((1, *IMAGE)))
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
    objective = with_teacher(ALPHA, TEMPERATURE)
    step = make_train_step(applies[STUDENT], applies[TEACHER], optimizer)
    options = compiler_options("residual")
    epoch = make_epoch(step, steps_per_call=CHUNK if scanned else 1, compiler_options=options)
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    data = jax.device_put({"inputs": images, "labels": labels})
    teacher = jax.device_put(Weights(*weights[TEACHER]))
    in_turn = np.arange(len(labels)).reshape(len(batches), -1)

    def fresh() -> TrainState:
        return init_state(Weights(*weights[STUDENT]), optimizer, jax.random.key(0))

    def go_on(state: TrainState, count: int) -> tuple[TrainState, dict]:
        return epoch(state, teacher, objective, data, in_turn[np.arange(count) % len(batches)])

    if scanned:
        go_on(fresh(), CHUNK)  # compiles the program of many steps, before the clock runs
    state = jax.block_until_ready((fresh(), teacher, data))[0]

    def run(count: int) -> float:
        nonlocal state
        state, means = go_on(state, count)
        jax.block_until_ready(state)
        return means["loss"]

    return run


def _product(size: int, dtype: type) -> Step:
    matrix = jnp.asarray(square(size), dtype)
    multiply = jax.jit(jnp.matmul)

    def run(count: int) -> float:
        for _ in range(count):
            result = multiply(matrix, matrix)
        return float(result[0, 0])

    return run
