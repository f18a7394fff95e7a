"""What the table of losses cannot ask of the losses on features: ingredients, kinks, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from jax.test_util import check_grads

from kdjax import losses


def test_cosine_is_zero_at_equality_save_for_zero_vectors():
    features = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32).at[1].set(0.0)
    np.testing.assert_allclose(losses.cosine(features, features), [0.0, 1.0, 0.0], atol=2e-7)


def test_margin_agrees_with_a_sum_over_a_grid():
    scale = np.array([1.0, -2.0, 0.5, 0.3, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    bias = np.array([0.0, 1.5, -3.0, 0.9, 3.08, 3.1, -2.0, 2.0, 0.0, -9.0])
    with jax.enable_x64(True):
        margins = losses.negative_margin(jnp.asarray(scale), jnp.asarray(bias))
    np.testing.assert_allclose(margins, references.negative_margin(scale, bias), rtol=1e-5)
    np.testing.assert_allclose(
        losses.negative_margin(jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)), margins, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_margin_and_its_gradient_are_finite_and_never_above_zero(dtype):
    sizes = [0.0, 6e-8, 1e-3, 1.0, 3.09, 3e4]
    pairs = [(s, b) for s in (*sizes, -1.0) for b in (*sizes, *(-size for size in sizes))]
    scale, bias = (jnp.asarray(column, dtype) for column in zip(*pairs, strict=True))
    margins, pull_back = jax.vjp(losses.negative_margin, scale, bias)
    assert margins.dtype == jnp.float32
    assert np.isfinite(margins).all()
    assert (margins <= 0).all()
    for gradient in pull_back(jnp.ones_like(margins)):
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_margin_has_the_numerical_gradient():
    with jax.enable_x64(True):
        arrays = jnp.array([1.0, -2.0, 0.5, 1.0]), jnp.array([0.3, 1.5, -3.0, 9.0])
        check_grads(losses.negative_margin, arrays, order=1, atol=1e-6, rtol=1e-6)


def test_margin_hides_no_nan_and_names_a_wrong_shape():
    nan = jnp.array([jnp.nan])
    assert np.isnan(losses.negative_margin(nan, jnp.ones(1))).all()
    assert np.isnan(losses.negative_margin(jnp.ones(1), nan)).all()
    with pytest.raises(ValueError, match=r"scale and bias must have the same shape; got \(2,\) for scale and \(3,\)"):
        losses.negative_margin.__wrapped__(jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="bias must hold floating-point numbers"):
        losses.negative_margin.__wrapped__(jnp.ones(2), jnp.ones(2, int))


def test_gradients_at_the_kinks():
    """Both hinges are squared: their slope runs through 0."""
    boundary = jax.grad(lambda s, t: losses.activation_boundary(s, t, margin=0.5).sum())
    overhaul = jax.grad(lambda s, t: losses.overhaul(s, t, margin=jnp.array([-0.5, -0.5, -0.5])).sum())
    hinges = jnp.array([[-0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(boundary(hinges, jnp.array([[0.0, 1.0, 0.0]])), [[0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(overhaul(hinges, jnp.array([[-0.5, 0.5, -1.0]])), [[0.0, 0.0, 1.0]])


def test_neuron_selectivity_keeps_no_array_of_channel_pairs_by_positions():
    side, channels = 16, 64
    maps = jax.ShapeDtypeStruct((8, side, side, channels), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda s, t: losses.neuron_selectivity(s, t).mean()))
    needed = step.lower(maps, maps).compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * 8 * channels**2 * side**2 / 10, f"{needed / 1e6:.0f} MB"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_places_without_any_activation_have_attention_zero(power):
    """As behind a ReLU: zeros of single channels, and of all."""
    student, teacher = np.maximum(np.random.default_rng(3).standard_normal((2, 4, 3, 3, 5)), 0.0)
    student[:, 0], teacher[:, :, 1] = 0.0, 0.0
    found = losses.attention_transfer(jnp.float32(student), jnp.float32(teacher), power=power)
    np.testing.assert_allclose(found, references.attention_transfer(student, teacher, power), rtol=1e-5)
