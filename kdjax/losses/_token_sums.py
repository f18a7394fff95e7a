"""A weighted sum of a loss over many tokens, whose gradient is made going forward, some tokens at a time."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from kdjax import _checks
from kdjax.losses import _math, _tokens
from kdjax.losses._vocabulary import Network, alike, check_chunk, narrow

_OF = "of "  # before the name of a hyper-parameter of which each token has its own
_TOKENS = 512  # of a chunk where none is named
_STILL = {"labels", "where"}  # of each token, and no number with a slope


def linear_weighted_sum(
    loss: Callable[..., Array],
    weights: Float[Array, "*batch"],
    student_hidden: Float[Array, "*batch student_dim"],
    student_head: Float[Array, "student_dim vocabulary"],
    teacher_hidden: Float[Array, "*batch teacher_dim"] | None = None,
    teacher_head: Float[Array, "teacher_dim vocabulary"] | None = None,
    *,
    labels: Int[Array, "*batch"] | None = None,
    chunk: int | None = None,
    where: Bool[Array, "..."] | None = None,
    **hyper_parameters: Any,
) -> Float[Array, ""]:
    r"""The weighted sum over tokens of any loss on logits, from hidden states and heads, a chunk of tokens at a time.

    $$\sum_i w_i \, \ell(h^s_i W^s,\; h^t_i W^t)$$

    This is the one function here that reduces, and for a reason: who knows a token's weight going forward can make its
    gradient there, from logits that are still at hand, and need not make them again. A loss that returns one number per
    token cannot know the weights before the backward pass.

    Args:
      loss: on logits, ``loss(student, teacher, **hyper_parameters)`` or with ``labels`` after them; one number for each
        token, which depends on that token alone: `soft_target_kl`, `skewed_kl`, optax's cross-entropy, your own.
      weights: w, one number for each token, such as ``where / where.sum()`` for a mean.
      student_hidden: hidden states. float16 and bfloat16 are multiplied as they are and summed in float32.
      student_head: W, a column for each word.
      teacher_hidden: of the same tokens; None, with its head, for a loss of one network. Wrap both in
        `jax.lax.stop_gradient`, or do not differentiate by them: their gradients are made only where asked for.
      teacher_head: of the same words.
      labels: a word's number for each token, for a loss that takes them.
      chunk: tokens at a time; None: 512. There are some six arrays of chunk × vocabulary numbers.
      where: the tokens that count; the others' hidden states, NaN or not, are as if they were 0, and so is their weight;
        hyper-parameters of their own, such as T, may be anything.
      **hyper_parameters: handed on by name: numbers, or one for each token, or for each entry of the tokens' first axes.

    Returns:
      The sum. Its gradient can be taken backward once, not forward (`jax.jvp`), and not of itself.

    Raises:
      ValueError: shapes do not fit, the arrays are of no such type, chunk is not a whole number above 0, or `loss` is one of
        kdjax's that compare examples with each other.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import linear_weighted_sum, soft_target_kl
      >>> draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
      >>> arrays = draw(0, 6, 4), draw(1, 4, 1000), draw(2, 6, 8), draw(3, 8, 1000)
      >>> total = linear_weighted_sum(soft_target_kl, jnp.ones(6), *arrays, chunk=4, temperature=2.0)
      >>> plain = soft_target_kl(arrays[0] @ arrays[1], arrays[2] @ arrays[3], temperature=2.0).sum()
      >>> bool(jnp.allclose(total, plain, rtol=1e-4))
      True

    Note:
      Four products where the plain form has four; `linear_soft_target_kl` has six, and keeps less: here the head's gradient
      is added up in float32. A head that is split over devices, and tokens sharded over devices under `jax.jit`, are for
      `linear_soft_target_kl`.

    Reference:
      Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, 2024, where the gradient is made going forward for
      the cross-entropy. https://arxiv.org/abs/2410.10989
    """
    if compares(loss):
        name = getattr(loss, "__name__", repr(loss))
        raise ValueError(
            f"loss must give each token a number of its own; got {name}, which compares tokens with each other."
        )
    shape = jnp.shape(student_hidden)[:-1]
    if (teacher_hidden is None) != (teacher_head is None):
        raise ValueError("teacher_hidden and teacher_head must be given together; got one of them.")
    counted: tuple[Network, ...]
    if teacher_hidden is None:
        check_chunk(chunk)
        _checks.where(where, shape)
        network = _tokens.checked("student_hidden", student_hidden, "student_head", student_head, None)
        counted = _tokens.kept((network,), where, shape)
    else:
        arrays = student_hidden, student_head, teacher_hidden, teacher_head
        *both, _, _ = _tokens.both(*arrays, 1.0, chunk, where, None)
        counted = tuple(both)
    if jnp.shape(weights) != shape:
        raise ValueError(f"weights must have one number for each token, shape {shape}; got shape {jnp.shape(weights)}.")
    each: dict[str, Any] = {"weights": _tokens.as_given(jnp.asarray(weights), where, shape).reshape(-1)}
    if labels is not None:
        known = _checks.labels("labels", labels, shape)
        each["labels"] = (known if where is None else jnp.where(_math.spread(where, shape), known, 0)).reshape(-1)
    if where is not None:
        each["where"] = jnp.broadcast_to(_math.spread(where, shape), shape).reshape(-1)
    own = {name: value for name, value in hyper_parameters.items() if _has_one_each(value, shape)}
    if where is not None:
        own = {name: _tokens.stood_in(jnp.asarray(value), where) for name, value in own.items()}
    each |= {_OF + name: _math.spread(jnp.asarray(value), shape).reshape(-1) for name, value in own.items()}
    numbers = {name: value for name, value in hyper_parameters.items() if name not in own and _has_arrays(value)}
    static = {name: value for name, value in hyper_parameters.items() if name not in own and name not in numbers}
    tokens = counted[0].hidden.shape[0]
    call = _Call(loss, tuple(sorted(static.items())), min(chunk or _TOKENS, max(tokens, 1)))
    for name, value in numbers.items():
        its = tuple(getattr(value, "shape", ()))
        if its and its[0] in (call.chunk, tokens % call.chunk):
            raise ValueError(
                f"{name} must have one number for all, or for each token, shape {shape} or its first axes; got shape {its}, "
                "which would be taken for that of a chunk of tokens. If it is of something else, choose another chunk."
            )
    everything: tuple[Any, ...] = alike((counted, each, jax.tree.map(jnp.asarray, numbers)))
    return _sum(call, *everything)


def compares(loss: Callable[..., Array]) -> bool:
    """Whether it is a loss of kdjax over the whole batch, such as `dist`, as its argument ``where`` tells."""
    while isinstance(loss, partial):
        loss = loss.func
    ours = (getattr(loss, "__module__", None) or "").startswith("kdjax.losses")
    return ours and "where" in inspect.signature(inspect.unwrap(loss)).parameters


def _has_one_each(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is an array with a number for each token, or for each entry of their first axes."""
    own = tuple(getattr(value, "shape", ()))
    return bool(own) and own == shape[: len(own)]


