"""Losses over a large vocabulary, from hidden states and heads: [tokens, vocabulary] logits are never there as a whole."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _mixtures, _tokens, _word_sums
from kdjax.losses._vocabulary import Network, check_chunk, sums

_OF_MIXTURE = _word_sums.divergence(_mixtures.of_both)


def linear_cross_entropy(
    hidden: Float[Array, "*batch dim"],
    head: Float[Array, "dim vocabulary"],
    labels: Int[Array, "*batch"],
    *,
    chunk: int | None = None,
    where: Bool[Array, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of labels with the softmax of hidden states times a head, whose logits are made a chunk at a time.

    $$\log \sum_v \exp z_v - z_y, \qquad z = h W$$

    Args:
      hidden: hidden states, one for each token. float16 and bfloat16 are multiplied as they are and summed in float32.
      head: W, a column for each word. A bias is a row more of it, for a hidden state that is 1 everywhere.
      labels: y, a word's number for each token.
      chunk: words at a time; None: as many as make some four million logits.
      where: the tokens that count, [...] or its first axes; the others' loss is 0, and their hidden states, NaN or not,
        have no gradient.
      axis_name: inside `jax.shard_map` or `jax.pmap`, the axis over which the vocabulary is split: `head` then has this
        device's words, in order, and `hidden` and `labels` are the same on all devices.

    Returns:
      One number ≥ 0 for each token, in nats; NaN for a label that is no word.

    Raises:
      ValueError: shapes do not fit, the arrays are of no such type, or chunk is not a whole number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import linear_cross_entropy
      >>> head = jnp.zeros((4, 1000))
      >>> loss = linear_cross_entropy(jnp.ones((2, 3, 4)), head, jnp.zeros((2, 3), int), chunk=128)
      >>> loss.shape, bool(jnp.allclose(loss, jnp.log(1000)))
      ((2, 3), True)

    Note:
      The gradient makes each chunk's logits once more: four products in the place of three. It can be taken backward once,
      not forward (`jax.jvp`), and not of itself.

    Reference:
      Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2025, section 4: the logits in pieces, going back
      too. https://arxiv.org/abs/2411.09009
    """
    network = _tokens.checked("hidden", hidden, "head", head, axis_name)
    check_chunk(chunk)
    shape = jnp.shape(hidden)[:-1]
    numbers = _checks.labels("labels", labels, shape).reshape(-1)
    _checks.where(where, shape)
    words = network.head.shape[1]
    here = numbers if axis_name is None else numbers - words * lax.axis_index(axis_name)
    (network,) = _tokens.kept((network,), where, shape)
    one = jnp.ones((1, 1), jnp.result_type(network.hidden, network.head, jnp.float32))
    largest, total, picked = sums(_word_sums.LABEL, (network,), one, here, None, chunk)
    largest, log_total = _over_axis(largest, total, axis_name)
    all_words = words if axis_name is None else words * lax.axis_size(axis_name)
    values = (largest - _summed(picked, axis_name)) + log_total
    values = jnp.where((numbers < 0) | (numbers >= all_words), jnp.nan, _not_below_zero(values))
    return _tokens.as_given(values, where, shape)


