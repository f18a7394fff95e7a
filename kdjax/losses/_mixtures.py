"""Divergences from a mixture of two distributions, in logarithms: m = β p + (1 − β) q.

Never log m less log q: at a small β the two are nearly equal, and rounding would outweigh what is left.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import _distributions, _math


@jax.custom_jvp
def of_both(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> Float[Array, "*batch classes"]:
    """β p log(p/m) + (1 − β) q log(q/m), class by class; at the ends as `jensen_shannon` says."""
    of_first, of_second = _parts(log_first, log_second, beta)
    # At an end the mixture is one of the two, whose own divergence from it is 0: a weight of 1 leaves the other's.
    return jnp.where(beta == 0, 1.0, beta) * of_first + jnp.where(beta == 1, 1.0, 1.0 - beta) * of_second


@partial(of_both.defjvp, symbolic_zeros=True)
def _slope_of_both(given: tuple[Array, Array, Array], moved: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    log_first, log_second, beta = given
    of_first, of_second = _parts(*given)
    first, second = jnp.exp(log_first), jnp.exp(log_second)
    start, end = beta == 0, beta == 1
    # What the mixture itself moves by cancels, but at the ends: the slope by log p is the part of p.
    by_first = jnp.where(start, of_first + first, jnp.where(end, -second, beta * of_first))
    by_second = jnp.where(end, of_second + second, jnp.where(start, -first, (1.0 - beta) * of_second))
    by_beta = jnp.where(start | end, 0.0, of_first - of_second - (first - second))
    value = of_both(*given)
    return value, _math.along((by_first, by_second, by_beta), moved, value)


@jax.custom_jvp
def of_first(
    log_first: Float[Array, "*batch classes"], log_second: Float[Array, "*batch classes"], beta: Float[Array, "..."]
) -> Float[Array, "*batch classes"]:
    """Gives p log(p/m), class by class; β may be as small as float32 holds."""
    return -_distributions.weighted_log(log_first, _beside(log_first, log_second, beta)[0])


@partial(of_first.defjvp, symbolic_zeros=True)
def _slope_of_first(given: tuple[Array, Array, Array], moved: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    log_first, _, beta = given
    over_first, _, first, second = _beside(*given)
    value, share = -_distributions.weighted_log(log_first, over_first), jnp.exp(log_first)
    by_second = -share * (1.0 - beta) * second
    by_beta = -share * jnp.where((beta == 0) | (beta == 1), 0.0, first - second)
    return value, _math.along((value - by_second, by_second, by_beta), moved, value)


def _parts(log_first: Array, log_second: Array, beta: Array) -> tuple[Array, Array]:
    """Gives p log(p/m) and q log(q/m)."""
    over_first, over_second, _, _ = _beside(log_first, log_second, beta)
    return -_distributions.weighted_log(log_first, over_first), -_distributions.weighted_log(log_second, over_second)


@jax.custom_jvp
def _beside(log_first: Array, log_second: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
    """log(m/p), log(m/q), p/m and q/m, of one exponential and one logarithm; p/m is 0 at β = 0, and q/m at β = 1."""
    neither = (log_first == -jnp.inf) & (log_second == -jnp.inf)
    ratio = jnp.where(neither, 0.0, log_second - log_first)
    nothing = jnp.where(jnp.isnan(ratio), ratio, 0.0)
    start, end = beta == 0, beta == 1
    inside = jnp.where(start | end, 0.5, beta)
    first_larger = ratio <= 0
    larger = jnp.where(first_larger, inside, 1.0 - inside)  # the weight of the larger of p and q
    smaller = jnp.where(first_larger, 1.0 - inside, inside)
    size = jnp.abs(ratio)
    root = jnp.exp(-0.5 * size)
    quotient = root * root  # the smaller over the larger
    lost = jnp.where(size < 0.5, -_math.expm1_of_little(-size), 1.0 - quotient)
    mixture = larger + smaller * quotient  # m over the larger
    far = jnp.log(mixture)
    # The mixture less the larger, and less the smaller, both over the larger: where little, the logarithm is of nearly 1.
    less, more = -smaller * lost, larger * lost
    little, few = less > -0.33, (size < 40.0) & (more < 0.5 * quotient)
    over_larger = jnp.where(
        little, _math.log_quotient(jnp.where(little, less, 0.0), jnp.where(little, 2.0 + less, 1.0)), far
    )
    over_smaller = jnp.where(
        few, _math.log_quotient(jnp.where(few, more, 0.0), jnp.where(few, 2.0 * quotient + more, 1.0)), far + size
    )
    over = _in_order(first_larger, over_larger, over_smaller)
    inverse = 1.0 / mixture
    shares = _in_order(first_larger, inverse, root * inverse * root)  # the mixture may be as small as the quotient
    return (
        jnp.where(start, ratio, jnp.where(end, nothing, over[0])),
        jnp.where(end, -ratio, jnp.where(start, nothing, over[1])),
        jnp.where(start, 0.0, jnp.where(end, 1.0, shares[0])),
        jnp.where(end, 0.0, jnp.where(start, 1.0, shares[1])),
    )


@_beside.defjvp
def _slope_beside(given: tuple[Array, Array, Array], moved: tuple[Array, Array, Array]) -> tuple[Any, Any]:
    beta = given[2]
    over_first, over_second, first, second = _beside(*given)
    apart = moved[1] - moved[0]
    by_beta = jnp.where((beta == 0) | (beta == 1), 0.0, first - second) * moved[2]
    along_first, along_second = (1.0 - beta) * second * apart + by_beta, by_beta - beta * first * apart
    return (over_first, over_second, first, second), (
        along_first,
        along_second,
        -first * along_first,
        -second * along_second,
    )


def _in_order(first_larger: Array, larger: Array, smaller: Array) -> tuple[Array, Array]:
    return jnp.where(first_larger, larger, smaller), jnp.where(first_larger, smaller, larger)
