"""The networks: sizes to the digit, features by name, values against slow references, settings, errors."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from experiments._networks import NETWORKS, make_model
from kdjax.models import CNN, convolve, max_pool
from kdjax.models._convolution import convolve_in_groups
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


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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


def slow_convolution(inputs, kernel, padding):
    inputs, kernel = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    if padding == "SAME":
        inputs = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width = inputs.shape[0], inputs.shape[1] - 2, inputs.shape[2] - 2
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for n, y, x in np.ndindex(batch, height, width):
        out[n, y, x] = np.einsum("ijc,ijco->o", inputs[n, y : y + 3, x : x + 3], kernel)
    return out


def slow_pool(inputs):
    batch, height, width, channels = inputs.shape
    out = np.zeros((batch, height // 2, width // 2, channels))
    for n, y, x in np.ndindex(batch, height // 2, width // 2):
        out[n, y, x] = inputs[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max((0, 1))
    return out


def slow_cnn(model, variables, x):
    """In the articles' order: convolution, bias or normalisation, ReLU, pooling."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for number in range(1, len(model.widths) + 1):
        stage = params[f"stage{number}"]
        x = slow_convolution(x, stage["kernel"], model.padding)
        if model.batch_norm:
            seen = variables["batch_stats"][f"stage{number}"]["norm"]
            mean, variance = (np.asarray(seen[name], np.float64) for name in ("mean", "var"))
            x = (x - mean) / np.sqrt(variance + 1e-5) * stage["norm"]["scale"] + stage["norm"]["bias"]
        else:
            x = x + stage["bias"]
        x = slow_pool(np.maximum(x, 0))
    x = x.reshape(len(x), -1)
    for name in ("hidden", "logits"):
        if name in params:
            x = x @ params[name]["kernel"] + params[name]["bias"]
            x = np.maximum(x, 0) if name == "hidden" else x
    return x


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


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("channels", "wide"), [(1, False), (3, False), (4, False), (4, True)])
def test_convolution_and_its_gradients_are_xlas(padding, channels, wide, monkeypatch):
    monkeypatch.setattr("kdjax.models._convolution.WIDE", 0 if wide else np.inf)
    inputs, kernel = images(2, 7, 6, channels), images(3, 3, channels, 4, seed=1)

    def xla(inputs, kernel):
        return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ours, back = jax.vjp(lambda *both: convolve(*both, padding), inputs, kernel)
    theirs, back_theirs = jax.vjp(xla, inputs, kernel)
    cotangent = images(*ours.shape, seed=2)
    np.testing.assert_allclose(ours, slow_convolution(inputs, kernel, padding), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(back(cotangent), back_theirs(cotangent), rtol=1e-5, atol=1e-5)

    @jax.jit
    def ours_jitted(*both):
        return convolve(*both, padding)

    modes = ["rev"] if wide else ["fwd", "rev"]
    check_grads(ours_jitted, (inputs, kernel), order=2, modes=modes, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "stride", "dtype"),
    [
        (16, 3, 3, 1, "float32"),
        (7, 2, 4, 1, "float32"),
        (9, 1, 1, 1, "float32"),
        (8, 4, 3, 1, "float64"),
        (16, 3, 3, 1, "bfloat16"),
        (8, 3, 3, 2, "float32"),
        (4, 1, 1, 2, "float32"),
        (8, 4, 3, 3, "float64"),
    ],
)
def test_a_gradient_in_blocks_is_xlas(batch, rows, columns, stride, dtype, padding):
    p, q = ((rows - 1) // 2, (columns - 1) // 2) if padding == "SAME" else (0, 0)
    borders = ((p, rows - 1 - p), (q, columns - 1 - q)) if padding == "SAME" else "VALID"

    def xla(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (stride, stride), borders, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def ours(inputs, kernel):
        return convolve(inputs, kernel, padding, stride=stride, in_blocks=True)

    def gradient(convolve, *arrays):
        value, back = jax.vjp(convolve, *arrays[:2])
        return value, *back(arrays[2])

    with jax.enable_x64(dtype == "float64"):
        inputs, kernel = images(batch, 7, 6, 4), images(rows, columns, 4, 3, seed=1)
        arrays = [inputs, kernel, images(*jax.eval_shape(xla, inputs, kernel).shape, seed=2)]
        arrays = [jnp.asarray(array, dtype) for array in arrays]
        found = jax.jit(partial(gradient, ours))(*arrays)
        exact = gradient(xla, *(array.astype(jnp.promote_types(dtype, "float32")) for array in arrays))
        near = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-7}[dtype]
        for one, other in zip(found, exact, strict=True):
            assert one.dtype == jnp.dtype(dtype)
            np.testing.assert_allclose(one.astype(other.dtype), other, rtol=near, atol=near * np.abs(other).max())
        if dtype == "float64":
            check_grads(jax.jit(ours), arrays[:2], order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


def test_a_stride_needs_blocks():
    with pytest.raises(ValueError, match="in_blocks must be True where stride is not 1; got stride 2"):
        convolve(images(1, 4, 4, 4), images(3, 3, 4, 4), "SAME", stride=2)


@pytest.mark.parametrize(
    ("size", "stride", "groups", "channels"), [(1, 1, 1, 6), (1, 1, 3, 6), (3, 1, 6, 6), (3, 2, 6, 6), (3, 2, 3, 6)]
)
def test_convolution_in_groups_or_of_one_tap_is_xlas(size, stride, groups, channels):
    inputs, kernel = images(2, 7, 6, channels), images(size, size, channels // groups, 6, seed=1)

    def xla(inputs, kernel):
        return lax.conv_general_dilated(
            inputs,
            kernel,
            (stride, stride),
            [(size // 2, size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def ours(inputs, kernel):
        if groups == 1:
            return convolve(inputs, kernel, "SAME")
        return convolve_in_groups(inputs, kernel, stride, groups)

    found, back = jax.vjp(ours, inputs, kernel)
    theirs, back_theirs = jax.vjp(xla, inputs, kernel)
    cotangent = images(*found.shape, seed=2)
    chex.assert_trees_all_close(found, theirs, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(back(cotangent), back_theirs(cotangent), rtol=1e-5, atol=1e-5)
    half = ours(inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), theirs, rtol=0, atol=0.02 * np.ptp(theirs))


def test_pictures_in_bfloat16_are_summed_in_float32():
    inputs, kernel = (array.astype(jnp.bfloat16) for array in (images(4, 8, 8, 3), images(3, 3, 3, 5, seed=1)))
    seen = convolve(inputs, kernel, "SAME")
    exact = slow_convolution(*(array.astype(jnp.float32) for array in (inputs, kernel)), "SAME")
    assert seen.dtype == jnp.bfloat16
    np.testing.assert_allclose(seen.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)  # one rounding


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
        ({"widths": ()}, r"widths must hold whole numbers greater than 0; got \(\)"),
        ({"hidden": 0}, "hidden must hold whole numbers greater than 0; got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model("digits_student", **settings)
