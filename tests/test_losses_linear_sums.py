"""`losses.linear_weighted_sum`: any loss on logits, summed over tokens from hidden states and heads, chunk by chunk."""

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
from kdjax.losses import linear_weighted_sum, soft_target_kl

WORDS = 40
LOSSES = {
    "soft_target_kl": soft_target_kl,
    "skewed_kl": functools.partial(losses.skewed_kl, alpha=0.3),
    "own": lambda student, teacher, temperature: jnp.sum((student - teacher) ** 2, axis=-1) / temperature,
}


def arrays(*leading, words=WORDS):
    draw = np.random.default_rng(0).normal
    return tuple(jnp.asarray(draw(size=shape)) for shape in ((*leading, 5), (5, words), (*leading, 7), (7, words)))


def of_weights(*leading):
    return jnp.asarray(np.random.default_rng(9).uniform(0.5, 1.5, leading))


@pytest.mark.parametrize("chunk", [1, 4, 6, None])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_weighted_sum_of_the_plain_form(name, chunk):
    """To float64's last digits: value, and gradients of all arrays, of the weights and of each token's temperature."""
    with jax.enable_x64(True):
        temperature = jnp.asarray(np.random.default_rng(3).uniform(0.5, 2.0, (2, 3)))
        inputs = (*arrays(2, 3), of_weights(2, 3), temperature)

        def ours(h, w, t, v, weights, temperature):
            return linear_weighted_sum(LOSSES[name], weights, h, w, t, v, chunk=chunk, temperature=temperature)

        def plain(h, w, t, v, weights, temperature):
            return jnp.sum(weights * LOSSES[name](h @ w, t @ v, temperature=temperature))

        found, wanted = (jax.jit(jax.value_and_grad(f, argnums=tuple(range(6))))(*inputs) for f in (ours, plain))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_one_temperature_for_all_tokens_has_one_gradient():
    inputs = arrays(6)
    ours = lambda t: linear_weighted_sum(soft_target_kl, jnp.ones(6), *inputs, chunk=4, temperature=t)  # noqa: E731
    plain = lambda t: soft_target_kl(inputs[0] @ inputs[1], inputs[2] @ inputs[3], temperature=t).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(ours)(2.0), jax.grad(plain)(2.0), rtol=1e-4)


def test_a_loss_of_one_network_and_labels():
    hidden, head, _, _ = arrays(2, 3)
    labels, loss = jnp.arange(6).reshape(2, 3), optax.losses.softmax_cross_entropy_with_integer_labels
    ours = lambda h, w: linear_weighted_sum(loss, of_weights(2, 3), h, w, labels=labels, chunk=4)  # noqa: E731
    plain = lambda h, w: jnp.sum(of_weights(2, 3) * loss(h @ w, labels))  # noqa: E731
    found, wanted = (jax.value_and_grad(f, argnums=(0, 1))(hidden, head) for f in (ours, plain))
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 3, 4, None])
def test_a_number_for_each_example_goes_to_its_tokens(chunk):
    """Also where there are as many examples as a chunk has tokens."""
    given, temperature = arrays(4, 3), jnp.array([0.5, 1.0, 2.0, 4.0])
    found = linear_weighted_sum(soft_target_kl, of_weights(4, 3), *given, temperature=temperature, chunk=chunk)
    logits = given[0] @ given[1], given[2] @ given[3]
    wanted = jnp.sum(of_weights(4, 3) * soft_target_kl(*logits, temperature=temperature))
    chex.assert_trees_all_close(found, wanted, rtol=1e-5)


def test_what_does_not_count_sends_no_nan_back():
    """Two networks with no hidden state agree, where a distance has no slope; and a T that is none reaches no head."""
    hidden, head, its, its_head = arrays(6)
    where = jnp.array([True, False, True, True, False, True])
    temperature = jnp.where(where, 2.0, 0.0)

    def hellinger(student, teacher, *, temperature):
        own, other = (jnp.sqrt(jax.nn.softmax(one / temperature[:, None])) for one in (student, teacher))
        return jnp.sqrt(jnp.sum((own - other) ** 2, axis=-1))

    def total(h, w, t, v, weights, temperature, **settings):
        return linear_weighted_sum(hellinger, weights, h, w, t, v, chunk=4, temperature=temperature, **settings)

    step = jax.value_and_grad(total, argnums=tuple(range(6)))
    weights = of_weights(6)
    value, slopes = step(hidden, head, its, its_head, weights, temperature, where=where)
    wanted, wanted_slopes = step(hidden[where], head, its[where], its_head, weights[where], temperature[where])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for place, (slope, its_slope) in enumerate(zip(slopes, wanted_slopes, strict=True)):
        counted = slope if place in (1, 3) else slope[where]
        np.testing.assert_allclose(counted, its_slope, rtol=1e-4, atol=1e-5)
        assert np.isfinite(slope).all()
    _, broken = step(hidden * where[:, None], head, its * where[:, None], its_head, weights, temperature)
    assert not np.isfinite(broken[1]).any()  # the control