def _has_arrays(value: Any) -> bool:
    """Of anything else the loss itself can say, under `jax.jit` too, whether it is right."""
    return any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))


@jax.tree_util.register_static
class _Static(NamedTuple):
    """What is known while tracing, among arrays."""

    value: Any


class _Call(NamedTuple):
    """A loss on logits, its settings that are no numbers, and how many tokens it is given at a time."""

    loss: Callable[..., Array]
    settings: tuple[tuple[str, Any], ...]
    chunk: int

    def total(self, logits: tuple[Array, ...], each: dict[str, Any], numbers: dict[str, Any]) -> Array:
        """Σ w · loss of some tokens; where one does not count, nothing comes back to its logits, be the slope NaN."""
        counts = each.get("where")
        if counts is not None:
            logits = tuple(jnp.where(counts[:, None], one, 0) for one in logits)
        hyper_parameters = dict(self.settings) | numbers
        hyper_parameters |= {name.removeprefix(_OF): value for name, value in each.items() if name.startswith(_OF)}
        labels = (each["labels"],) if "labels" in each else ()
        values = self.loss(*logits, *labels, **hyper_parameters)
        if jnp.shape(values) != logits[0].shape[:1]:
            raise ValueError(
                f"loss must return one number for each token, shape {logits[0].shape[:1]}; got {jnp.shape(values)}."
            )
        return jnp.sum(each["weights"] * (values if counts is None else jnp.where(counts, values, 0)))


_Networks = tuple[Network, ...]
_Numbers = dict[str, Any]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(call: _Call, networks: _Networks, each: _Numbers, numbers: _Numbers) -> Array:
    def advance(total: Array, some: tuple[tuple[Array, ...], _Numbers]) -> tuple[Array, None]:
        hidden, own = some
        return total + call.total(_logits(hidden, networks), own, numbers), None

    return _over_tokens(advance, _zero(networks), (tuple(one.hidden for one in networks), each), call.chunk)[0]


