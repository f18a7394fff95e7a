"""Random logits of two networks, and a loss's values and gradients at them: what tests of losses on predictions share."""

import jax
import jax.numpy as jnp
import numpy as np


def logits(*shape, seed=0):
    student, teacher = 3.0 * np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(teacher)


def value_and_gradients(loss, *arrays, **keywords):
    """Per-example values, and the gradients of their sum in the first two arrays."""

    def total(*arrays):
        values = loss(*arrays, **keywords)
        return values.sum(), values

    (_, values), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(*arrays)
    return values, gradients
