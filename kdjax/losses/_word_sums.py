"""What is summed over a vocabulary's words, and the slopes of the sums: Σ exp of logits, divergences of two softmaxes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kdjax.losses._vocabulary import Kind


def _log_sum(state: tuple[Array, Array], logits: Array) -> tuple[tuple[Array, Array], Array, Array]:
    """The largest logit m so far and Σ exp(z − m), with a chunk more; the chunk's exp(z − m); by what older sums shrink."""
    largest, total = state
    new = jnp.maximum(largest, jnp.max(logits, axis=1))
    shares, shrink = jnp.exp(logits - new[:, None]), jnp.exp(largest - new)
    return (new, total * shrink + jnp.sum(shares, axis=1)), shares, shrink


def _empty(zeros: Array) -> tuple[Array, Array]:
    # Not −∞, of which no difference can be taken.
    return zeros + jnp.finfo(zeros.dtype).min, zeros


def _is_label(logits: Array, first: Any, labels: Int[Array, " tokens"]) -> Array:
    return labels[:, None] - first == jnp.arange(logits.shape[1])[None]


def _advance_label(carry: Any, logits: Array, first: Any, labels: Array, moving: None) -> Any:
    state, picked = carry
    state, _, _ = _log_sum(state, logits)
    return state, picked + jnp.sum(jnp.where(_is_label(logits, first, labels), logits, 0.0), axis=1)


def _slopes_label(logits: Array, first: Any, labels: Array, moving: None, found: Any, given: Any) -> Any:
    _, of_total, of_picked = (one[:, None] for one in given)
    shares = jnp.exp(logits - found[0][:, None])
    return (of_total * shares + jnp.where(_is_label(logits, first, labels), of_picked, 0.0),), None


# The largest logit m, Σ exp(z − m), and the label's logit. Of m there is no gradient: log Σ exp(z) does not depend on it.
LABEL = Kind(
    begin=lambda zeros: (_empty(zeros), zeros),
    advance=_advance_label,
    finish=lambda carry: (*carry[0], carry[1]),
    slopes=_slopes_label,
)


def _advance_gap(carry: Any, one: Array, other: Array, first: Any, extras: None, moving: None) -> Any:
    before, others_before, gap = carry
    of_one, shares, shrink = _log_sum(before, one)
    of_other, _, _ = _log_sum(others_before, other)
    moved = (before[0] - of_one[0]) - (others_before[0] - of_other[0])
    gaps = (one - of_one[0][:, None]) - (other - of_other[0][:, None])
    return of_one, of_other, (gap + before[1] * moved) * shrink + jnp.sum(shares * gaps, axis=1)


def _finish_gap(carry: Any) -> tuple[Array, ...]:
    of_one, of_other, gap = carry
    return *of_one, *of_other, gap / of_one[1]


def _slopes_gap(one: Array, other: Array, first: Any, extras: None, moving: None, found: Any, given: Any) -> Any:
    largest, total, others_largest, _, gap = (known[:, None] for known in found)
    _, of_total, _, of_others_total, of_gap = (slope[:, None] for slope in given)
    shares = jnp.exp(one - largest)
    gaps = (one - largest) - (other - others_largest)
    of_one = shares * (of_total + of_gap / total * (gaps - gap + 1.0))
    return (of_one, of_others_total * jnp.exp(other - others_largest) - of_gap / total * shares), None


# Of both networks m and Σ exp(z − m), as above; and the mean of (z₁ − m₁) − (z₂ − m₂) under the first's probabilities: where
# two networks nearly agree both are small where it counts, and the difference keeps its digits.
GAP = Kind(
    begin=lambda zeros: (_empty(zeros), _empty(zeros), zeros),
    advance=_advance_gap,
    finish=_finish_gap,
    slopes=_slopes_gap,
)


def divergence(word: Callable[[Array, Array, Array], Array]) -> Kind:
    """Σ word(log p, log q, moving), where `extras` are both networks' m and log Σ exp(z − m).

    Beside the sum: Σ ∂word/∂ log p and Σ ∂word/∂ log q, by which the logarithms' own gradients go, Σ p and Σ q, through
    which they go; so that all of it is one pass back.
    """

    def log_share(logits: Array, known: Any) -> Array:
        largest, log_total = known
        return (logits - largest[:, None]) - log_total[:, None]

    def parts(one: Array, other: Array, extras: Any, each: Array) -> Array:
        return jnp.sum(word(log_share(one, extras[0]), log_share(other, extras[1]), each), axis=1)

    def shares(one: Array, other: Array, extras: Any) -> tuple[Array, Array]:
        return jnp.exp(log_share(one, extras[0])), jnp.exp(log_share(other, extras[1]))

    def advance(carry: Any, one: Array, other: Array, first: Any, extras: Any, moving: Array) -> Any:
        value, pull_back = jax.vjp(lambda own, its: parts(own, its, extras, moving), one, other)
        new = *pull_back(jnp.ones_like(value)), *shares(one, other, extras)
        return tuple(old + more for old, more in zip(carry, (value, *(jnp.sum(a, axis=1) for a in new)), strict=True))

    def slopes(one: Array, other: Array, first: Any, extras: Any, moving: Array, found: Any, given: Any) -> Any:
        each = jnp.broadcast_to(moving, (one.shape[0], 1))
        _, pull_back = jax.vjp(lambda *moved: parts(moved[0], moved[1], extras, moved[2]), one, other, each)
        of_one, of_other, of_each = pull_back(given[0])
        share, its = shares(one, other, extras)
        return (of_one + given[3][:, None] * share, of_other + given[4][:, None] * its), of_each[:, 0]

    return Kind(begin=lambda zeros: (zeros,) * 5, advance=advance, finish=tuple, slopes=slopes, many_arrays=True)
