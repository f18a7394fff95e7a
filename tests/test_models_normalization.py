"""Batch normalisation and ReLU as one layer: values, statistics and gradients of Flax's two, on one device and split."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kdjax.models._normalization import Activated
from kdjax.training import data_mesh

SHAPE = (8, 3, 5, 4)


class Flax(nn.Module):
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        norm = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype, name="norm")
        return nn.relu(norm(x))


class Ours(nn.Module):
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        return Activated(not train, axis_name=self.axis_name, momentum=0.9, dtype=self.dtype, name="norm")(x)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def variables():
    return {
        "params": {"norm": {"scale": draw(4, seed=1), "bias": draw(4, seed=2)}},
        "batch_stats": {"norm": {"mean": draw(4, seed=3), "var": 1 + draw(4, seed=4) ** 2}},
    }


def trained(model, params, x, cotangent):
    """Values, new statistics, and the gradients of params and inputs."""

    def forward(params, x):
        return model.apply(variables() | {"params": params}, x, train=True, mutable=["batch_stats"])

    values, back, changed = jax.vjp(forward, params, x, has_aux=True)
    return values, changed["batch_stats"], *back(cotangent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_statistics_and_gradients_are_those_of_flax(dtype):
    x, cotangent = (3 + 2 * draw(*SHAPE)).astype(dtype), draw(*SHAPE, seed=5).astype(dtype)
    ours, theirs = (
        jax.jit(partial(trained, kind(dtype=jnp.dtype(dtype))))(variables()["params"], x, cotangent)
        for kind in (Ours, Flax)
    )
    near = {"float32": 2e-5, "bfloat16": 2**-6}[dtype]
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        one, other = (np.asarray(array, np.float32) for array in (one, other))
        np.testing.assert_allclose(one, other, rtol=near, atol=near * np.abs(other).max())


def test_what_is_not_trained_is_flax_s_to_the_bit():
    x = 3 + 2 * draw(*SHAPE)
    starts = [kind().init(jax.random.key(0), x, train=train) for kind in (Ours, Flax) for train in (False, True)]
    for start in starts[1:]:
        chex.assert_trees_all_equal(start, starts[0])
    ours, theirs = (jax.jit(partial(kind().apply, train=False))(variables(), x) for kind in (Ours, Flax))
    np.testing.assert_array_equal(ours, theirs)
    assert 0 < (np.asarray(ours) == 0).mean() < 1


def test_gradients_are_the_slopes_also_the_second():
    with jax.enable_x64(True):
        x, given = (jnp.asarray(draw(2, 2, 3, 4, seed=seed), jnp.float64) for seed in (0, 5))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables()["params"])

        def value(params, x):
            out, _ = Ours(dtype=jnp.float64).apply(
                variables() | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (out * given).sum()

        check_grads(jax.jit(value), (params, x), order=2, modes=["rev"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_split_batch_has_the_statistics_and_gradients_of_the_whole(how):
    x, given = draw(*SHAPE), draw(*SHAPE, seed=5)
    params = variables()["params"]

    def loss(params, x, given, axis_name=None):
        out, changed = Ours(axis_name).apply(variables() | {"params": params}, x, train=True, mutable=["batch_stats"])
        value = jnp.mean(out * given)
        return (value if axis_name is None else jax.lax.pmean(value, axis_name)), changed["batch_stats"]

    slopes = partial(jax.grad, argnums=(0, 1), has_aux=True)
    (of_params, of_x), statistics = jax.jit(slopes(loss))(params, x, given)

    def part(params, x, given):
        (own, of_x), statistics = slopes(partial(loss, axis_name="data"))(params, x, given)
        return jax.lax.pmean(own, "data"), of_x, statistics

    if how == "shard_map":
        whole, split = PartitionSpec(), PartitionSpec("data")
        mapped = jax.shard_map(part, mesh=data_mesh(), in_specs=(whole, split, split), out_specs=(whole, split, whole))
        own, its_x, seen = jax.jit(mapped)(params, x, given)
    else:
        parts = (array.reshape(4, 2, *SHAPE[1:]) for array in (x, given))
        own, its_x, seen = jax.pmap(part, "data", in_axes=(None, 0, 0), out_axes=(None, 0, None))(params, *parts)
        its_x = its_x.reshape(SHAPE) / 4  # each device's own loss has been counted there
    chex.assert_trees_all_close(seen, statistics, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(own, of_params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(its_x, of_x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_scale": False}, "use_scale must be True in this layer; got False"),
        ({"axis_index_groups": [[0], [1]]}, "axis_index_groups must be None in this layer"),
        ({"use_running_average": None}, "use_running_average must be True or False; got None"),
    ],
)
def test_settings_that_the_layer_does_not_have_are_refused(settings, said):
    layer = Activated(**{"use_running_average": False} | settings)
    with pytest.raises(ValueError, match=said):
        layer.init(jax.random.key(0), draw(*SHAPE))
