"""Sums over a vocabulary whose logits, hidden states times a head, are never there but for a chunk of words.

Going forward each chunk's logits are made, used and dropped; going back they are made again. What is kept in between is
a few numbers for each token. Of the gradients only those are made that somebody asks for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kdjax import _checks

_ENTRIES = 2**22  # of a chunk's logits where no chunk is named: measured, benchmarks/README.md


class Network(NamedTuple):
    """Hidden states and the head that makes logits of them."""

    hidden: Float[Array, "tokens dim"]
    head: Float[Array, "dim vocabulary"]


class Kind(NamedTuple):
    """What is summed over the words.

    Attributes:
      begin: from zeros [tokens] to the carry.
      advance: (carry, the networks' logits of a chunk [tokens, words], its first word, extras) to the carry.
      finish: from the carry to the sums, each [tokens].
      slopes: (logits, first word, extras, sums, the sums' cotangents) to the logits' cotangents, and those of the one
        extra that has a gradient, or None.
      many_arrays: whether it makes so many of a chunk's size that a cache should hold them.
    """

    begin: Callable[..., Any]
    advance: Callable[..., Any]
    finish: Callable[..., tuple[Array, ...]]
    slopes: Callable[..., tuple[tuple[Array, ...], Array | None]]
    many_arrays: bool = False


def sums(
    kind: Kind, networks: tuple[Network, ...], inverse: Array, extras: Any, moving: Any, chunk: int | None
) -> tuple[Array, ...]:
    """The sums of `kind` over all words that are here.

    Args:
      kind: what is summed.
      networks: one or two, of equal tokens and words.
      inverse: what logits are multiplied by, 1/T, [tokens, 1] or [1, 1].
      extras: arrays that `kind` reads, without a gradient.
      moving: the one that has a gradient, or None.
      chunk: words at a time; None: chosen by how many tokens there are.
    """
    tokens, words = networks[0].hidden.shape[0], networks[0].head.shape[1]
    if chunk is None:
        chunk = max(128, _ENTRIES // max(tokens, 1) // 128 * 128)
        if kind.many_arrays:
            chunk = min(chunk, max(1024, chunk // 8))
    everything: tuple[Any, ...] = alike((networks, inverse, extras, moving))
    return _sums(kind, min(chunk, words), *everything)


def check_chunk(chunk: Any) -> None:
    if chunk is not None:
        _checks.whole("chunk", chunk, 1)


def alike(tree: Any) -> Any:
    """All arrays of types that vary over the same device axes, as inside of `jax.shard_map`; the gradient comes back so."""
    leaves, structure = jax.tree.flatten(tree)
    varying = [_varying(leaf) for leaf in leaves]
    everywhere = frozenset().union(*varying)
    missing = [tuple(sorted(everywhere - own)) for own in varying]
    cast = [lax.pcast(leaf, axes, to="varying") if axes else leaf for leaf, axes in zip(leaves, missing, strict=True)]
    return jax.tree.unflatten(structure, cast)


def _varying(leaf: Any) -> frozenset[str]:
    return frozenset(getattr(getattr(jax.typeof(leaf), "manual_axis_type", None), "varying", ()))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(
    kind: Kind, chunk: int, networks: tuple[Network, ...], inverse: Array, extras: Any, moving: Any
) -> tuple[Array, ...]:
    def advance(carry: Any, first: Any, size: int) -> Any:
        logits = [_logits(network, inverse, first, size) for network in networks]
        return kind.advance(carry, *logits, first, extras, moving)

    zeros = jnp.zeros_like(networks[0].hidden[:, 0], _dtype(networks))
    return kind.finish(_over_chunks(advance, kind.begin(zeros), networks[0].head.shape[1], chunk))


def _forward(kind: Kind, chunk: int, networks: Any, inverse: Any, extras: Any, moving: Any) -> tuple[Any, Any]:
    given = (networks, inverse, extras, moving)
    values = jax.tree.map(lambda one: one.value, given, is_leaf=_is_primal)
    asked = jax.tree.map(lambda one: one.perturbed, (networks, inverse, moving), is_leaf=_is_primal)
    found = _sums(kind, chunk, *values)
    return found, (values, found, _Static(asked))


def _backward(kind: Kind, chunk: int, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    (networks, inverse, extras, moving), found, static = kept
    asked_networks, asked_inverse, asked_moving = static.value
    cotangents = tuple(
        jnp.zeros_like(own) if isinstance(one, SymbolicZero) else one
        for one, own in zip(cotangents, found, strict=True)
    )
    dtype = _dtype(networks)

    def advance(carry: Any, first: Any, size: int) -> Any:
        logits = [_logits(network, inverse, first, size) for network in networks]
        slopes, slope = kind.slopes(*logits, first, extras, moving, found, cotangents)
        hidden_slopes, head_slopes, of_inverse, of_moving = carry
        for number, (network, asked) in enumerate(zip(networks, asked_networks, strict=True)):
            scaled = slopes[number] * inverse
            if asked.hidden:
                words = lax.dynamic_slice_in_dim(network.head, first, size, 1)
                product = jnp.einsum("nv,dv->nd", narrow(scaled, words), words, preferred_element_type=dtype)
                hidden_slopes = _replaced(hidden_slopes, number, hidden_slopes[number] + product)
            if asked.head:
                hidden = network.hidden
                product = jnp.einsum("nd,nv->dv", hidden, narrow(scaled, hidden), preferred_element_type=dtype)
                product = product.astype(network.head.dtype)
                slots = lax.dynamic_update_slice_in_dim(head_slopes[number], product, first, 1)
                head_slopes = _replaced(head_slopes, number, slots)
        if asked_inverse:
            # Of y in z = y/T, which is z · T.
            terms = sum(jnp.sum(own * its, axis=1) for own, its in zip(slopes, logits, strict=True))
            of_inverse = of_inverse + terms
        if asked_moving:
            of_moving = of_moving + slope
        return hidden_slopes, head_slopes, of_inverse, of_moving

    row = jnp.zeros_like(networks[0].hidden[:, 0], dtype)
    nothing = (
        tuple(
            jnp.zeros_like(one.hidden, dtype) if asked.hidden else () for one, asked in _both(networks, asked_networks)
        ),
        tuple(jnp.zeros_like(one.head) if asked.head else () for one, asked in _both(networks, asked_networks)),
        row,
        row,
    )
    hidden, head, of_inverse, of_moving = _over_chunks(advance, nothing, networks[0].head.shape[1], chunk)
    none: Any = None
    back = tuple(
        Network(own.astype(network.hidden.dtype) if asked.hidden else none, its if asked.head else none)
        for own, its, (network, asked) in zip(hidden, head, _both(networks, asked_networks), strict=True)
    )
    of_inverse = _summed(of_inverse[:, None] / inverse, inverse) if asked_inverse else None
    return back, of_inverse, None, _summed(of_moving[:, None], moving) if asked_moving else None


_sums.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.tree_util.register_static
class _Static(NamedTuple):
    """What is known while tracing, among arrays."""

    value: Any


def _is_primal(one: Any) -> bool:
    return hasattr(one, "perturbed")


def _both(networks: Any, asked: Any) -> list[tuple[Network, Network]]:
    return [*zip(networks, asked, strict=True)]


def _replaced(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _summed(values: Array, like: Array) -> Array:
    """Values [tokens, 1] as the cotangent of what is one number for each token, or one for all."""
    summed = values if like.shape == values.shape else jnp.sum(values).reshape(like.shape)
    return summed.astype(like.dtype)


def _dtype(networks: tuple[Network, ...]) -> Any:
    return jnp.result_type(jnp.float32, *(one.hidden.dtype for one in networks), *(one.head.dtype for one in networks))


def _logits(network: Network, inverse: Array, first: Any, size: int) -> Float[Array, "tokens words"]:
    words = lax.dynamic_slice_in_dim(network.head, first, size, 1)
    dtype = jnp.result_type(jnp.float32, network.hidden.dtype, network.head.dtype)
    return jnp.einsum("nd,dv->nv", network.hidden, words, preferred_element_type=dtype) * inverse


def narrow(slopes: Array, like: Array) -> Array:
    """As narrow as what they are multiplied by, where that has float32's range: such products are a GPU's fast ones."""
    return slopes.astype(like.dtype) if like.dtype == jnp.bfloat16 else slopes


def _over_chunks(advance: Callable[[Any, Any, int], Any], carry: Any, words: int, chunk: int) -> Any:
    whole, rest = divmod(words, chunk)
    if whole > 1:
        carry = lax.fori_loop(0, whole, lambda number, carry: advance(carry, number * chunk, chunk), carry)
    elif whole:
        carry = advance(carry, 0, chunk)
    return advance(carry, whole * chunk, rest) if rest else carry
