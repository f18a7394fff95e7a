"""Noise of adapted networks: a function of the key, each device's own where the axis is named, each stream's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from frameworks import INPUTS, differ, every_framework, same

from kdjax.networks import from_equinox, from_linen, from_nnx


@every_framework
def test_noise_is_a_function_of_the_key_and_only_while_training(make_student):
    weights, apply = make_student()
    apply = jax.jit(apply, static_argnames="train")
    first, other = jax.random.key(3), jax.random.key(4)
    same(apply(*weights, INPUTS, train=True, rng=first), apply(*weights, INPUTS, train=True, rng=first))
    assert differ(
        apply(*weights, INPUTS, train=True, rng=first)[0].logits,
        apply(*weights, INPUTS, train=True, rng=other)[0].logits,
    )
    quiet = apply(*weights, INPUTS, train=False)
    same(quiet, apply(*weights, INPUTS, train=False, rng=first))
    same(quiet[1], weights.model_state)


class LinenNoise(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(x)


class EquinoxNoise(eqx.Module):
    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key):
        return self.dropout(x, key=key)


class NnxNoise(nnx.Module):
    """Two layers with a stream each, and two more stacked into one, whose stream's keys have shape [2]."""

    def __init__(self):
        stack = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs)))
        self.stacked = stack(nnx.Rngs(0))
        self.first, self.second = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        stacked = nnx.vmap(lambda dropout, x: dropout(x), in_axes=(0, None))(self.stacked, x)
        return stacked.sum(axis=0), {"single": self.first(x) + self.second(x)}


def noise(framework, axis_name):
    if framework == "linen":
        apply = from_linen(LinenNoise(), axis_name=axis_name)[1]
    elif framework == "nnx":
        apply = from_nnx(NnxNoise(), axis_name=axis_name)[1]
    else:
        apply = from_equinox(EquinoxNoise(eqx.nn.Dropout(0.5)), axis_name=axis_name)[1]
    model_state = () if framework == "equinox" else {}
    params = EquinoxNoise(eqx.nn.Dropout(None)) if framework == "equinox" else {}
    return lambda x: apply(params, model_state, x, train=True, rng=jax.random.key(5))[0].logits


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_devices_draw_their_own_noise_where_the_axis_is_named(framework):
    ones = jnp.ones((2, 4, 32))
    first, second = jax.jit(jax.vmap(noise(framework, None)))(ones)
    same(first, second)
    first, second = jax.jit(jax.vmap(noise(framework, "data"), axis_name="data"))(ones)
    assert differ(first, second)
    if framework == "equinox":  # keyed per example: two devices draw what one would
        same(np.concatenate([first, second]), np.asarray(jax.jit(noise(framework, None))(ones.reshape(8, 32))))


def test_nnx_streams_of_one_model_draw_differently():
    apply = from_nnx(NnxNoise())[1]
    outputs, _ = apply({}, {}, jnp.ones((4, 64)), train=True, rng=jax.random.PRNGKey(0))  # raw keys do as well
    # 2.0: dropped by one of the two layers and kept by the other
    assert set(np.unique(outputs.logits)) == {0.0, 2.0, 4.0}
    assert set(np.unique(outputs.features["single"])) == {0.0, 2.0, 4.0}


def test_a_linen_stream_of_any_name_draws_its_own_noise():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            shapes = {"one": x.shape, "other": x.shape}
            kept = [jax.random.bernoulli(self.make_rng(name), 0.5, shape) for name, shape in shapes.items()]
            return nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x)), dict(zip(shapes, kept, strict=True))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = x.reshape(len(x), -1)
            return Dropped()(x, train) if train else x

    _, apply = from_linen(Network())
    said = [apply({}, {}, INPUTS, train=True, rng=jax.random.key(key))[0] for key in (0, 0, 1)]
    same(said[0], said[1])
    for name in ("one", "other"):
        assert differ(said[0].features[name], said[2].features[name])
    draws = [np.asarray(said[0].features[name]) for name in ("one", "other")] + [np.asarray(said[0].logits) > 0]
    assert all((draws[a] != draws[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))
    # The dropout's own stream is what it was when it was the only one.
    flat = INPUTS.reshape(len(INPUTS), -1)
    alone = LinenNoise().apply({}, flat, True, rngs={"dropout": jax.random.key(0)})
    same(from_linen(LinenNoise())[1]({}, {}, flat, train=True, rng=jax.random.key(0))[0].logits, alone)
