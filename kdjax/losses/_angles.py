"""Cosines of all angles between examples, compared between two networks some anchors at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from kdjax.losses import _math

_Rows = tuple[Array, ...]  # of an anchor: a weight, both networks' offsets and inverse distances


class Seen(NamedTuple):
    """A network's examples, seen from each of them as the anchor i.

    Attributes:
      gram: G = X Xᵀ of the centred features.
      offsets: a_ij = G_ij − G_ii / 2, so that (x_j − x_i)·(x_k − x_i) = G_jk − a_ij − a_ik.
      inverse_distances: 1/d_ij; 0 where d is, or where j does not count.
    """

    gram: Float[Array, "batch batch"]
    offsets: Float[Array, "batch batch"]
    inverse_distances: Float[Array, "batch batch"]


def seen(features: Float[Array, "batch dim"], where: Bool[Array, " batch"] | None) -> Seen:
    gram = _math.gram(_math.centred(features, where))
    inverse_distances = _math.safe_reciprocal(_math.safe_sqrt(_math.squared_distances(gram)))
    if where is not None:
        inverse_distances = jnp.where(where[None, :], inverse_distances, 0.0)
    return Seen(gram, gram - jnp.diagonal(gram)[:, None] / 2, inverse_distances)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def differences(block: int, student: Seen, teacher: Seen) -> Float[Array, " batch"]:
    """Of each anchor, the sum over j and k of the smooth L1 difference of both networks' cosines.

    `block` anchors at a time, [block, batch, batch] numbers, forward and back. Its gradient cannot be taken forward
    (`jax.jvp`).
    """

    def share(rows: _Rows) -> Array:
        (own, _, _), (its, _, _) = _cosines(student.gram, *rows[1:3]), _cosines(teacher.gram, *rows[3:])
        # Over the first axis first: that sum the compiler can do several numbers at a time.
        return jnp.sum(jnp.sum(_math.smooth_l1(own - its), axis=0))

    weights = jnp.ones_like(student.gram[0])
    return _over_anchors(lambda rows: ((), share(rows)), (), (weights, *student[1:], *teacher[1:]), block)[1]


def _forward(block: int, student: Seen, teacher: Seen) -> tuple[Array, tuple[Seen, Seen]]:
    return differences(block, student, teacher), (student, teacher)


def _backward(block: int, kept: tuple[Seen, Seen], cotangents: Float[Array, " batch"]) -> tuple[Seen, Seen]:
    student, teacher = kept

    def slopes(rows: _Rows) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
        weight, own_rows, its_rows = rows[0], rows[1:3], rows[3:]
        (own, own_inner, scale), (its, its_inner, its_scale) = (
            _cosines(student.gram, *own_rows),
            _cosines(teacher.gram, *its_rows),
        )
        slope = jnp.clip(own - its, -1.0, 1.0)
        of_gram, *of_own = _slopes(slope, own_inner, scale, own_rows[1], weight)
        of_its_gram, *of_its = _slopes(-slope, its_inner, its_scale, its_rows[1], weight)
        return (of_gram, of_its_gram), (*of_own, *of_its)  # type: ignore[return-value]

    # Of the same types over device axes as what is added to it.
    zeros = jnp.zeros_like(student.gram + teacher.gram + cotangents[:, None])
    rows = (cotangents, *student[1:], *teacher[1:])
    (of_student, of_teacher), of_rows = _over_anchors(slopes, (zeros, zeros), rows, block)
    return Seen(of_student, *of_rows[:2]), Seen(of_teacher, *of_rows[2:])


differences.defvjp(_forward, _backward)


def _cosines(gram: Array, offsets: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """An anchor's cosines [batch, batch], the products of edges that they are made of, and 1 / (d_ij d_ik)."""
    inner = gram - offsets[:, None] - offsets[None, :]
    scale = inverse[:, None] * inverse[None, :]
    # Rounding may carry a cosine beyond 1, far beyond it where two examples almost coincide.
    return jnp.clip(inner * scale, -1.0, 1.0), inner, scale


def _slopes(slope: Array, inner: Array, scale: Array, inverse: Array, weight: Array) -> tuple[Array, Array, Array]:
    """From the slopes of an anchor's cosines to those of G, of a and of 1/d."""
    of_gram = jnp.where(jnp.abs(inner * scale) <= 1.0, slope, 0.0) * (scale * weight)
    # j and k are alike: what one of them gets, twice, over the axis that the compiler sums fastest.
    of_inverse = 2.0 * jnp.sum(of_gram * inner, axis=0) * _math.safe_reciprocal(inverse)
    return of_gram, -2.0 * jnp.sum(of_gram, axis=0), of_inverse


def _over_anchors(function: Callable[[_Rows], tuple[Any, Any]], total: Any, rows: _Rows, block: int) -> tuple[Any, Any]:
    """`function` of each anchor's rows, `block` of them at a time: the sum of its first results, and all of its second."""

    def advance(total: Any, some: _Rows) -> tuple[Any, Any]:
        more, out = jax.vmap(function)(some)
        return jax.tree.map(lambda own, new: own + jnp.sum(new, axis=0), total, more), out

    def advance_by_one(total: Any, one: _Rows) -> tuple[Any, Any]:
        more, out = function(one)  # without an axis of 1, which costs a CPU three times as much
        return jax.tree.map(jnp.add, total, more), out

    if block == 1:
        return lax.scan(advance_by_one, total, rows)
    whole = len(rows[0]) // block * block
    found = []
    if whole > block:
        blocks = tuple(one[:whole].reshape(-1, block, *one.shape[1:]) for one in rows)
        total, out = lax.scan(advance, total, blocks)
        found.append(jax.tree.map(lambda one: one.reshape(whole, *one.shape[2:]), out))
    for first in range(whole if whole > block else 0, len(rows[0]), block):
        total, out = advance(total, tuple(one[first : first + block] for one in rows))
        found.append(out)
    return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