def _forward(call: _Call, *given: Any) -> tuple[Array, Any]:
    networks, each, numbers = jax.tree.map(lambda one: one.value, given, is_leaf=_is_primal)
    asked = jax.tree.map(lambda one: one.perturbed, given, is_leaf=_is_primal)
    moving = {name: value for name, value in each.items() if name not in _STILL}

    def advance(carry: Any, some: tuple[tuple[Array, ...], _Numbers]) -> tuple[Any, Any]:
        total, heads, of_numbers = carry
        hidden, own = some
        moves = {name: own[name] for name in moving}
        function = lambda logits, moves, numbers: call.total(logits, own | moves, numbers)  # noqa: E731
        value, pull_back = jax.vjp(function, _logits(hidden, networks), moves, numbers)
        slopes, of_each, more = pull_back(jnp.ones_like(value))
        of_hidden, of_heads = [], []
        for slope, rows, network, wanted, head in zip(slopes, hidden, networks, asked[0], heads, strict=True):
            back: Any = ()
            ahead: Any = ()
            slope = narrow(slope, network.head)
            if wanted.hidden:
                back = jnp.einsum("nv,dv->nd", slope, network.head, preferred_element_type=total.dtype)
                back = back.astype(rows.dtype)
            if wanted.head:
                ahead = head + jnp.einsum("nd,nv->dv", rows, slope, preferred_element_type=total.dtype)
            of_hidden.append(back)
            of_heads.append(ahead)
        of_numbers = jax.tree.map(jnp.add, of_numbers, more)
        return (total + value, tuple(of_heads), of_numbers), (tuple(of_hidden), of_each)

    zero = _zero(networks)
    heads = tuple(
        jnp.zeros(one.head.shape, zero.dtype) + zero if wanted.head else ()
        for one, wanted in zip(networks, asked[0], strict=True)
    )
    start = zero, heads, jax.tree.map(lambda one: jnp.zeros_like(one) + zero.astype(one.dtype), numbers)
    (total, heads, of_numbers), (of_hidden, of_each) = _over_tokens(
        advance, start, (tuple(one.hidden for one in networks), each), call.chunk
    )
    types = _Static(tuple((one.hidden.dtype, one.head.dtype) for one in networks))
    return total, (of_hidden, heads, of_each, of_numbers, types, _Static(tuple(_STILL & each.keys())))


def _backward(call: _Call, kept: Any, cotangent: Any) -> tuple[Any, ...]:
    of_hidden, heads, of_each, of_numbers, types, still = kept

    def scaled(slope: Any, dtype: Any) -> Any:
        return None if isinstance(slope, tuple) else (slope * cotangent).astype(dtype)

    networks = tuple(
        Network(scaled(hidden, own), scaled(head, its))
        for hidden, head, (own, its) in zip(of_hidden, heads, types.value, strict=True)
    )
    of_each, of_numbers = jax.tree.map(lambda slope: scaled(slope, slope.dtype), (of_each, of_numbers))
    return networks, of_each | dict.fromkeys(still.value), of_numbers


_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_primal(one: Any) -> bool:
    return hasattr(one, "perturbed")


def _zero(networks: _Networks) -> Array:
    """0 in the dtype that is summed in, of the same types over device axes as what is added to it."""
    dtype = jnp.result_type(jnp.float32, *(one.hidden.dtype for one in networks), *(one.head.dtype for one in networks))
    return jnp.zeros_like(networks[0].hidden, dtype).sum()


def _logits(hidden: tuple[Array, ...], networks: _Networks) -> tuple[Array, ...]:
    dtype = _zero(networks).dtype
    pairs = zip(hidden, networks, strict=True)
    return tuple(jnp.einsum("nd,dv->nv", rows, one.head, preferred_element_type=dtype) for rows, one in pairs)


def _over_tokens(advance: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, chunk: int) -> tuple[Any, Any]:
    """`advance` over chunks of tokens and what is left: the last carry, and all rows of what it returns."""
    tokens = jax.tree.leaves(rows)[0].shape[0]
    whole = tokens // chunk * chunk
    found = []
    if whole:
        chunks = jax.tree.map(lambda one: one[:whole].reshape(-1, chunk, *one.shape[1:]), rows)
        carry, out = lax.scan(advance, carry, chunks)
        found.append(jax.tree.map(lambda one: one.reshape(whole, *one.shape[2:]), out))
    if tokens - whole or not whole:
        carry, out = advance(carry, jax.tree.map(lambda one: one[whole:], rows))
        found.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
