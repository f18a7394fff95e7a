"""Embeddings, a bank and draws from it, and `crd` compiled: what its tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses

SIZE, DIM, BATCH, COUNT = 12, 5, 8, 7


def made(seed=0, batch=BATCH, dtype=np.float32, batches=3):
    """Embeddings, indices, a bank that has seen some batches, negatives."""
    generator = np.random.default_rng(seed)
    student, teacher = generator.standard_normal((2, batch, DIM))
    bank = losses.init_bank(jax.random.key(seed), SIZE, DIM)
    bank = bank._replace(log_normalisers=jnp.array([4.0, 5.0], jnp.float32), batches=jnp.int32(batches))
    indices = generator.permutation(SIZE)[:batch]
    negatives = losses.draw_negatives(jax.random.key(seed), jnp.asarray(indices), COUNT, SIZE)
    return jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), jnp.asarray(indices), bank, negatives


def in_float64(bank):
    return losses.Bank(*(np.asarray(a, np.float64) for a in bank[:3]), int(bank.batches))


def close(actual, wanted, relative=1e-4, absolute=1e-5):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), relative, absolute)


@functools.cache
def jitted(**keywords):
    return jax.jit(functools.partial(losses.crd, **keywords))


def mean_and_rest(student, teacher, *rest, **keywords):
    values, bank = losses.crd(student, teacher, *rest, **keywords)
    return values.mean(), (values, bank)


value_and_gradients = jax.jit(jax.value_and_grad(mean_and_rest, argnums=(0, 1), has_aux=True))
