"""A network of two stages and a head, its weights and batches, and a phase: what the tests of plans of phases share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import Outputs, Weights, cross_entropy, init_state, weighted_sum
from kdjax.training.phases import Phase, enter

PARTS = ("stage1", "stage2", "logits")
LABELS = weighted_sum(labels=(1.0, cross_entropy))
ONE = Phase("a", 2, LABELS, optax.sgd(0.1))


def network(params, model_state, inputs, *, train, rng=None):
    """Dense stages with a running mean each, as BatchNorm has, and noise while training: small, and quickly compiled."""
    x, features, means = inputs, {}, {}
    for name in ("stage1", "stage2"):
        x = features[name] = jnp.tanh(x @ params[name]["kernel"])
        means[name] = 0.9 * model_state[name] + 0.1 * x.mean(axis=0)
        if train:
            x = x + 0.1 * jax.random.normal(jax.random.fold_in(rng, len(means)), x.shape)
    return Outputs(x @ params["logits"]["kernel"], features), means if train else model_state


@functools.cache
def weights(seed):
    noise = np.random.default_rng(seed)
    shapes = dict(zip(PARTS, ((4, 6), (6, 6), (6, 3)), strict=True))
    params = {name: {"kernel": noise.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    return Weights(params, {name: np.zeros(6, np.float32) for name in ("stage1", "stage2")})


def batch(number):
    noise = np.random.default_rng(1000 + number)
    return {"inputs": noise.normal(size=(8, 4)).astype(np.float32), "labels": noise.integers(0, 3, 8).astype(np.int32)}


def start(phases, seed=0):
    return enter(phases, 0, init_state(weights(seed), phases[0].optimizer, jax.random.key(5 + seed)))
