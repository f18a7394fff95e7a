"""Losses over a vocabulary: chunks, tokens that do not count, a head over several devices, and what the program holds."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from kdjax import losses
from kdjax.losses import (
    jensen_shannon,
    linear_cross_entropy,
    linear_jensen_shannon,
    linear_reverse_kl,
    linear_soft_target_kl,
    reverse_kl,
    soft_target_kl,
)

PLAIN = {
    linear_soft_target_kl: soft_target_kl,
    linear_reverse_kl: reverse_kl,
    linear_jensen_shannon: functools.partial(jensen_shannon, beta=0.3),
}
LINEAR = {
    linear_soft_target_kl: linear_soft_target_kl,
    linear_reverse_kl: linear_reverse_kl,
    linear_jensen_shannon: functools.partial(linear_jensen_shannon, beta=0.3),
}
each_loss = pytest.mark.parametrize("loss", LINEAR, ids=lambda loss: loss.__name__)
WORDS = 40


def arrays(*leading, words=WORDS, seed=0):
    draw = np.random.default_rng(seed).normal
    shapes = (*leading, 5), (5, words), (*leading, 7), (7, words)
    return tuple(jnp.asarray(draw(size=shape)) for shape in shapes)


def value_and_gradients(function, inputs, weights, argnums=(0, 1, 2, 3)):
    def weighted(*inputs):
        values = function(*inputs)
        return jnp.sum(weights * values), values

    return jax.jit(jax.value_and_grad(weighted, argnums=argnums, has_aux=True))(*inputs)


def of_weights(*leading):
    return jnp.asarray(np.random.default_rng(9).uniform(0.5, 1.5, leading))


@each_loss
@pytest.mark.parametrize("chunk", [1, 7, 8, 39, 40, 41, None])
def test_chunks_of_any_size_are_the_plain_form(loss, chunk):
    """To float64's last digits, in value and in the gradients of all four arrays."""
    with jax.enable_x64(True):
        temperature = jnp.asarray(np.random.default_rng(3).uniform(0.5, 2.0, (2, 3)))
        inputs, weights = arrays(2, 3), of_weights(2, 3)
        plain = lambda h, w, t, v: PLAIN[loss](h @ w, t @ v, temperature=temperature)  # noqa: E731
        linear = functools.partial(LINEAR[loss], temperature=temperature, chunk=chunk)
        wanted, found = (value_and_gradients(function, inputs, weights) for function in (plain, linear))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("chunk", [7, None])
def test_cross_entropy_is_the_plain_form(chunk):
    with jax.enable_x64(True):
        hidden, head, _, _ = arrays(2, 3)
        labels, weights = jnp.asarray(np.random.default_rng(1).integers(0, WORDS, (2, 3))), of_weights(2, 3)
        plain = lambda h, w: optax.softmax_cross_entropy_with_integer_labels(h @ w, labels)  # noqa: E731
        linear = functools.partial(linear_cross_entropy, labels=labels, chunk=chunk)
        wanted, found = (value_and_gradients(one, (hidden, head), weights, (0, 1)) for one in (plain, linear))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_a_label_that_is_no_word_is_nan_and_one_that_does_not_count_is_nothing():
    hidden, head, _, _ = arrays(4)
    labels = jnp.array([0, WORDS, -100, WORDS - 1])
    assert np.isnan(linear_cross_entropy(hidden, head, labels)).tolist() == [False, True, True, False]
    values = linear_cross_entropy(hidden, head, labels, where=jnp.array([True, False, False, True]))
    assert values[1:3].tolist() == [0.0, 0.0]
    assert (values[np.array([0, 3])] > 0).all()


@each_loss
@pytest.mark.parametrize("whole_examples", [False, True])
def test_tokens_that_do_not_count_are_as_if_they_were_not_there(loss, whole_examples):
    """Be their hidden states NaN, or too large for float32's squares; a mask of examples counts for all their tokens."""
    where = np.array([True, False, True]) if whole_examples else np.random.default_rng(5).random((3, 4)) < 0.6
    kept = np.broadcast_to(where.reshape(3, -1), (3, 4))
    with jax.enable_x64(True):
        hidden, head, its, its_head = arrays(3, 4)
        weights = of_weights(3, 4)
        rubbish = np.where(np.arange(4) % 2, np.nan, 1e300)[None, :, None]
        broken = [jnp.where(kept[..., None], one, rubbish) for one in (hidden, its)]
        few = hidden[kept], head, its[kept], its_head
        (_, values), slopes = value_and_gradients(
            functools.partial(LINEAR[loss], where=jnp.asarray(where), chunk=16),
            (broken[0], head, broken[1], its_head),
            weights,
        )
        (_, wanted), wanted_slopes = value_and_gradients(functools.partial(LINEAR[loss], chunk=16), few, weights[kept])
        np.testing.assert_allclose(values[kept], wanted, 1e-12)
        assert not np.any(values[~kept])
        for place in (1, 3):
            np.testing.assert_allclose(slopes[place], wanted_slopes[place], 1e-9, 1e-12)
        for place in (0, 2):
            np.testing.assert_allclose(slopes[place][kept], wanted_slopes[place], 1e-9, 1e-12)
            assert not np.any(slopes[place][~kept])


