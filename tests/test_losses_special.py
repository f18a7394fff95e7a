"""The numeric law where a loss has something of its own: classes at −∞, far clouds, twins, blocks."""

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
