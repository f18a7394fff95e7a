"""What is kept of a teacher's outputs: all logits, the largest, some that are drawn, or features alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import _checks
from kdjax._types import Outputs, Shared

_DTYPES = ("float32", "bfloat16", "float16")
_BLOCK = 512  # classes


class Wish(NamedTuple):
    """The arguments of `cache_teacher` of those names, checked."""

    features: tuple[str, ...]
    logits: bool
    top_k: int | None
    draws: int | None
    seed: int
    dtype: str


def checked(wish: Wish) -> Wish:
    """A ValueError where no such outputs can be kept, whoever the teacher."""
    _checks.one_of("dtype", wish.dtype, _DTYPES)
    _checks.whole("seed", wish.seed, 0)
    if wish.seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, which a key holds; got {wish.seed}.")
    for name, count in (("top_k", wish.top_k), ("draws", wish.draws)):
        if count is None:
            continue
        _checks.whole(name, count, 1)
        if wish.features:
            raise ValueError(
                f"features must be empty with {name}, which keeps predictions alone; got {list(wish.features)}."
            )
        if not wish.logits:
            raise ValueError(
                f"logits must be True with {name}, which is taken of them, and keeps none; got {wish.logits}."
            )
    if wish.top_k is not None and wish.draws is not None:
        raise ValueError(f"top_k and draws exclude each other; got {wish.top_k} and {wish.draws}.")
    if not (wish.logits or wish.features):
        raise ValueError("features must name what is kept where logits are not; got none.")
    return wish


def wanted(said: Outputs, wish: Wish, rows: jax.Array) -> dict[str, jax.Array]:
    """What is kept of a batch, flat and by name; `rows` are the examples' numbers, from which draws are made."""
    dtype = jnp.dtype(wish.dtype)
    if wish.top_k is not None:
        classes = said.logits.shape[-1]
        if wish.top_k > classes:
            raise ValueError(f"top_k must be at most the teacher's {classes} classes; got {wish.top_k}.")
        values, indices = jax.lax.top_k(_log_probabilities(said), wish.top_k)
        return {"top_values": values.astype(dtype), "top_indices": indices.astype(jnp.int32)}
    if wish.draws is not None:
        draws, log_p = wish.draws, _log_probabilities(said)
        # One example after the other: each draw is placed among a block's sums.
        indices = jax.lax.map(
            lambda one: _drawn(jax.random.fold_in(jax.random.key(wish.seed), one[0]), one[1], draws), (rows, log_p)
        )
        values = jnp.take_along_axis(log_p, indices, axis=-1)
        return {"sampled_values": values.astype(dtype), "sampled_indices": indices}
    for name in wish.features:
        if name not in said.features:
            raise ValueError(f"features must be among the teacher's, {sorted(said.features)}; got {name!r}.")
    named = {"logits": said.logits} if wish.logits else {}
    named |= {f"features.{name}": said.features[name] for name in wish.features if not _is_shared(said, name)}
    if not named:
        raise ValueError(
            f"features must name one that belongs to examples where logits are not kept; got {wish.features}."
        )
    # Class numbers and places are no numbers to round, and index as they are.
    return {name: one if _is_whole(one) else one.astype(dtype) for name, one in named.items()}


def entries(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The batch's entries, out of arrays by flat names."""
    if "top_values" in arrays or "sampled_values" in arrays:
        return dict(arrays)
    features = {name.partition(".")[2]: array for name, array in arrays.items() if name != "logits"}
    return {"teacher": Outputs(arrays.get("logits"), features)}


def _is_shared(said: Outputs, name: str) -> bool:
    return isinstance(said.features[name], Shared)


def _is_whole(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.bool_)


def _log_probabilities(said: Outputs) -> jax.Array:
    return jax.nn.log_softmax(said.logits.astype(jnp.float32))


def _drawn(key: jax.Array, log_p: jax.Array, draws: int) -> jax.Array:
    """Classes drawn by their probabilities, with replacement: [..., classes] to int32 [..., draws].

    From the least probable to the most, first a block of classes and then a class in it, so that float32 tells a rare class
    from its neighbours, and one of probability 0 is never drawn. One or two numbers a draw, not one for each class too.
    """
    rows = log_p.reshape(-1, log_p.shape[-1])
    order = jnp.argsort(rows, axis=-1)
    missing = -rows.shape[-1] % _BLOCK
    p = jnp.pad(jnp.exp(jnp.take_along_axis(rows, order, axis=-1)), ((0, 0), (missing, 0)))
    blocks = p.reshape(len(rows), -1, _BLOCK)
    first, second = jax.random.split(key)
    block = _place(jnp.sum(blocks, axis=-1)[:, None], _fine_uniform(first, (len(rows), draws)))
    chosen = jnp.take_along_axis(blocks, block[..., None], axis=1)
    inside = _place(chosen, _fine_uniform(second, (len(rows), draws)))
    found = jnp.take_along_axis(order, block * _BLOCK + inside - missing, axis=-1)
    return found.astype(jnp.int32).reshape(*log_p.shape[:-1], draws)


def _place(shares: jax.Array, uniform: jax.Array) -> jax.Array:
    """Where in the shares [..., n] a uniform number [...] of their sum stands."""
    sums = jax.lax.cummax(jnp.cumsum(shares, axis=-1), axis=shares.ndim - 1)
    return jnp.minimum(jnp.sum(sums <= uniform[..., None] * sums[..., -1:], axis=-1), shares.shape[-1] - 1)


def _fine_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers between 0 and 1 that are as fine near 0 as float32 is; JAX's own are multiples of 2⁻²³."""
    coarse, fine = jax.random.uniform(key, (2, *shape))
    return coarse + fine * 2.0**-23
