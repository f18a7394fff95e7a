"""The numeric law where a loss has something of its own: classes at −∞, far clouds, twins, blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import BY_NAME

from kdjax import losses
from kdjax.losses import _angles, _math
from kdjax.testing import inputs
from kdjax.testing._calling import bound, jitted, made, value_and_gradients


def close(actual, wanted, relative, absolute=0.0):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), relative, absolute)


def test_classes_at_minus_infinity_count_nothing():
    student, teacher = made(BY_NAME["soft_target_kl"])
    masked = (jnp.pad(a, ((0, 0), (0, 2)), constant_values=-jnp.inf) for a in (student, teacher))
    (_, values), gradients = value_and_gradients(BY_NAME["soft_target_kl"], (0, 1))(*masked)
    close(values, jitted(BY_NAME["soft_target_kl"])(student, teacher), 1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["jensen_shannon", "skewed_kl", "reverse_skewed_kl", "channel_wise"])
def test_what_one_network_excludes_has_a_gradient_in_the_other(name):
    """Against a logit so low that its share is 0 too, at all weights of a mixture."""
    first, second = np.random.default_rng(0).standard_normal((2, 2, 1, 3, 1) if name == "channel_wise" else (2, 2, 3))
    given = {
        "channel_wise": [{}],
        "jensen_shannon": [{"beta": value} for value in (0.0, 1e-30, 0.3)],  # at 1 it is infinite
    }.get(name, [{"alpha": value} for value in (1e-30, 0.3, 1.0)])
    excluded = (0, 0, 1) if name == "channel_wise" else (0, 1)
    low, lowest = jnp.asarray(first).at[excluded].set(-2e4), jnp.asarray(first).at[excluded].set(-jnp.inf)
    for settings in given:
        loss = functools.partial(getattr(losses, name), **settings)
        slopes = jax.value_and_grad(lambda student, teacher, loss=loss: loss(student, teacher).sum())
        found, wanted = (slopes(jnp.asarray(second), teacher) for teacher in (lowest, low))
        close(found[0], wanted[0], 1e-6)
        close(found[1], wanted[1], 1e-6, 1e-9)


def test_a_small_share_of_the_other_keeps_the_gradient_of_contrary_networks():
    student, teacher = jnp.array([[0.0, 100.0, 3.0]]), jnp.array([[100.0, 0.0, 2.0]])
    slopes = [
        jax.grad(lambda s, a=alpha: losses.skewed_kl(s, teacher, alpha=a, temperature=1.0).sum())(student)
        for alpha in (1e-37, 1e-36)
    ]
    # α p is nearly all of the mixture: the gradient is −(1 − α) q / (α p), q = e^−100.
    close(slopes[0][0, 0], -np.exp(-100.0) / 1e-37, 1e-3)
    close(slopes[0], 10 * np.asarray(slopes[1]), 1e-3)


@pytest.mark.parametrize(("student", "teacher"), [(-np.inf, 1.0), (np.inf, -1.0), (-np.inf, -1.0), (-np.inf, np.inf)])
def test_a_label_that_the_student_alone_excludes_is_infinitely_far(student, teacher):
    assert losses.soft_target_bce(jnp.array([student]), jnp.array([teacher])) == np.inf
    assert losses.soft_target_bce(jnp.array([student]), jnp.array([student])) == 0


@pytest.mark.parametrize("loss", [losses.skewed_kl, losses.reverse_skewed_kl])
def test_a_nan_is_seen_where_it_has_no_weight(loss):
    bad, good = jnp.array([jnp.nan, 1.0, 2.0]), jnp.array([0.0, 1.0, 2.0])
    assert np.isnan(loss(bad, good, alpha=1.0))
    assert np.isnan(loss(good, bad, alpha=1.0))


def test_a_label_that_is_no_class_is_nan_and_counts_in_no_mean_where_it_is_left_out():
    student, teacher, known = made(BY_NAME["uskd_target"])
    for bad in (-1, 5, -100):
        labels = jnp.asarray(known).at[2].set(bad)
        assert np.isnan(losses.uskd_target(student, teacher, labels)).all()
        alone = np.isnan(losses.uskd_non_target(student, teacher, student, labels))
        assert alone.tolist() == [False, False, True, False, False, False]
        kept = jnp.arange(6) != 2
        close(
            losses.uskd_target(student, teacher, labels, where=kept)[kept],
            losses.uskd_target(*(array[kept] for array in (student, teacher, labels))),
            1e-6,
        )


@pytest.mark.parametrize("count", [5, 200])  # a product with the whole bank, and rows gathered
def test_the_two_ways_to_meet_the_bank_are_one(count, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    bank = losses.init_bank(keys[0], 50, 4)
    student, teacher = jax.random.normal(keys[1], (2, 3, 4))
    indices = jnp.array([7, 49, 0])
    others = losses.draw_negatives(keys[2], indices, count, 50)
    found = []
    for dear in (0, 1000):
        monkeypatch.setattr(losses._contrastive, "_AS_DEAR", dear)
        found.append(jax.value_and_grad(lambda s: losses.crd(s, teacher, indices, bank, others)[0].sum())(student))
    close(found[0][0], found[1][0], 1e-6)
    close(found[0][1], found[1][1], 1e-5, 1e-6)
    outside = losses.crd(student, teacher, indices, bank, others.at[1, 0].set(50))[0]
    assert np.isnan(outside).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_a_far_away_cloud_keeps_its_digits(name):
    student, teacher = inputs.embeddings(np.random.default_rng(0), 6)
    student, teacher = (a.astype(np.float32) + np.float32(1000) for a in (student, teacher))
    wanted = getattr(references, name)(student.astype(np.float64), teacher.astype(np.float64))
    close(jitted(BY_NAME[name])(student, teacher), wanted, 1e-4)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_twins_in_a_large_batch_have_distance_zero(name):
    """Two equal rows of a Gram matrix are not always equal to the last bit: rounding noise must not pass for a distance."""
    student, teacher = np.random.default_rng(0).standard_normal((2, 40, 97)).astype(np.float32)
    student[20:] = student[:20]
    (_, values), (gradient,) = value_and_gradients(BY_NAME[name], (0,))(jnp.asarray(student), jnp.asarray(teacher))
    close(values, getattr(references, name)(student.astype(np.float64), teacher), 1e-4)
    with jax.enable_x64(True):
        exact = jax.grad(lambda s: bound(BY_NAME[name])(s, jnp.asarray(teacher, np.float64)).mean())(
            jnp.asarray(student, np.float64)
        )
    close(gradient, exact, 1e-3, 1e-4 * np.abs(exact).max())


def test_rounding_noise_in_a_gram_matrix_is_no_distance():
    off_by_one_bit = jnp.array([[1.0, 1.0 - 2**-23, 0.0], [1.0 - 2**-23, 1.0, 0.0], [0.0, 0.0, 1.0]])
    distances, pull_back = jax.vjp(_math.squared_distances, off_by_one_bit)
    np.testing.assert_array_equal(distances, [[0, 0, 2], [0, 0, 2], [2, 2, 0]])
    of_the_pair = jnp.zeros((3, 3)).at[0, 1].set(1.0)
    np.testing.assert_array_equal(pull_back(of_the_pair)[0], np.zeros((3, 3)))


def test_cosines_between_near_twins_do_not_pass_one():
    rows, steps = np.random.default_rng(0).standard_normal((2, 6, 97)).astype(np.float32)
    seen = _angles.seen(jnp.asarray(np.concatenate([rows, rows + 3e-3 * steps])), None)
    cosines = jax.vmap(lambda *anchor: _angles._cosines(seen.gram, *anchor)[0])(*seen[1:])
    assert np.abs(cosines).max() == 1


def test_opposite_directions_have_a_similarity_of_zero_and_not_below():
    """Rounding carries the cosine of x and −x below −1, and a logarithm of a negative number is NaN."""
    student = np.random.default_rng(0).standard_normal((1000, 1, 33)).astype(np.float32)
    pairs = jnp.asarray(np.concatenate([student, -student], axis=1))
    values, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda s, t: losses.pkt(s, t).mean()), in_axes=(0, None)))(
        pairs, jnp.eye(2)
    )
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("block", [1, 3, 5, 7, 8])
def test_angle_in_blocks_is_the_same(block):
    arrays = made(BY_NAME["rkd_angle"], batch=7)
    whole, blocked = (
        jax.jit(jax.value_and_grad(lambda s, t, b=b: losses.rkd_angle(s, t, block=b).mean()))(*arrays)
        for b in (None, block)
    )
    close(blocked[0], whole[0], 1e-6)
    close(blocked[1], whole[1], 1e-4, 1e-7)
