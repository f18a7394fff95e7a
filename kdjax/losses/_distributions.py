"""Distributions over classes, in logarithms: what the losses on predictions share.

Logits are divided by T before a class is taken out by −∞, never after: −∞ / T has no gradient in T.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math


def logit_pair(student: Array, teacher: Array) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    _checks.rank_at_least("student", student, 1, "[..., classes]")
    _checks.rank_at_least("teacher", teacher, 1, "[..., classes]")
    _checks.same_shape("student", student, "teacher", teacher)
    return _math.widened(student, teacher)


def several_classes(student: Array) -> None:
    if student.shape[-1] < 2:
        raise ValueError(
            f"student must have the logits of two classes or more; got shape {tuple(student.shape)}, whose softmax is 1 "
            "whatever the logit. One logit z that a sigmoid reads is the two logits [0, z]."
        )


def softened(
    student: Array, teacher: Array, temperature: Number
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Number]:
    """Both logits over T, which may be each example's own, and T²: with it the gradient's size does not depend on T."""
    student, teacher = logit_pair(student, teacher)
    several_classes(student)
    _checks.temperature("temperature", temperature, student.shape[:-1])
    temperature, divisor = beside(temperature, student)
    return student / divisor, teacher / divisor, temperature**2


def beside(temperature: Number, logits: Array) -> tuple[Any, Any]:
    """T as it stands beside the loss [...], and beside logits [..., classes]: one number as it is, else with axes more."""
    if not np.ndim(temperature):
        return temperature, temperature
    each = jnp.asarray(temperature)
    each = each.reshape(each.shape + (1,) * (logits.ndim - 1 - each.ndim))
    return each, each[..., None]


def relative_entropy(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """KL(p‖q) = Σ p (log p − log q), from the logarithms of both."""
    share = jnp.exp(log_first)
    # 0 · log 0 = 0: without the mask a class that p excludes (log p = −∞) would give 0 · ∞.
    return jnp.sum(share * jnp.where(share == 0, 0.0, log_first - log_second), axis=-1)


def cross_entropy(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """−Σ p log q, from the logarithms of both."""
    return -jnp.sum(weighted_log(log_first, log_second), axis=-1)


def weighted_log(log_first: Float[Array, "*shape"], log_second: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The share p · log q, entry by entry."""
    share = jnp.exp(log_first)
    return share * jnp.where(share == 0, 0.0, log_second)


def log_softmax_without(
    logits: Float[Array, "*batch classes"], out: Bool[Array, "*batch classes"]
) -> Float[Array, "*batch classes"]:
    """Log-probabilities among the classes that are not `out`; −∞ for these, and everywhere if no class is left."""
    remaining, none_left = _without(logits, out)
    return jnp.where(out | none_left, -jnp.inf, jax.nn.log_softmax(remaining, axis=-1))


def log_sum_without(
    logits: Float[Array, "*batch classes"], out: Bool[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Log-sum-exp over the classes that are not `out`; −∞, with zero gradient, if no class is left."""
    remaining, none_left = _without(logits, out)
    return jnp.where(none_left[..., 0], -jnp.inf, jax.nn.logsumexp(remaining, axis=-1))


def _without(
    logits: Float[Array, "*batch classes"], out: Bool[Array, "*batch classes"]
) -> tuple[Float[Array, "*batch classes"], Bool[Array, "*batch 1"]]:
    remaining = jnp.where(out, -jnp.inf, logits)
    none_left = jnp.all(remaining == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(none_left, 0.0, remaining), none_left