def test_labels_of_tokens_that_do_not_count_may_be_none():
    hidden, head, _, _ = arrays(2, 3)
    labels, loss = jnp.arange(6).reshape(2, 3), optax.losses.softmax_cross_entropy_with_integer_labels
    where = labels != 4
    given = [jnp.where(where, labels, other) for other in (-100, 0)]
    both = [linear_weighted_sum(loss, of_weights(2, 3), hidden, head, labels=one, where=where) for one in given]
    assert both[0] == both[1]
    assert np.isfinite(both[0])


@pytest.mark.parametrize("whole_examples", [False, True])
def test_tokens_that_do_not_count_are_as_if_they_were_not_there(whole_examples):
    where = np.array([True, False, True]) if whole_examples else np.random.default_rng(5).random((3, 4)) < 0.6
    kept = np.broadcast_to(where.reshape(3, -1), (3, 4))
    hidden, head, its, its_head = arrays(3, 4)
    broken = [jnp.where(kept[..., None], one, np.nan) for one in (hidden, its)]
    weights = of_weights(3, 4)

    def total(h, w, t, v, weights, **settings):
        return linear_weighted_sum(soft_target_kl, weights, h, w, t, v, chunk=5, **settings)

    step = jax.value_and_grad(total, argnums=(0, 1, 2, 3))
    value, slopes = step(broken[0], head, broken[1], its_head, weights, where=jnp.asarray(where))
    wanted, wanted_slopes = step(hidden[kept], head, its[kept], its_head, weights[kept])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for place in (0, 2):
        np.testing.assert_allclose(slopes[place][kept], wanted_slopes[place], rtol=1e-4, atol=1e-5)
        assert not np.any(slopes[place][~kept])
    for place in (1, 3):
        np.testing.assert_allclose(slopes[place], wanted_slopes[place], rtol=1e-4, atol=1e-5)


def mean(*inputs):
    return linear_weighted_sum(soft_target_kl, jnp.full(inputs[0].shape[:-1], 1 / 8), *inputs, chunk=3, temperature=2.0)


