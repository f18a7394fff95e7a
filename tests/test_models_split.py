"""Networks on a split batch: dropout's masks and one step of training are those of the whole batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments._networks import make_model
from kdjax import TrainState, cross_entropy, make_train_step, weighted_sum
from kdjax.models import Dropout, convolve
from kdjax.models._convolution import convolve_in_groups
from kdjax.networks import from_linen
from kdjax.training import data_mesh, jit_step, pmap_step, replicate, shard_map_step, split_batch

KEY = jax.random.key(0)


def test_dropout_keeps_the_stated_share_scales_it_and_gives_each_example_its_own_mask():
    ones = jnp.ones((64, 500))
    out = Dropout(0.25).apply({}, ones, train=True, rngs={"dropout": KEY})
    chex.assert_trees_all_close(jnp.unique(out), jnp.array([0.0, 4 / 3]), atol=1e-6)
    assert abs(float((out > 0).mean()) - 0.75) < 0.01
    assert len(np.unique(np.asarray(out), axis=0)) == 64
    chex.assert_trees_all_equal(Dropout(0.25).apply({}, ones, train=False), ones)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_an_examples_mask_depends_on_no_other_example_whatever_the_key(implementation):
    rngs = {"dropout": jax.random.key(0, impl=implementation)}
    whole, half = (Dropout(0.5).apply({}, jnp.ones((size, 64)), train=True, rngs=rngs) for size in (6, 3))
    chex.assert_trees_all_equal(whole[:3], half)

    def moved(inputs):
        return jax.vmap(lambda one: Dropout(0.5).apply({}, one[None], train=True, rngs=rngs)[0])(inputs)

    # Each alone, under vmap: all have the first one's place, and its mask.
    chex.assert_trees_all_equal(moved(jnp.ones((4, 64))), jnp.repeat(whole[:1], 4, axis=0))


@pytest.mark.parametrize("how", ["pmap", "shard_map", "vmap"])
def test_a_split_batch_draws_the_masks_of_the_whole(how):
    def drop(inputs, axis_name=None):
        return Dropout(0.5, axis_name).apply({}, inputs, train=True, rngs={"dropout": KEY})

    def split(inputs):
        return drop(inputs, "data")

    ones = jnp.ones((8, 20))
    if how == "shard_map":
        spec = PartitionSpec("data")
        parts = jax.shard_map(split, mesh=data_mesh(), in_specs=spec, out_specs=spec)(ones)
    else:
        parts = {"pmap": jax.pmap, "vmap": jax.vmap}[how](split, axis_name="data")(ones.reshape(4, 2, 20))
    np.testing.assert_array_equal(np.asarray(parts).reshape(8, 20), drop(ones))


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_one_step_of_a_normalised_network_is_the_same_on_four_devices(how, monkeypatch):
    monkeypatch.setattr(
        "kdjax.models._convolution.WIDE", 0
    )  # the hand-written gradient must be summed over devices too
    optimizer, inputs = optax.sgd(0.1), jax.random.normal(KEY, (8, 8, 8, 1))
    batch = {"inputs": inputs, "labels": jnp.arange(8)}
    objective = weighted_sum(labels=(1.0, cross_entropy))
    init, _ = from_linen(make_model("digits_teacher"))

    def fresh():
        weights = jax.jit(init)(KEY, inputs)
        return TrainState(jnp.zeros((), jnp.int32), *weights, optimizer.init(weights.params), jax.random.key(1))

    def step(axis_name):
        _, apply = from_linen(make_model("digits_teacher", axis_name=axis_name))
        return make_train_step(apply, None, optimizer, axis_name=axis_name)

    whole, _ = jit_step(step(None))(fresh(), None, objective, batch)
    if how == "pmap":
        parts, _ = pmap_step(step("data"))(fresh(), None, objective, split_batch(batch, 4))
    else:
        parts, _ = shard_map_step(step("data"), data_mesh())(fresh(), None, objective, batch)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(parts.model_state, whole.model_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["shard_map", "jit"])
def test_a_kernel_s_gradient_in_blocks_is_the_same_on_four_devices(how):
    inputs, kernel = jax.random.normal(KEY, (16, 4, 5, 4)), jax.random.normal(jax.random.key(1), (3, 3, 4, 2))

    def loss(kernel, inputs):
        return jnp.sum(convolve(inputs, kernel, "SAME", in_blocks=True) ** 2)

    gradient, mesh, (whole, split) = jax.grad(loss), data_mesh(), (PartitionSpec(), PartitionSpec("data"))
    expected = jax.jit(gradient)(kernel, inputs)
    if how == "jit":
        found = jax.jit(gradient)(replicate(kernel, mesh), jax.device_put(inputs, NamedSharding(mesh, split)))
    else:
        found = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(whole, split), out_specs=whole))(kernel, inputs)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("size", "stride", "groups"), [(1, 1, 1), (1, 1, 3), (3, 2, 6)])
def test_the_gradient_of_a_kernel_that_devices_share_is_that_of_the_whole_batch(size, stride, groups):
    inputs = jax.random.normal(KEY, (8, 5, 5, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 6 // groups, 6))

    def loss(kernel, inputs):
        found = convolve(inputs, kernel, "SAME") if groups == 1 else convolve_in_groups(inputs, kernel, stride, groups)
        return jnp.sum(jnp.sin(found))

    whole, spec = PartitionSpec(), PartitionSpec("data")
    split = jax.shard_map(
        lambda *both: jax.lax.psum(loss(*both), "data"), mesh=data_mesh(), in_specs=(whole, spec), out_specs=whole
    )
    found, expected = jax.jit(jax.grad(split))(kernel, inputs), jax.jit(jax.grad(loss))(kernel, inputs)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
