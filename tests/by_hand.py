"""Connectors made and run on random features, and their layers position by position in NumPy."""

import jax
import numpy as np

from kdjax import Outputs, Weights
from kdjax.connectors import Seen


def outputs(seed, **shapes):
    """Random features of these shapes, after a ReLU's manner, and logits of three classes."""
    keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    features = {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    return Outputs(jax.random.normal(keys[0], (next(iter(shapes.values()))[0], 3)), features)


def made(connector, own, others, seed=0):
    """Weights made from shapes alone, then moved, so that no bias is 0 and no scale 1."""
    shapes = jax.eval_shape(lambda one, other: (one, other), own, others)
    weights = jax.jit(lambda key: connector.init(key, *shapes))(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(weights.params)
    random = np.random.default_rng(seed)
    moved = [leaf + np.float32(0.3 * random.normal(size=leaf.shape)) for leaf in map(np.asarray, leaves)]
    return Weights(jax.tree.unflatten(structure, moved), weights.model_state)


def run(connector, weights, own, others, *, train=True, batch=None):
    @jax.jit
    def apply(weights, own, others, batch, rng):
        return connector.apply(*weights, Seen(own, others, batch, train, rng))

    result = apply(weights, own, others, batch or {}, jax.random.key(3))
    return jax.tree.map(lambda array: np.asarray(array, np.float64), result)


def by_hand(layer, x, *, state=None, strides=(1, 1), same=False):
    """One layer, position by position: product or convolution, then the batch's statistics, or the state's, or a bias."""
    layer = {name: np.asarray(value, np.float64) for name, value in layer.items()}
    x, kernel = np.asarray(x, np.float64), layer["kernel"]
    if kernel.ndim == 4:
        if same:
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        high, wide = kernel.shape[:2]
        rows = range(0, x.shape[1] - high + 1, strides[0])
        columns = range(0, x.shape[2] - wide + 1, strides[1])
        x = np.stack(
            [np.stack([np.tensordot(x[:, r : r + high, c : c + wide], kernel, 3) for c in columns], 1) for r in rows],
            1,
        )
    else:
        x = x @ kernel
    if "scale" in layer:
        flat = x.reshape(-1, x.shape[-1])
        mean, variance = (flat.mean(0), flat.var(0)) if state is None else (state["mean"], state["variance"])
        x = (x - mean) / np.sqrt(np.asarray(variance) + 1e-5) * layer["scale"]
    return x + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
