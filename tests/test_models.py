"""The networks: sizes to the digit, features by name, values against slow references, settings, errors."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_networks import images, slow_cnn, slow_pool

from experiments._networks import NETWORKS, make_model
from kdjax.models import CNN, convolve, max_pool
from kdjax.networks import from_linen

COUNTS = {
    "pipeline_teacher": 421_642,
    "pipeline_student": 105_866,
    "compression_teacher": 273_802,
    "compression_student": 9_098,
    "soft_targets_teacher": 225_034,
    "soft_targets_student": 173_930,
}
KEY = jax.random.key(0)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_every_model_but_the_demos_has_a_published_size():
    # The residual networks' sizes are proved in test_models_wide_resnet.py.
    assert {name for name in NETWORKS if not name.startswith(("digits", "wrn"))} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_to_the_digit(name):
    weights = jax.eval_shape(from_linen(make_model(name))[0], KEY, images(1, 28, 28, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights.params)) == COUNTS[name]
    assert weights.model_state == {}


def test_the_demos_student_is_at_least_thirty_times_smaller_than_its_teacher():
    teacher, student = (
        jax.eval_shape(from_linen(make_model(name))[0], KEY, images(1, 8, 8, 1)).params
        for name in ("digits_teacher", "digits_student")
    )
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (teacher, student)]
    assert sizes[0] >= 30 * sizes[1]


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("pipeline_teacher", {"stage1": (3, 14, 14, 32), "stage2": (3, 7, 7, 64), "embedding": (3, 128)}),
        ("soft_targets_teacher", {"stage1": (3, 13, 13, 32), "stage2": (3, 5, 5, 64), "embedding": (3, 128)}),
        ("compression_student", {"stage1": (3, 14, 14, 8), "stage2": (3, 7, 7, 16), "embedding": (3, 784)}),
    ],
)
def test_features_by_name(name, features):
    init, apply = from_linen(make_model(name))
    inputs = images(3, 28, 28, 1)
    outputs = jax.eval_shape(lambda: apply(*init(KEY, inputs), inputs, train=False)[0])
    assert shapes(dict(outputs.features)) == features
    assert outputs.logits.shape == (3, 10)


# --- values against loops over NumPy


@pytest.mark.parametrize(
    "model",
    [
        CNN(widths=(3, 4), hidden=5, padding="SAME"),
        CNN(widths=(3, 4), padding="VALID"),
        CNN(widths=(3,), hidden=5, padding="VALID", batch_norm=True, dropout=0.5),
    ],
    ids=["same", "valid", "batch_norm"],
)
def test_logits_are_those_of_the_slow_network(model):
    inputs = images(2, 13, 11, 2)  # odd sizes: pooling drops a row and a column
    variables = jax.jit(partial(model.init, train=False))(KEY, inputs)
    # Every leaf away from its start, so that no bias or scale, also a negative one, can be forgotten.
    leaves, structure = jax.tree.flatten(variables)
    moved = [leaf + images(*leaf.shape, seed=i) * (0.1 if leaf.min() == 1 else 1) for i, leaf in enumerate(leaves)]
    variables = jax.tree.unflatten(structure, moved)
    if model.batch_norm:
        scale = variables["params"]["stage1"]["norm"]["scale"]
        variables["params"]["stage1"]["norm"]["scale"] = scale.at[0].set(-1.5)
    outputs = jax.jit(partial(model.apply, train=False))(variables, inputs)
    np.testing.assert_allclose(outputs.logits, slow_cnn(model, variables, inputs), rtol=1e-4, atol=1e-4)


def test_pooling_keeps_the_largest_and_the_nan_and_the_first_of_equals():
    inputs = images(2, 5, 7, 3)
    np.testing.assert_array_equal(max_pool(inputs), slow_pool(np.asarray(inputs)).astype(np.float32))
    for y, x in np.ndindex(2, 2):
        assert np.isnan(max_pool(jnp.zeros((1, 2, 2, 1)).at[0, y, x, 0].set(jnp.nan))).all()
    tie = jax.grad(lambda x: max_pool(x).sum())(jnp.array([[1.0, 3.0], [3.0, 3.0]]).reshape(1, 2, 2, 1))
    assert tie.ravel().tolist() == [0.0, 1.0, 0.0, 0.0]


# --- settings


def test_in_float64_the_logits_have_all_its_digits():
    model, inputs = CNN(widths=(3, 4), hidden=5, batch_norm=True, dtype=jnp.float64), images(2, 8, 8, 1)
    variables = jax.jit(partial(model.clone(dtype=jnp.float32).init, train=False))(KEY, inputs)
    with jax.enable_x64(True):
        wide, exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (variables, inputs))
        outputs = jax.jit(partial(model.apply, train=False))(wide, exact)
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float64)}
        np.testing.assert_allclose(outputs.logits, slow_cnn(model, variables, exact), rtol=1e-12)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    inputs = images(4, 8, 8, 1)
    init, apply = from_linen(make_model("digits_teacher", dtype=jnp.bfloat16))
    _, exact = from_linen(make_model("digits_teacher"))
    weights = jax.jit(init)(KEY, inputs)
    outputs, model_state = jax.jit(partial(apply, train=True))(*weights, inputs, rng=KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((weights, model_state))} == {jnp.dtype(jnp.float32)}
    assert {feature.dtype for feature in outputs.features.values()} == {jnp.dtype(jnp.bfloat16)}
    assert outputs.logits.dtype == jnp.float32
    rounded, full = (jax.jit(partial(a, train=False))(*weights, inputs)[0].logits for a in (apply, exact))
    assert 0 < jnp.abs(rounded - full).max() < 0.1


def test_batch_norm_moves_its_statistics_in_training_alone():
    model, inputs = make_model("digits_teacher", dropout=0.0), images(16, 8, 8, 1)
    variables = jax.jit(partial(model.init, train=False))(KEY, inputs)
    outputs, moved = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, inputs)
    seen = np.asarray(convolve(inputs, variables["params"]["stage1"]["kernel"], "SAME"))
    statistics = moved["batch_stats"]["stage1"]["norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * seen.var((0, 1, 2)), rtol=1e-4)
    evaluated, unmoved = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))(variables, inputs)
    chex.assert_trees_all_equal(unmoved["batch_stats"], variables["batch_stats"])
    assert jnp.abs(outputs.logits - evaluated.logits).max() > 1e-3


def test_initial_weights_have_the_chosen_size_and_biases_are_zero():
    for gain, of_logits in ((2.0, 1.0), (1 / 3, 1 / 3)):
        init, _ = from_linen(make_model("compression_teacher", gain=gain))
        params = jax.jit(init)(KEY, images(1, 28, 28, 1)).params
        np.testing.assert_allclose(params["stage2"]["kernel"].std(), np.sqrt(gain / (9 * 64)), rtol=0.02)
        np.testing.assert_allclose(params["logits"]["kernel"].std(), np.sqrt(of_logits / 12544), rtol=0.02)
    assert all(not params[name]["bias"].any() for name in ("stage1", "stage2", "logits"))


# --- bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 28, 28), r"inputs must have 4 axes, \[batch, height, width, channels\]; got shape \(2, 28, 28\)"),
        ((2, 9, 28, 1), r"inputs must be at least 10 pixels high and wide for 2 stages with VALID padding"),
    ],
)
def test_images_of_a_wrong_shape_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        make_model("soft_targets_teacher").init(KEY, images(*shape), train=False)


def test_the_smallest_images_named_are_enough():
    init, apply = from_linen(make_model("soft_targets_teacher"))
    inputs = images(1, 10, 10, 1)
    outputs, _ = jax.eval_shape(lambda: apply(*init(KEY, inputs), inputs, train=False))
    assert outputs.features["stage2"].shape == (1, 1, 1, 64)


def test_raw_bytes_are_refused():
    with pytest.raises(ValueError, match=r"inputs must hold floating-point numbers; got .* dtype uint8"):
        make_model("digits_student").init(KEY, jnp.zeros((1, 8, 8, 1), jnp.uint8), train=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1; got 1.0"),
        ({"padding": "same"}, "padding must be one of SAME, VALID; got 'same'"),
        ({"widths": ()}, "widths must hold one number at least; got none"),
        ({"hidden": 0}, "hidden must be a whole number of 1 or more; got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model("digits_student", **settings)
