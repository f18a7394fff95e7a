"""Convolution, pooling and whole CNNs as loops over NumPy, and images to try them on."""

import jax
import jax.numpy as jnp
import numpy as np


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def slow_convolution(inputs, kernel, padding):
    inputs, kernel = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    if padding == "SAME":
        inputs = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width = inputs.shape[0], inputs.shape[1] - 2, inputs.shape[2] - 2
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for n, y, x in np.ndindex(batch, height, width):
        out[n, y, x] = np.einsum("ijc,ijco->o", inputs[n, y : y + 3, x : x + 3], kernel)
    return out


def slow_pool(inputs):
    batch, height, width, channels = inputs.shape
    out = np.zeros((batch, height // 2, width // 2, channels))
    for n, y, x in np.ndindex(batch, height // 2, width // 2):
        out[n, y, x] = inputs[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max((0, 1))
    return out


def slow_cnn(model, variables, x):
    """In the articles' order: convolution, bias or normalisation, ReLU, pooling."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for number in range(1, len(model.widths) + 1):
        stage = params[f"stage{number}"]
        x = slow_convolution(x, stage["kernel"], model.padding)
        if model.batch_norm:
            seen = variables["batch_stats"][f"stage{number}"]["norm"]
            mean, variance = (np.asarray(seen[name], np.float64) for name in ("mean", "var"))
            x = (x - mean) / np.sqrt(variance + 1e-5) * stage["norm"]["scale"] + stage["norm"]["bias"]
        else:
            x = x + stage["bias"]
        x = slow_pool(np.maximum(x, 0))
    x = x.reshape(len(x), -1)
    for name in ("hidden", "logits"):
        if name in params:
            x = x @ params[name]["kernel"] + params[name]["bias"]
            x = np.maximum(x, 0) if name == "hidden" else x
    return x
