"""A small network that gives its head beside its hidden states, and steps of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import (
    Outputs,
    Shared,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    on_outputs,
    weighted_sum,
)
from kdjax.losses import linear_cross_entropy, linear_soft_target_kl, soft_target_kl
from kdjax.training import data_mesh, jit_step, pmap_step, shard_batch, shard_map_step, split_batch

EXAMPLES, TIME, WORDS = 8, 3, 40
OPTIMIZER = optax.sgd(0.5)


def weights(seed, dim):
    body, table = (jax.random.normal(jax.random.key(seed + part), (dim, WORDS)) for part in (0, 10))
    return Weights({"table": table.T / 2, "head": body / 2}, {})


def network(params, model_state, inputs, *, train, rng=None):
    hidden = jnp.tanh(params["table"][inputs])
    return Outputs(hidden @ params["head"], {"hidden": hidden, "head": Shared(params["head"])}), model_state


# As many dims as examples: a head [8, 40] must not be taken for something of eight examples.
STUDENT, TEACHER = weights(0, EXAMPLES), weights(1, 12)
HEADS = ("student.hidden", "student.head", "teacher.hidden", "teacher.head")
LINEAR = weighted_sum(
    labels=(0.3, on_outputs(linear_cross_entropy, "student.hidden", "student.head", chunk=16)),
    soft=(0.7, on_outputs(linear_soft_target_kl, *HEADS, temperature=2.0, chunk=16)),
)
PLAIN = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=2.0)))


def batch(examples=EXAMPLES, masked=True):
    rng = np.random.default_rng(3)
    arrays = {
        "inputs": rng.integers(0, WORDS, (examples, TIME)).astype(np.int32),
        "labels": rng.integers(0, WORDS, (examples, TIME)).astype(np.int32),
    }
    return arrays | ({"mask": rng.random((examples, TIME)) < 0.6} if masked else {})


def fresh():
    return init_state(STUDENT, OPTIMIZER, jax.random.key(0))


def step(**settings):
    return make_train_step(network, network, OPTIMIZER, **settings)


WAYS = ("jit", "sharded", "pmap", "shard_map")


def step_by(way, objective):
    """What one step makes of the batch, on one device or on all."""
    mesh = data_mesh()
    if way in ("jit", "sharded"):
        arrays = batch() if way == "jit" else shard_batch(batch(), mesh)
        return jit_step(step())(fresh(), TEACHER, objective, arrays)
    if way == "pmap":
        return pmap_step(step(axis_name="data"))(fresh(), TEACHER, objective, split_batch(batch(), mesh.size))
    return shard_map_step(step(axis_name="data"), mesh)(fresh(), TEACHER, objective, batch())


def same(found, wanted):
    (state, metrics), (other, others) = found, wanted
    for one, its in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(one, its, rtol=1e-4, atol=1e-6)
    for name in ("loss", "labels", "soft"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4)


@functools.cache
def of_logits():
    """What a step on logits gives."""
    return jit_step(step())(fresh(), TEACHER, PLAIN, batch())


def programs(objective, **settings):
    run = shard_map_step(step(**settings), data_mesh()) if settings else jit_step(step())
    return jax.jit(run).lower(fresh(), TEACHER, objective, batch()).compile().as_text()
