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
    return -jnp.sum(_weighted_log(log_first, log_second), axis=-1)


def _weighted_log(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"]
) -> Float[Array, "*batch classes"]:
    """The share p · log q, class by class."""
    share = jnp.exp(log_first)
    return share * jnp.where(share == 0, 0.0, log_second)


@jax.custom_jvp
def from_mixture(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> Float[Array, "*batch classes"]:
    """β p log(p/m) + (1 − β) q log(q/m), class by class, for m = β p + (1 − β) q; at the ends as `jensen_shannon` says."""
    of_first, of_second = _from_mixture_each(log_first, log_second, beta)
    # At an end the mixture is one of the two, whose own divergence from it is 0: a weight of 1 leaves the other's.
    return jnp.where(beta == 0, 1.0, beta) * of_first + jnp.where(beta == 1, 1.0, 1.0 - beta) * of_second


@from_mixture.defjvp
def _slope_from_mixture(given: tuple[Array, Array, Array], moved: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    log_first, log_second, beta = given
    of_first, of_second = _from_mixture_each(*given)
    first, second = jnp.exp(log_first), jnp.exp(log_second)
    start, end = beta == 0, beta == 1
    # What the mixture itself moves by cancels, but at the ends: the slope by log p is the part of p.
    by_first = jnp.where(start, of_first + first, jnp.where(end, -second, beta * of_first))
    by_second = jnp.where(end, of_second + second, jnp.where(start, -first, (1.0 - beta) * of_second))
    by_beta = jnp.where(start | end, 0.0, of_first - of_second - (first - second))
    return from_mixture(*given), by_first * moved[0] + by_second * moved[1] + by_beta * moved[2]


def kl_to_mixture(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> Float[Array, "*batch"]:
    """KL(p‖m) for m = β p + (1 − β) q; β may be as small as float32 holds."""
    over_first, _ = _log_mixture_over_each(log_first, log_second, beta)
    return -jnp.sum(_weighted_log(log_first, over_first), axis=-1)


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


def _from_mixture_each(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """The parts p log(p/m) and q log(q/m)."""
    over_first, over_second = _log_mixture_over_each(log_first, log_second, beta)
    return -_weighted_log(log_first, over_first), -_weighted_log(log_second, over_second)


@jax.custom_jvp
def _log_mixture_over_each(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """log(m/p) and log(m/q) for the mixture m = β p + (1 − β) q.

    Never log m less log q: at a small β the two are nearly equal, and rounding would outweigh what is left.
    """
    neither = (log_first == -jnp.inf) & (log_second == -jnp.inf)
    ratio = jnp.where(neither, 0.0, log_second - log_first)
    inside = jnp.where((beta == 0) | (beta == 1), 0.5, beta)
    larger = jnp.where(ratio <= 0, inside, 1.0 - inside)  # the weight of the larger of p and q
    smaller = jnp.where(ratio <= 0, 1.0 - inside, inside)
    size = jnp.abs(ratio)
    most = float(np.log(float(jnp.finfo(size.dtype).max))) - 8.0  # of which the exponential is finite
    lost, gained = smaller * jnp.expm1(-size), larger * jnp.expm1(jnp.minimum(size, most))
    little, few = lost > -0.5, (gained < 0.5) & (size < most)
    far = jnp.log(larger + smaller * jnp.exp(-size))
    over_larger = jnp.where(little, jnp.log1p(jnp.where(little, lost, 0.0)), far)
    over_smaller = jnp.where(few, jnp.log1p(jnp.where(few, gained, 0.0)), over_larger + size)
    over_first, over_second = (
        jnp.where(ratio <= 0, *both) for both in ((over_larger, over_smaller), (over_smaller, over_larger))
    )
    return (
        jnp.where(beta == 0, ratio, jnp.where(beta == 1, 0.0, over_first)),
        jnp.where(beta == 0, 0.0, jnp.where(beta == 1, -ratio, over_second)),
    )


@_log_mixture_over_each.defjvp
def _slope_log_mixture(given: tuple[Array, Array, Array], moved: tuple[Array, Array, Array]) -> tuple[Any, Any]:
    beta = given[2]
    over_first, over_second = _log_mixture_over_each(*given)
    # p/m and q/m, but where the mixture has none of it.
    first = jnp.exp(-jnp.where(beta == 0, jnp.inf, over_first))
    second = jnp.exp(-jnp.where(beta == 1, jnp.inf, over_second))
    apart = moved[1] - moved[0]
    by_beta = jnp.where((beta == 0) | (beta == 1), 0.0, first - second) * moved[2]
    return (over_first, over_second), ((1.0 - beta) * second * apart + by_beta, by_beta - beta * first * apart)
