"""Weights and a state with every kind of leaf, a step that moves them, and their bits: what tests of checkpoints share."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import TrainState, Weights

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.add_decayed_weights(1e-2), {"Dense_0": {"kernel": True, "bias": False}}),
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
)


def some_weights() -> Weights:
    noise = np.random.default_rng(0)
    params = {
        "Dense_0": {"kernel": jnp.asarray(noise.normal(size=(40, 50)), jnp.float32), "bias": jnp.zeros(50)},
        "half": jnp.asarray(noise.normal(size=7), jnp.bfloat16),
        "list": [jnp.int8(-3), jnp.asarray([True, False])],
        "odd": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
    }
    model_state = {"dropout": jax.random.key(3), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    return Weights(params, model_state | {"nothing": jnp.zeros((0, 4), jnp.bfloat16), "none": None})


def some_state() -> TrainState:
    params = {"Dense_0": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "bias": jnp.ones(4)}}
    return TrainState(jnp.int32(0), params, {"mean": jnp.zeros(4)}, OPTIMIZER.init(params), jax.random.key(0))


def update(state: TrainState) -> TrainState:
    """One step that draws from the state's key and moves every array of it."""

    def loss(params):
        inputs = jax.random.normal(jax.random.fold_in(state.rng, state.step), (8, 3))
        return jnp.mean((inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]) ** 2)

    value, gradients = jax.value_and_grad(loss)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, {"mean": state.model_state["mean"] + value}, opt_state, state.rng)


def bits(tree):
    """Leaves as bytes, so that NaN equals NaN and −0 differs from 0."""

    def of(leaf):
        numbers = np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        return str(leaf.dtype), leaf.shape, numbers.tobytes()

    return jax.tree.map(of, tree)


def spoil(checkpoint: Path) -> None:
    """Makes the largest file one byte shorter, as a disk that was full would."""
    largest = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