def test_under_vmap_scan_and_remat():
    stacked = tuple(jnp.stack([one] * 3) * jnp.arange(1.0, 4.0)[:, None, None] for one in arrays(8))
    gradient = jax.grad(mean, argnums=(0, 1))
    each = [gradient(*(one[place] for one in stacked)) for place in range(3)]
    wanted = jax.tree.map(lambda *some: jnp.stack(some), *each)
    scanned = jax.jit(lambda *four: lax.scan(lambda carry, one: (carry, gradient(*one)), 0, four)[1])
    remat = jax.grad(
        lambda *four: sum(jax.checkpoint(mean)(*(one[n] for one in four)) for n in range(3)), argnums=(0, 1)
    )
    for found in (jax.jit(jax.vmap(gradient))(*stacked), scanned(*stacked), jax.jit(remat)(*stacked)):
        chex.assert_trees_all_close(tuple(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_tokens_over_devices_with_the_heads_on_each(way):
    inputs = arrays(8)
    wanted = jax.grad(mean, argnums=(0, 1))(*inputs)
    if way == "shard_map":
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        rows, everywhere = PartitionSpec("data"), PartitionSpec()
        specs = rows, everywhere, rows, everywhere
        split = jax.shard_map(
            lambda *four: lax.psum(mean(*four), "data"), mesh=mesh, in_specs=specs, out_specs=everywhere
        )
        found = jax.jit(jax.grad(split, argnums=(0, 1)))(*inputs)
    else:
        parts = [one.reshape(4, 2, -1) if place % 2 == 0 else one for place, one in enumerate(inputs)]

        def gradient(*four):
            of_hidden, of_head = jax.grad(mean, argnums=(0, 1))(*four)
            return of_hidden, lax.psum(of_head, "data")

        of_hidden, of_head = jax.pmap(gradient, "data", in_axes=(0, None, 0, None))(*parts)
        found = of_hidden.reshape(inputs[0].shape), of_head[0]
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_narrow_inputs_are_summed_in_float32():
    half = tuple(jnp.asarray(one, jnp.bfloat16) for one in arrays(8))
    wide = tuple(one.astype(jnp.float32) for one in half)
    (value, slopes), (wanted, wanted_slopes) = (jax.value_and_grad(mean, argnums=(0, 1))(*one) for one in (half, wide))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for one, other in zip(slopes, wanted_slopes, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0.05, atol=0.02)


def test_each_product_is_made_once_and_only_what_is_asked_for():
    """Four for the student's gradients, where `linear_soft_target_kl` makes six."""
    inputs = arrays(3)
    products = lambda function: str(jax.make_jaxpr(function)(*inputs)).count("dot_general")  # noqa: E731
    assert products(mean) == 2
    assert products(jax.grad(mean)) == 3
    assert products(jax.grad(mean, argnums=(0, 1))) == 4
    assert products(jax.grad(mean, argnums=(0, 1, 2, 3))) == 6


def test_no_array_of_all_logits():
    shapes = (512, 32), (32, 4096), (512, 32), (32, 4096)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def program(chunk):
        total = lambda *four: linear_weighted_sum(soft_target_kl, jnp.ones(512), *four, chunk=chunk)  # noqa: E731
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*given).compile().as_text()

    has_all = lambda text: re.search(r"\[(512,4096|4096,512)\]", text) is not None  # noqa: E731
    assert has_all(program(512))  # the control: one chunk
    assert not has_all(program(64))


def test_a_tuple_of_numbers_moves_too():
    inputs = arrays(6)

    def of(function):
        return jax.grad(lambda t: function((t, 2.0)))(jnp.asarray(3.0))

    ours = of(lambda t: linear_weighted_sum(losses.multi_level_instance, jnp.ones(6), *inputs, chunk=4, temperatures=t))
    logits = inputs[0] @ inputs[1], inputs[2] @ inputs[3]
    np.testing.assert_allclose(
        ours, of(lambda t: losses.multi_level_instance(*logits, temperatures=t).sum()), rtol=1e-4
    )


def test_a_wrong_number_is_named_under_jit():
    total = lambda *four: linear_weighted_sum(soft_target_kl, jnp.ones(6), *four, temperature=-1.0)  # noqa: E731
    with pytest.raises(ValueError, match=r"temperature must be a finite number greater than 0; got -1\.0"):
        jax.jit(jax.grad(total))(*arrays(6))


BAD = {
    "loss must give each token a number of its own; got dist": {"loss": losses.dist},
    "weights must have one number for each token, shape (6,); got shape (5,)": {"weights": jnp.ones(5)},
    "teacher_hidden and teacher_head must be given together": {"teacher_head": None},
    "chunk must be a whole number of 1 or more; got 0": {"chunk": 0},
    "student_head and teacher_head must have the same words": {"teacher_head": jnp.ones((7, 3))},
    "loss must return one number for each token, shape (6,); got ()": {
        "loss": lambda *two: soft_target_kl(*two).mean()
    },
    "where must be bools": {"where": jnp.ones(6)},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_a_named_error(words):
    hidden, head, its, its_head = arrays(6)
    good = {"loss": soft_target_kl, "weights": jnp.ones(6), "student_hidden": hidden, "student_head": head}
    good |= {"teacher_hidden": its, "teacher_head": its_head}
    with pytest.raises(ValueError, match=re.escape(words)):
        losses.linear_weighted_sum.__wrapped__(**good | BAD[words])


@pytest.mark.parametrize("numbers", [4, 2])
def test_numbers_of_a_chunk_are_told_from_those_of_tokens(numbers):
    """Six tokens come in chunks of four and two; so many numbers would be read for those of one chunk."""
    with pytest.raises(ValueError, match=rf"temperature must have one number for all, .* got shape \({numbers},\)"):
        losses.linear_weighted_sum(
            losses.soft_target_kl, of_weights(6), *arrays(6), chunk=4, temperature=jnp.ones(numbers)
        )


def test_no_tokens_have_no_loss_and_no_gradient():
    student, head, its, its_head = arrays(0)
    for loss in (losses.linear_soft_target_kl, losses.linear_reverse_kl, losses.linear_jensen_shannon):
        assert loss(student, head, its, its_head).shape == (0,)
        gradients = jax.grad(lambda *two, of=loss: of(*two, its, its_head).sum(), argnums=(0, 1))(student, head)
        chex.assert_trees_all_equal(gradients, (jnp.zeros((0, 5)), jnp.zeros((5, WORDS))))