def linear_soft_target_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_head: Float[Array, "student_dim vocabulary"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_head: Float[Array, "teacher_dim vocabulary"],
    *,
    temperature: Number = 1.0,
    chunk: int | None = None,
    where: Bool[Array, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""`soft_target_kl` of both networks' hidden states times their heads, whose logits are made a chunk at a time.

    $$T^2 \sum_v p^t_v \, (\log p^t_v - \log p^s_v), \qquad p = \operatorname{softmax}(h W / T)$$

    Args:
      student_hidden: hidden states, one for each token. float16 and bfloat16 are multiplied as they are and summed in
        float32.
      student_head: W, a column for each word. A bias is a row more of it, for a hidden state that is 1 everywhere.
      teacher_hidden: of the same tokens; their dim may differ. Wrap it and its head in `jax.lax.stop_gradient`, or do not
        differentiate by them: their gradients are made only where asked for.
      teacher_head: of the same words.
      temperature: T > 0, one number or one for each token, [...]; larger is softer. May be traced.
      chunk: words at a time; None: as many as make some four million logits.
      where: the tokens that count, [...] or its first axes; the others' loss is 0, and their hidden states, NaN or not,
        have no gradient.
      axis_name: inside `jax.shard_map` or `jax.pmap`, the axis over which the vocabulary is split: both heads then have
        this device's words, in order, and the hidden states are the same on all devices.

    Returns:
      One number ≥ 0 for each token, in nats times T².

    Raises:
      ValueError: shapes do not fit, the arrays are of no such type, chunk is not a whole number above 0, or T is not a
        finite number above 0.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import linear_soft_target_kl, soft_target_kl
      >>> draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
      >>> student, teacher = (draw(0, 6, 4), draw(1, 4, 1000)), (draw(2, 6, 8), draw(3, 8, 1000))
      >>> loss = linear_soft_target_kl(*student, *teacher, chunk=128)
      >>> plain = soft_target_kl(student[0] @ student[1], teacher[0] @ teacher[1], temperature=1.0)
      >>> bool(jnp.allclose(loss, plain, rtol=1e-4))
      True

    Note:
      One pass over the words keeps sums, so that in float32 a divergence far below 1e-6 of the largest |logit| is rounding.
      The gradient makes each chunk's logits once more: six products in the place of four. It can be taken backward once, not
      forward (`jax.jvp`), and not of itself.

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2. https://arxiv.org/abs/1503.02531
      Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, algorithm 3. https://arxiv.org/abs/1805.02867
    """
    student, teacher, numbers, inverse = _tokens.both(
        student_hidden, student_head, teacher_hidden, teacher_head, temperature, chunk, where, axis_name
    )
    values = _relative_entropy(teacher, student, inverse, chunk, axis_name)
    return _tokens.as_given(numbers * values, where, jnp.shape(student_hidden)[:-1])


def linear_reverse_kl(
    student_hidden: Float[Array, "*batch student_dim"],
    student_head: Float[Array, "student_dim vocabulary"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_head: Float[Array, "teacher_dim vocabulary"],
    *,
    temperature: Number = 1.0,
    chunk: int | None = None,
    where: Bool[Array, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""`reverse_kl` of both networks' hidden states times their heads, whose logits are made a chunk at a time.

    $$T^2 \sum_v p^s_v \, (\log p^s_v - \log p^t_v), \qquad p = \operatorname{softmax}(h W / T)$$

    Args:
      student_hidden: as in `linear_soft_target_kl`.
      student_head: likewise.
      teacher_hidden: likewise.
      teacher_head: likewise.
      temperature: T > 0, one number or one for each token, [...]; larger is softer. May be traced.
      chunk: words at a time; None: as many as make some four million logits.
      where: the tokens that count, as in `linear_soft_target_kl`.
      axis_name: the axis over which the vocabulary is split, as in `linear_soft_target_kl`.

    Returns:
      One number ≥ 0 for each token, in nats times T².

    Raises:
      ValueError: as `linear_soft_target_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import linear_reverse_kl
      >>> hidden, head = jnp.ones((2, 4)), jnp.arange(12.0).reshape(4, 3)
      >>> linear_reverse_kl(hidden, head, hidden, head).tolist()
      [0.0, 0.0]

    Note:
      What `linear_soft_target_kl` notes holds here too.

    Reference:
      Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, section 2.1. https://arxiv.org/abs/2306.08543
    """
    student, teacher, numbers, inverse = _tokens.both(
        student_hidden, student_head, teacher_hidden, teacher_head, temperature, chunk, where, axis_name
    )
    values = _relative_entropy(student, teacher, inverse, chunk, axis_name)
    return _tokens.as_given(numbers * values, where, jnp.shape(student_hidden)[:-1])


def linear_jensen_shannon(
    student_hidden: Float[Array, "*batch student_dim"],
    student_head: Float[Array, "student_dim vocabulary"],
    teacher_hidden: Float[Array, "*batch teacher_dim"],
    teacher_head: Float[Array, "teacher_dim vocabulary"],
    *,
    beta: Number = 0.5,
    temperature: Number = 1.0,
    chunk: int | None = None,
    where: Bool[Array, "..."] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""`jensen_shannon` of both networks' hidden states times their heads, whose logits are made a chunk at a time.

    $$T^2 \left(\beta \operatorname{KL}(p^t \,\Vert\, m) + (1 - \beta) \operatorname{KL}(p^s \,\Vert\, m)\right), \qquad
    m = \beta \, p^t + (1 - \beta) \, p^s, \qquad p = \operatorname{softmax}(h W / T)$$

    Args:
      student_hidden: as in `linear_soft_target_kl`.
      student_head: likewise.
      teacher_hidden: likewise.
      teacher_head: likewise.
      beta: β between 0 and 1, the teacher's part in the mixture; at the ends as in `jensen_shannon`. May be traced.
      temperature: T > 0, one number or one for each token, [...]; larger is softer. May be traced.
      chunk: words at a time; None: as many as make some half a million logits, or 1,024 if these are not over four million.
      where: the tokens that count, as in `linear_soft_target_kl`.
      axis_name: the axis over which the vocabulary is split, as in `linear_soft_target_kl`.

    Returns:
      One number ≥ 0 for each token, in nats times T²; inside the ends it is at most log 2 · T².

    Raises:
      ValueError: as `linear_soft_target_kl`, or β is not between 0 and 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import linear_jensen_shannon
      >>> head = jnp.array([[100.0, -100.0]])
      >>> bool(jnp.allclose(linear_jensen_shannon(jnp.ones((1, 1)), head, -jnp.ones((1, 1)), head), jnp.log(2.0)))
      True

    Note:
      The mixture needs both sums of exponentials before its first word: the words are gone through twice going forward and
      once going back, eight products where the plain form has four.

    Reference:
      Agarwal et al., On-Policy Distillation of Language Models, 2024, section 2. https://arxiv.org/abs/2306.13649
    """
    _checks.between("beta", beta, 0.0, 1.0)
    student, teacher, numbers, inverse = _tokens.both(
        student_hidden, student_head, teacher_hidden, teacher_head, temperature, chunk, where, axis_name
    )
    values = _from_mixture(teacher, student, inverse, jnp.asarray(beta, inverse.dtype), chunk, axis_name)
    return _tokens.as_given(numbers * values, where, jnp.shape(student_hidden)[:-1])


def _relative_entropy(
    first: Network, second: Network, inverse: Array, chunk: int | None, axis_name: str | None
) -> Array:
    """KL(p‖q) for each token."""
    found = sums(_word_sums.GAP, (first, second), inverse, None, None, chunk)
    (largest, log_total), (other, others_log) = (_over_axis(found[at], found[at + 1], axis_name) for at in (0, 2))
    gap = found[4]
    if axis_name is not None:
        below, others_below = (lax.stop_gradient(found[at] - whole) for at, whole in ((0, largest), (2, other)))
        gap = _summed(jnp.exp(jnp.log(found[1]) - log_total + below) * (gap + (below - others_below)), axis_name)
    return _not_below_zero(gap - (log_total - others_log))


def _from_mixture(
    first: Network, second: Network, inverse: Array, beta: Array, chunk: int | None, axis_name: str | None
) -> Array:
    still = lax.stop_gradient(((first, second), inverse))
    found = sums(_word_sums.GAP, *still, None, None, chunk)
    known = tuple(_over_axis(found[at], found[at + 1], axis_name) for at in (0, 2))
    found = sums(_OF_MIXTURE, (first, second), inverse, known, beta.reshape(1, 1), chunk)
    value, of_first, of_second, first_shares, second_shares = (_summed(one, axis_name) for one in found)
    # The known sums move with the logits, by their shares: a 0 in value that has their gradient.
    for slope, shares in ((of_first, first_shares), (of_second, second_shares)):
        value = value - lax.stop_gradient(slope) * (shares - lax.stop_gradient(shares))
    return _not_below_zero(value)


def _not_below_zero(values: Array) -> Array:
    """Rounding below 0 is cut off; the gradient is what it is."""
    return values + lax.stop_gradient(jnp.where(values < 0, -values, 0.0))


def _over_axis(largest: Array, total: Array, axis_name: str | None) -> tuple[Array, Array]:
    """The largest logit m and log Σ exp(z − m) over all devices' words; of m there is no gradient."""
    largest = lax.stop_gradient(largest)
    if axis_name is None:
        return largest, jnp.log(total)
    whole = lax.pmax(largest, axis_name)
    return whole, jnp.log(lax.psum(total * jnp.exp(largest - whole), axis_name))


def _summed(values: Array, axis_name: str | None) -> Any:
    return values if axis_name is None else lax.psum(values, axis_name)
