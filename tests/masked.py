"""A student and teacher that see each example, or token, for itself: what tests of what a mask leaves out share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_feature, on_logits, weighted_sum
from kdjax.losses import hint, soft_target_kl
from kdjax.training import jit_step

DIM, TIME, CLASSES, EXAMPLES = 4, 3, 5, 8
OPTIMIZER = optax.sgd(0.5, momentum=0.9)


def network(params, model_state, inputs, *, train, rng=None):
    """Each example, or token, for itself: [batch, dim] or [batch, time, dim]."""
    hidden = jnp.tanh(inputs @ params["body"])
    return Outputs(hidden @ params["head"], {"hidden": hidden}), model_state


def weights(seed=0):
    body, head = np.random.default_rng(seed).normal(size=(2, DIM, max(DIM, CLASSES))).astype(np.float32)
    return Weights({"body": jnp.asarray(body[:, :DIM]), "head": jnp.asarray(head[:, :CLASSES])}, {})


STUDENT, TEACHER = weights(0), weights(1)


def batch(*positions, examples=EXAMPLES, seed=2):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, *positions, DIM)).astype(np.float32)
    return {"inputs": inputs, "labels": rng.integers(0, CLASSES, (examples, *positions)).astype(np.int32)}


GOAL = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=2.0)))
WITH_FEATURES = weighted_sum(labels=(0.3, cross_entropy), hint=(0.7, on_feature(hint, "hidden")))


def fresh(seed=0):
    return init_state(weights(seed), OPTIMIZER, jax.random.key(0))


@functools.cache
def step(**settings):
    return jit_step(make_train_step(network, network, OPTIMIZER, **settings))


def numbers(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)


def same(first, second):
    """But for what is counted, which a step tells only where something is left out."""

    def told(result):
        state, metrics = numbers(result)
        if isinstance(metrics, dict):
            metrics = {name: value for name, value in metrics.items() if not name.endswith(" count")}
        return state, metrics

    chex.assert_trees_all_close(told(first), told(second), rtol=2e-5, atol=1e-6)


def filled(arrays, mask, rubbish):
    """The arrays with rubbish, such as NaN, where the mask is 0."""
    inputs = np.where(mask.reshape(*mask.shape, *[1] * (arrays["inputs"].ndim - mask.ndim)), arrays["inputs"], rubbish)
    labels = np.where(mask.reshape(*mask.shape, *[1] * (arrays["labels"].ndim - mask.ndim)), arrays["labels"], -7)
    return {"inputs": inputs.astype(np.float32), "labels": labels.astype(np.int32), "mask": mask}


MASK = np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)  # of four devices one has nothing that counts


def halves(rubbish=np.nan):
    arrays = batch()
    alone = {name: array[MASK] for name, array in arrays.items()}
    return filled(arrays, MASK, rubbish), alone