# A head that is split over devices

DEVICES = 4
EVERYWHERE, WORDWISE = PartitionSpec(), PartitionSpec(None, "words")


def over_devices(function, in_specs, *, check_vma=True):
    mesh = jax.make_mesh((DEVICES,), ("words",), axis_types=(AxisType.Auto,))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=EVERYWHERE, check_vma=check_vma)


SPLIT = EVERYWHERE, WORDWISE, EVERYWHERE, WORDWISE


def one_and_four(loss, words=WORDS, *, check_vma=True):
    """Compiled value and gradients on one device, and of heads over four."""
    weights = of_weights(6)
    alone = functools.partial(LINEAR[loss], chunk=4)
    split = over_devices(functools.partial(LINEAR[loss], chunk=4, axis_name="words"), SPLIT, check_vma=check_vma)
    inputs = arrays(6, words=words)
    return [
        jax.jit(jax.value_and_grad(lambda *four, of=of: jnp.sum(weights * of(*four)), argnums=(0, 1, 2, 3)))
        .lower(*inputs)
        .compile()
        for of in (alone, split)
    ], inputs


@each_loss
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_head_over_four_devices_is_the_head_on_one(loss, check_vma):
    with jax.enable_x64(True):
        (alone, split), inputs = one_and_four(loss, check_vma=check_vma)
        chex.assert_trees_all_close(split(*inputs), alone(*inputs), rtol=1e-10, atol=1e-12)
    (alone, split), inputs = one_and_four(loss, check_vma=check_vma)
    for found, wanted in zip(jax.tree.leaves(split(*inputs)), jax.tree.leaves(alone(*inputs)), strict=True):
        assert np.abs(found - wanted).max() <= 3e-6 * np.abs(wanted).max()  # float32's own rounding


@each_loss
def test_neither_head_nor_logits_are_gathered(loss):
    """What travels is a few numbers for each token, and the hidden states' gradients; never anything of a word each."""
    (_, split), _ = one_and_four(loss)
    collective = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
    travelling = [line for line in split.as_text().splitlines() if collective.search(line)]
    assert travelling
    assert all(collective.search(line)[1] == "all-reduce" for line in travelling)
    shapes = {shape for line in travelling for shape in re.findall(r"\bf32\[([\d,]*)\]", line)}
    assert {"6,5", "6,7"} <= shapes <= {"", "6", "6,5", "6,7"}  # tokens, and tokens times dim


def test_cross_entropy_counts_words_over_all_devices():
    hidden, head, _, _ = arrays(6)
    labels = jnp.array([0, 9, 10, 25, WORDS - 1, WORDS])
    of = functools.partial(linear_cross_entropy, axis_name="words", chunk=4)
    split = jax.jit(over_devices(of, (EVERYWHERE, WORDWISE, EVERYWHERE)))(hidden, head, labels)
    np.testing.assert_allclose(split, linear_cross_entropy(hidden, head, labels), rtol=1e-6)
    assert np.isnan(split).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("words", [WORDS, DEVICES])
def test_in_pmap_a_value_is_of_all_words_too(words):
    """Also where each device has one of them."""
    hidden, head, its, its_head = arrays(6, words=words)
    parts = [jnp.stack(jnp.split(one, DEVICES, axis=1)) for one in (head, its_head)]
    split = jax.pmap(
        lambda *four: linear_soft_target_kl(*four, axis_name="words"), "words", in_axes=(None, 0, None, 0)
    )(hidden, parts[0], its, parts[1])
    wanted = linear_soft_target_kl(hidden, head, its, its_head)
    np.testing.assert_allclose(split, np.broadcast_to(wanted, split.shape), rtol=1e-5)


