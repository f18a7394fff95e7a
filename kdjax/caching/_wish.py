"""What is kept of a teacher's outputs: all logits, the largest, some that are drawn, or features alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import _checks
from kdjax._types import Outputs, Shared

_DTYPES = ("float32", "bfloat16", "float16")


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
    for name, count in (("top_k", wish.top_k), ("draws", wish.draws)):
        if count is None:
            continue
        _checks.whole(name, count, 1)
        if wish.features or not wish.logits:
            raise ValueError(
                f"features must be empty and logits true with {name}, which keeps predictions alone; got "
                f"{list(wish.features)} and {wish.logits}."
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
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(wish.seed), row))(rows)
        log_p = _log_probabilities(said)
        indices = jax.vmap(lambda key, own: _drawn(key, own, wish.draws or 0))(keys, log_p)
        values = jnp.take_along_axis(log_p, indices, axis=-1)
        return {"sampled_values": values.astype(dtype), "sampled_indices": indices}
    for name in wish.features:
        if name not in said.features:
            raise ValueError(f"features must be among the teacher's, {sorted(said.features)}; got {name!r}.")
    named = {"logits": said.logits} if wish.logits else {}
    named |= {f"features.{name}": said.features[name] for name in wish.features if not _is_shared(said, name)}
    return {name: one.astype(dtype) for name, one in named.items()}


def entries(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The batch's entries, out of arrays by flat names."""
    if "top_values" in arrays or "sampled_values" in arrays:
        return dict(arrays)
    features = {name.partition(".")[2]: array for name, array in arrays.items() if name != "logits"}
    return {"teacher": Outputs(arrays.get("logits"), features)}


def _is_shared(said: Outputs, name: str) -> bool:
    return isinstance(said.features[name], Shared)


def _log_probabilities(said: Outputs) -> jax.Array:
    return jax.nn.log_softmax(said.logits.astype(jnp.float32))


def _drawn(key: jax.Array, log_p: jax.Array, draws: int) -> jax.Array:
    """Classes drawn by their probabilities, with replacement: [..., classes] to int32 [..., draws].

    By where uniform numbers stand among the sums of probabilities: one number a draw, not one for each class too.
    """
    sums = jnp.cumsum(jnp.exp(log_p), axis=-1).reshape(-1, log_p.shape[-1])
    places = jax.random.uniform(key, (len(sums), draws)) * sums[:, -1:]
    found = jax.vmap(lambda own, its: jnp.searchsorted(own, its, side="right"))(sums, places)
    # The last class of any probability, where rounding puts a number at the very end.
    last = jax.vmap(jnp.searchsorted)(sums, sums[:, -1])[:, None]
    return jnp.minimum(found, last).astype(jnp.int32).reshape(*log_p.shape[:-1], draws)
