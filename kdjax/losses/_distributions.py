"""Distributions over classes, in logarithms: what the losses on predictions share.

Logits are divided by T before a class is taken out by −∞, never after: −∞ / T has no gradient in T.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax.losses import _math


def logit_pair(student: Array, teacher: Array) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    _checks.rank("student", student, 2, "[batch, classes]")
    _checks.rank("teacher", teacher, 2, "[batch, classes]")
    _checks.same_shape("student", student, "teacher", teacher)
    return _math.widened(student, teacher)


def relative_entropy(
    log_first: Float[Array, "batch classes"], log_second: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """KL(p‖q) = Σ p (log p − log q), from the logarithms of both."""
    share = jnp.exp(log_first)
    # 0 · log 0 = 0: without the mask a class that p excludes (log p = −∞) would give 0 · ∞.
    return jnp.sum(share * jnp.where(share == 0, 0.0, log_first - log_second), axis=-1)


def cross_entropy(
    log_first: Float[Array, "batch classes"], log_second: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """−Σ p log q, from the logarithms of both."""
    share = jnp.exp(log_first)
    return -jnp.sum(share * jnp.where(share == 0, 0.0, log_second), axis=-1)


def log_softmax_without(
    logits: Float[Array, "batch classes"], out: Bool[Array, "batch classes"]
) -> Float[Array, "batch classes"]:
    """Log-probabilities among the classes that are not `out`; −∞ for these, and everywhere if no class is left."""
    remaining, none_left = _without(logits, out)
    return jnp.where(out | none_left, -jnp.inf, jax.nn.log_softmax(remaining, axis=-1))


def log_sum_without(logits: Float[Array, "batch classes"], out: Bool[Array, "batch classes"]) -> Float[Array, " batch"]:
    """Log-sum-exp over the classes that are not `out`; −∞, with zero gradient, if no class is left."""
    remaining, none_left = _without(logits, out)
    return jnp.where(none_left[:, 0], -jnp.inf, jax.nn.logsumexp(remaining, axis=-1))


def _without(
    logits: Float[Array, "batch classes"], out: Bool[Array, "batch classes"]
) -> tuple[Float[Array, "batch classes"], Bool[Array, "batch 1"]]:
    remaining = jnp.where(out, -jnp.inf, logits)
    none_left = jnp.all(remaining == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(none_left, 0.0, remaining), none_left
