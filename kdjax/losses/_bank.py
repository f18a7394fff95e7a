"""What a contrastive loss remembers of a whole data set, and how it draws others from there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math


class Bank(NamedTuple):
    """What `crd` remembers of every example of a data set: arrays alone, to be kept and saved with the training state.

    Attributes:
      student, teacher: [size, dim], each example's embedding by each network, of length 1.
      log_normalisers: [2], log Z of the student's and of the teacher's embeddings as anchors.
      batches: int32, how many batches the bank has seen.
    """

    student: Float[Array, "size dim"]
    teacher: Float[Array, "size dim"]
    log_normalisers: Float[Array, "2"]
    batches: Int[Array, ""]


def init_bank(key: PRNGKeyArray, size: int, dim: int) -> Bank:
    """A bank of random directions.

    Args:
      key: a JAX random key.
      size: how many examples the data set has. Their indices are 0 … size − 1.
      dim: the embeddings' dim.

    Example:
      >>> import jax
      >>> from kdjax.losses import init_bank
      >>> init_bank(jax.random.key(0), 100, 16).student.shape
      (100, 16)
    """
    _checks.whole("size", size, 2)
    _checks.whole("dim", dim, 1)
    student, teacher = _math.unit(jax.random.normal(key, (2, size, dim), jnp.float32), (2,))
    return Bank(student, teacher, jnp.zeros(2, jnp.float32), jnp.zeros((), jnp.int32))


def draw_negatives(
    key: PRNGKeyArray,
    indices: Int[Array, " batch"],
    count: int,
    bank_size: int,
    *,
    labels: Int[Array, " bank_size"] | None = None,
    order: Int[Array, " bank_size"] | None = None,
) -> Int[Array, "batch count"]:
    """Draws other examples for each example, uniformly and with replacement.

    With the bank in the order of its classes, a class is one stretch of places: a place drawn among the others, and moved
    over the stretch where it lies behind its start, is uniform over the complement. No draw is rejected and made again.

    Args:
      key: a JAX random key.
      indices: the anchors' places in the bank.
      count: how many to draw for each.
      bank_size: the bank's size.
      labels: the class of every example of the bank, of two classes at least; no anchor then meets its own class. None
        leaves out only the anchor itself.
      order: ``jnp.argsort(labels)``, to save sorting anew at each call.

    Returns:
      Indices into the bank.

    Raises:
      ValueError: `indices` are not whole numbers [batch], `count` or `bank_size` is too small, `labels` are not whole
        numbers [bank_size] or (where known now) of one class alone, or `order` comes without `labels`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import draw_negatives
      >>> labels = jnp.array([0, 1, 0, 1])
      >>> drawn = draw_negatives(jax.random.key(0), jnp.array([2]), 6, 4, labels=labels)
      >>> labels[drawn].tolist()
      [[1, 1, 1, 1, 1, 1]]
    """
    places("indices", indices)
    _checks.whole("count", count, 1)
    _checks.whole("bank_size", bank_size, 2)
    if labels is None:
        if order is not None:
            raise ValueError("order must come with the labels that it sorts; got order without labels.")
        start, end = indices, indices + 1
    else:
        labels = _checks.labels("labels", labels, (bank_size,))
        if not isinstance(labels, jax.core.Tracer) and np.ptp(labels) == 0:
            raise ValueError(
                f"labels must be of two classes at least, to draw from others; got class {labels[0]} alone."
            )
        order = jnp.argsort(labels) if order is None else order
        in_order = labels[order]
        start, end = (jnp.searchsorted(in_order, labels[indices], side=side) for side in ("left", "right"))
    start, own = start[:, None], (end - start)[:, None]
    place = jax.random.randint(key, (indices.shape[0], count), 0, bank_size - own)
    place = jnp.where(place < start, place, place + own)
    return place if order is None else order[place]


def moved(
    memory: Float[Array, "size dim"],
    indices: Int[Array, " batch"],
    embeddings: Float[Array, "batch dim"],
    momentum: Number,
) -> Float[Array, "size dim"]:
    """The memory with the batch's entries moved; rows of one example all write the same, so their order does not count."""
    entries = memory[indices].astype(embeddings.dtype)
    same = (indices[:, None] == indices[None, :]).astype(embeddings.dtype)
    sums = jnp.einsum("ij,jd->id", same, embeddings, precision=Precision.HIGHEST)
    mixed = momentum * entries + (1.0 - momentum) * sums / jnp.sum(same, axis=1, keepdims=True)
    # Opposite directions leave nothing but rounding, and that must not be blown up to length 1.
    nothing = jnp.all(jnp.abs(mixed) <= 4.0 * float(jnp.finfo(mixed.dtype).eps), axis=1, keepdims=True)
    mixed = jnp.where(nothing, entries, _math.unit(mixed, (1,)))
    return memory.at[indices].set(mixed.astype(memory.dtype))


def places(name: str, array: Array) -> None:
    """A ValueError where `array` is no [batch] of whole numbers."""
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be whole numbers of shape [batch]; got shape {tuple(array.shape)} and dtype {array.dtype}."
        )