def test_data_over_devices_with_the_heads_on_each():
    """The common case: tokens are split, and the heads' gradients are those of all tokens."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    inputs = arrays(8)

    def mean(*four):
        return lax.pmean(linear_soft_target_kl(*four, chunk=16).mean(), "data")

    rows = PartitionSpec("data")
    split = jax.shard_map(mean, mesh=mesh, in_specs=(rows, EVERYWHERE, rows, EVERYWHERE), out_specs=EVERYWHERE)
    wanted = jax.grad(lambda *four: linear_soft_target_kl(*four).mean(), argnums=(0, 1))(*inputs)
    chex.assert_trees_all_close(jax.jit(jax.grad(split, argnums=(0, 1)))(*inputs), wanted, rtol=1e-4, atol=1e-6)


# Under other transformations


@each_loss
def test_under_vmap_scan_and_remat(loss):
    stacked = tuple(jnp.stack([one] * 3) * jnp.arange(1.0, 4.0)[:, None, None] for one in arrays(6))
    gradient = jax.grad(lambda *four: LINEAR[loss](*four, chunk=16).sum(), argnums=(0, 1))
    wanted = [gradient(*(one[place] for one in stacked)) for place in range(3)]
    wanted = jax.tree.map(lambda *each: jnp.stack(each), *wanted)
    scanned = jax.jit(lambda *four: lax.scan(lambda carry, one: (carry, gradient(*one)), 0, four)[1])
    through = jax.grad(
        lambda four: jnp.sum(
            lax.scan(
                jax.checkpoint(lambda carry, one: (carry + LINEAR[loss](*one, chunk=16).sum(), None)), 0.0, tuple(four)
            )[0]
        )
    )
    for found in (jax.jit(jax.vmap(gradient))(*stacked), scanned(*stacked), jax.jit(through)(list(stacked))[:2]):
        chex.assert_trees_all_close(tuple(found), wanted, rtol=1e-4, atol=1e-4)


def products(function, *inputs):
    return str(jax.make_jaxpr(function)(*inputs)).count("dot_general")


def test_only_gradients_that_are_asked_for_are_made():
    """Of a loss in one pass: a product for each head there, the same again going back, and two for each that moves."""
    inputs = arrays(6)
    loss = lambda *four: linear_soft_target_kl(*four, chunk=WORDS).sum()  # noqa: E731
    mixture = lambda *four: linear_jensen_shannon(*four, chunk=WORDS).sum()  # noqa: E731
    label = lambda h, w: linear_cross_entropy(h, w, jnp.arange(6), chunk=WORDS).sum()  # noqa: E731
    assert products(jax.grad(mixture, argnums=(0, 1)), *inputs) == 8
    assert products(jax.grad(label, argnums=(0, 1)), *inputs[:2]) == 4
    assert products(loss, *inputs) == 2
    assert products(jax.grad(loss, argnums=(0, 1)), *inputs) == 6
    assert products(jax.grad(loss), *inputs) == 5
    assert products(jax.grad(loss, argnums=(0, 1, 2, 3)), *inputs) == 8
    stopped = lambda h, w: loss(h, w, *lax.stop_gradient(inputs[2:]))  # noqa: E731
    assert products(jax.grad(stopped, argnums=(0, 1)), *inputs[:2]) == 6


def test_narrow_inputs_are_summed_in_float32():
    half = tuple(jnp.asarray(one, jnp.bfloat16) for one in arrays(6))
    wide = tuple(one.astype(jnp.float32) for one in half)
    for loss in LINEAR.values():
        values, gradients = jax.value_and_grad(lambda *four, of=loss: of(*four).sum(), argnums=(0, 1))(*half)
        wanted, wanted_gradients = jax.value_and_grad(lambda *four, of=loss: of(*four).sum(), argnums=(0, 1))(*wide)
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
        for one, other in zip(gradients, wanted_gradients, strict=True):
            assert one.dtype == jnp.bfloat16
            np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0.05, atol=0.02)


# What the program holds


def program(function, tokens, dim, words, dtype):
    shapes = (tokens, dim), (dim, words), (tokens, dim), (dim, words)
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(jax.value_and_grad(lambda *four: function(*four).mean(), argnums=(0, 1))).lower(*given).compile()


def has_all_logits(compiled, tokens, words):
    return any(
        {str(tokens), str(words)} <= {*shape.split(",")} for shape in re.findall(r"\[([\d,]+)\]", compiled.as_text())
    )


@each_loss
def test_no_array_of_all_logits_and_little_memory(loss):
    """XLA's account at 8,192 tokens × 1,024 × 131,072 words in bfloat16; the plain form takes 22 GB."""
    compiled = program(LINEAR[loss], 8192, 1024, 131_072, jnp.bfloat16)
    assert not has_all_logits(compiled, 8192, 131_072)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.4e9


def test_the_plain_form_has_all_logits():
    """The control, at a size that is compiled soon."""
    compiled = program(lambda h, w, t, v: soft_target_kl(h @ w, t @ v), 512, 32, 4096, jnp.float32)
    assert has_all_logits(compiled, 512, 4096)
    ours = program(linear_soft_target_kl, 512, 32, 4096, jnp.float32)
    assert has_all_logits(ours, 512, 4096)  # one chunk is enough for so few
    assert not has_all_logits(
        program(functools.partial(linear_soft_target_kl, chunk=512), 512, 32, 4096, jnp.float32), 512, 4096
    )


def test_losses_over_a_vocabulary_are_exported():
    assert {loss.__name__ for loss in LINEAR} | {"linear_cross_entropy"} <= {*losses.__all__}
