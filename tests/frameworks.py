"""One small network with normalisation and noise in Linen, NNX and Equinox, and what the tests of adapters share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax import Outputs
from kdjax.networks import from_equinox, from_linen, from_nnx

CLASSES = 5
INPUTS = jax.random.normal(jax.random.key(0), (16, 6, 6, 1))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(12)(x.reshape(x.shape[0], -1))
        embedding = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.3, deterministic=not train)(embedding)
        return nn.Dense(CLASSES)(x), {"embedding": embedding}


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(36, 12, rngs=rngs), nnx.Linear(12, CLASSES, rngs=rngs)])
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        embedding = nnx.relu(self.norm(self.layers[0](x.reshape(x.shape[0], -1))))
        return Outputs(self.layers[1](self.dropout(embedding)), {"embedding": embedding})


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, stride=2, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch", momentum=0.9)
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(16, CLASSES, key=second)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.conv(jnp.transpose(x, (2, 0, 1))), state)
        embedding = jax.nn.relu(x).ravel()
        return (self.head(self.dropout(embedding, key=key)), {"embedding": embedding}), state


def linen_student():
    init, apply = from_linen(LinenNet())
    return jax.jit(init)(jax.random.key(1), INPUTS), apply


def nnx_student():
    return from_nnx(NnxNet(nnx.Rngs(1)))


def equinox_student():
    return from_equinox(*eqx.nn.make_with_state(EquinoxNet)(jax.random.key(1)))


every_framework = pytest.mark.parametrize("make_student", [linen_student, nnx_student, equinox_student])


def differ(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return any(bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in pairs)


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
