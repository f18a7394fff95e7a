"""Hidden states and heads as losses over a vocabulary take them: checked, a row a token, without what does not count."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses._vocabulary import Network, check_chunk


def checked(hidden_name: str, hidden: Any, head_name: str, head: Any, axis_name: str | None) -> Network:
    _checks.rank_at_least(hidden_name, hidden, 1, "[..., dim]")
    _checks.rank(head_name, head, 2, "[dim, vocabulary]")
    for name, array in ((hidden_name, hidden), (head_name, head)):
        _checks.floating(name, array)
    dims = jnp.shape(hidden)[-1], jnp.shape(head)[0]
    if dims[0] != dims[1]:
        raise ValueError(
            f"{hidden_name} and {head_name} must have the same dim, the last axis of the one and the first of the other; "
            f"got shapes {tuple(jnp.shape(hidden))} and {tuple(jnp.shape(head))}."
        )
    if jnp.shape(head)[1] < (2 if axis_name is None else 1):
        raise ValueError(f"{head_name} must have a column for each of two words or more; got shape {jnp.shape(head)}.")
    return Network(jnp.asarray(hidden).reshape(-1, dims[0]), jnp.asarray(head))


def both(
    student_hidden: Any,
    student_head: Any,
    teacher_hidden: Any,
    teacher_head: Any,
    temperature: Number,
    chunk: Any,
    where: Any,
    axis_name: str | None,
) -> tuple[Network, Network, Array, Array]:
    """The networks, T² for each token or all, and 1/T beside logits."""
    student = checked("student_hidden", student_hidden, "student_head", student_head, axis_name)
    teacher = checked("teacher_hidden", teacher_hidden, "teacher_head", teacher_head, axis_name)
    _checks.same_leading_axes("student_hidden", student_hidden, "teacher_hidden", teacher_hidden)
    if student.head.shape[1] != teacher.head.shape[1]:
        raise ValueError(
            "student_head and teacher_head must have the same words, their last axis; got shapes "
            f"{student.head.shape} and {teacher.head.shape}."
        )
    check_chunk(chunk)
    shape = jnp.shape(student_hidden)[:-1]
    _checks.temperature("temperature", temperature, shape)
    _checks.where(where, shape)
    dtype = jnp.result_type(*student, *teacher, jnp.float32)
    each = jnp.asarray(temperature, dtype)
    if np.ndim(temperature):
        each = jnp.broadcast_to(each.reshape(each.shape + (1,) * (len(shape) - each.ndim)), shape).reshape(-1)
    student, teacher = kept((student, teacher), where, shape)
    return student, teacher, each**2, 1.0 / each.reshape(-1, 1)


def kept(networks: tuple[Network, ...], where: Any, shape: tuple[int, ...]) -> tuple[Network, ...]:
    """The networks with hidden states of 0 where a token does not count."""
    if where is None:
        return networks
    counts = _spread(where, shape).reshape(-1, 1)
    return tuple(one._replace(hidden=jnp.where(counts, one.hidden, 0)) for one in networks)


def stood_in(array: Any, counted: Any) -> Any:
    """Numbers of entries, such as each one's own T, where those that do not count are as the first one that does.

    0, which padding has, may be no T, and a slope that is NaN there would reach what all entries share.

    Args:
      array: [batch, …].
      counted: bools of its first axes, or with axes more than it has.
    """
    axes = np.ndim(array)
    own = jnp.any(counted, axis=tuple(range(axes, np.ndim(counted))))
    rows = jnp.reshape(array, (own.size, *np.shape(array)[own.ndim :]))
    first = jnp.where(jnp.any(own), rows[jnp.argmax(own)], jnp.ones((), rows.dtype))
    first = lax.stop_gradient(first).reshape((1,) * own.ndim + first.shape)
    return jnp.where(own.reshape(own.shape + (1,) * (axes - own.ndim)), array, first)


def as_given(values: Array, where: Any, shape: tuple[int, ...]) -> Array:
    values = values.reshape(shape)
    return values if where is None else jnp.where(_spread(where, shape), values, 0.0)


def _spread(where: Any, shape: tuple[int, ...]) -> Array:
    where = jnp.asarray(where)
    return jnp.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - where.ndim)), shape)
