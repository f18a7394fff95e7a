"""Wide residual networks: sizes by hand, logits against loops over NumPy, statistics that move, a split batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments._networks import make_model
from kdjax import cross_entropy, init_state, make_train_step, on_feature, on_logits, weighted_sum
from kdjax.losses import attention_transfer, soft_target_kl
from kdjax.models import WideResNet
from kdjax.networks import from_linen
from kdjax.training import data_mesh, jit_step, pmap_step, shard_map_step, split_batch

KEY = jax.random.key(0)
SMALL = WideResNet(depth=10, width=1)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(model, inputs, seed=0):
    """Weights all away from their start, so that no bias, scale or statistic can be forgotten; nothing is compiled."""
    shapes = jax.eval_shape(from_linen(model)[0], KEY, inputs)
    leaves, structure = jax.tree.flatten(shapes)
    draws = [images(*leaf.shape, seed=(seed, number)) for number, leaf in enumerate(leaves)]
    return jax.tree.unflatten(
        structure,
        [1 + 0.3 * jnp.abs(x) if x.ndim == 1 else x * np.sqrt(2 / np.prod(x.shape[:-1])) for x in draws],
    )


def published(depth, k, classes):
    """The number of parameters by the table of the paper: convolutions, then normalisations, then the logits."""
    blocks = (depth - 4) // 6
    total, before = 9 * 3 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        first = 2 * before + 9 * before * width + 2 * width + 9 * width * width + before * width
        later = 2 * width + 9 * width * width + 2 * width + 9 * width * width
        total, before = total + first + (blocks - 1) * later, width
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("name", "classes", "size"),
    [("wrn_40_2", 100, 2_255_156), ("wrn_40_2", 10, 2_243_546), ("wrn_16_2", 100, 703_284), ("wrn_16_2", 10, 691_674)],
)
def test_parameters_to_the_digit(name, classes, size):
    weights = jax.eval_shape(from_linen(make_model(name, classes=classes))[0], KEY, images(1, 32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights.params)) == size
    assert published(int(name.split("_")[1]), 2, classes) == size


def test_features_by_name():
    init, apply = from_linen(make_model("wrn_16_2", classes=100))
    inputs = images(3, 32, 32, 3)
    outputs = jax.eval_shape(lambda: apply(*init(KEY, inputs), inputs, train=False)[0])
    assert {name: feature.shape for name, feature in outputs.features.items()} == {
        "stage1": (3, 32, 32, 32),
        "stage2": (3, 16, 16, 64),
        "stage3": (3, 8, 8, 128),
        "embedding": (3, 128),
    }
    assert outputs.logits.shape == (3, 100)


def convolution(inputs, kernel, stride=1):
    size = kernel.shape[0]
    border = size // 2
    inputs = np.pad(inputs, ((0, 0), (border, border), (border, border), (0, 0)))
    batch, height, width = len(inputs), *((side - size) // stride + 1 for side in inputs.shape[1:3])
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for y, x in np.ndindex(height, width):
        seen = inputs[:, stride * y : stride * y + size, stride * x : stride * x + size]
        out[:, y, x] = np.einsum("bijc,ijco->bo", seen, kernel)
    return out


def slow_network(weights, x, depth):
    """In the order of the paper's figure 1: normalisation and ReLU before each convolution."""
    params, statistics = weights.params, weights.model_state["batch_stats"]

    def activated(x, norm, seen):
        x = (x - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
        return np.maximum(x, 0)

    features = {}
    x = convolution(x, params["stem"]["kernel"])
    for stage in (1, 2, 3):
        for number in range(1, (depth - 4) // 6 + 1):
            block, seen = (tree[f"stage{stage}_block{number}"] for tree in (params, statistics))
            stride = 2 if stage > 1 and number == 1 else 1
            inner = activated(x, block["norm1"], seen["norm1"])
            if "shortcut" in block:
                x = convolution(inner, block["shortcut"]["kernel"], stride)
            inner = convolution(inner, block["conv1"]["kernel"], stride)
            x = x + convolution(activated(inner, block["norm2"], seen["norm2"]), block["conv2"]["kernel"])
        features[f"stage{stage}"] = x
    x = features["embedding"] = activated(x, params["norm"], statistics["norm"]).mean((1, 2))
    return x @ params["logits"]["kernel"] + params["logits"]["bias"], features


@pytest.mark.parametrize(("depth", "width", "shape"), [(10, 2, (2, 9, 12, 3)), (16, 1, (2, 8, 8, 1))])
def test_logits_and_features_are_those_of_the_slow_network(depth, width, shape):
    model, inputs = WideResNet(depth=depth, width=width, classes=7), images(*shape)
    weights = filled(model, inputs)
    outputs, _ = jax.jit(partial(from_linen(model)[1], train=False))(*weights, inputs)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    logits, features = slow_network(exact, np.asarray(inputs, np.float64), depth)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    assert outputs.features.keys() == features.keys()
    for name, feature in features.items():
        np.testing.assert_allclose(outputs.features[name], feature, rtol=1e-4, atol=1e-4 * np.abs(feature).max())


def test_shortcuts_of_one_pixel_stand_where_the_shape_changes_alone():
    kernels = jax.eval_shape(partial(SMALL.clone(width=1).init, train=False), KEY, images(1, 8, 8, 3))["params"]
    # 16 channels come out of the stem and go into the first stage: of width 1, it needs no shortcut.
    assert [name for name, block in kernels.items() if "shortcut" in block] == ["stage2_block1", "stage3_block1"]


def test_statistics_move_in_training_alone():
    _, apply = from_linen(SMALL)
    inputs = images(4, 8, 8, 3)
    weights = filled(SMALL, inputs)
    outputs, moved = jax.jit(partial(apply, train=True))(*weights, inputs)
    seen = convolution(np.asarray(inputs), np.asarray(weights.params["stem"]["kernel"]))
    before, after = (state["batch_stats"]["stage1_block1"]["norm1"] for state in (weights.model_state, moved))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * seen.var((0, 1, 2)), rtol=1e-4)
    changed = jax.tree.map(lambda now, then: bool(jnp.all(now != then)), moved, weights.model_state)
    assert all(jax.tree.leaves(changed))
    evaluated, unmoved = jax.jit(partial(apply, train=False))(*weights, inputs)
    chex.assert_trees_all_equal(unmoved, weights.model_state)
    assert jnp.abs(outputs.logits - evaluated.logits).max() > 1e-3


def test_in_float64_the_logits_have_all_its_digits():
    inputs = images(2, 8, 8, 3)
    weights = filled(SMALL, inputs)
    with jax.enable_x64(True):
        wide, exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (weights, inputs))
        outputs, _ = jax.jit(partial(from_linen(SMALL.clone(dtype=jnp.float64))[1], train=False))(*wide, exact)
        assert outputs.logits.dtype == jnp.float64
        np.testing.assert_allclose(outputs.logits, slow_network(wide, exact, SMALL.depth)[0], rtol=1e-10)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    inputs = images(4, 8, 8, 3)
    weights = filled(SMALL, inputs)
    _, exact = from_linen(SMALL)
    init, apply = from_linen(SMALL.clone(dtype=jnp.bfloat16))
    fresh = jax.eval_shape(init, KEY, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}
    (outputs, moved), (full, _) = (jax.jit(partial(a, train=True))(*weights, inputs) for a in (apply, exact))
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype(jnp.float32)}
    assert {feature.dtype for feature in outputs.features.values()} == {jnp.dtype(jnp.bfloat16)}
    assert outputs.logits.dtype == jnp.float32
    assert 0 < jnp.abs(outputs.logits - full.logits).max() < 0.1 * jnp.abs(full.logits).max()


def test_initial_weights_have_hes_size_and_the_rest_starts_neutral():
    params, model_state = jax.jit(from_linen(SMALL.clone(width=2))[0])(KEY, images(1, 4, 4, 3))
    np.testing.assert_allclose(params["stage3_block1"]["conv2"]["kernel"].std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    np.testing.assert_allclose(params["logits"]["kernel"].std(), np.sqrt(1 / 128), rtol=0.1)
    assert not params["logits"]["bias"].any()
    assert (params["norm"]["scale"] == 1).all()
    assert (model_state["batch_stats"]["norm"]["var"] == 1).all()


@pytest.mark.slow
def test_a_distillation_step_is_the_same_on_four_devices():
    optimizer, inputs = optax.sgd(0.1), images(8, 8, 8, 3)
    batch = {"inputs": inputs, "labels": jnp.arange(8)}
    objective = weighted_sum(
        labels=(0.5, cross_entropy),
        soft=(0.5, on_logits(soft_target_kl, temperature=4.0)),
        attention=(10.0, on_feature(attention_transfer, "stage2")),
    )
    _, apply = from_linen(SMALL)
    teacher = filled(SMALL, inputs, seed=1)

    def fresh():
        return init_state(filled(SMALL, inputs), optimizer, KEY)

    def split(axis_of_the_network):
        _, split_apply = from_linen(SMALL.clone(axis_name=axis_of_the_network))
        return make_train_step(split_apply, apply, optimizer, axis_name="data")

    whole, _ = jit_step(make_train_step(apply, apply, optimizer))(fresh(), teacher, objective, batch)
    mapped, _ = pmap_step(split("data"))(fresh(), teacher, objective, split_batch(batch, 4))
    sharded, _ = shard_map_step(split("data"), data_mesh())(fresh(), teacher, objective, batch)
    chex.assert_trees_all_close(mapped.params, whole.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(mapped.model_state, whole.model_state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(sharded.params, whole.params, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(sharded.model_state, whole.model_state, rtol=1e-4, atol=1e-5)
    # Without the axis each device normalises by its own two examples, and the network becomes another.
    apart, _ = pmap_step(split(None))(fresh(), teacher, objective, split_batch(batch, 4))
    stems = (state.params["stem"]["kernel"] for state in (apart, whole))
    assert jnp.abs(jnp.subtract(*stems)).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 12}, "depth must be 6n \\+ 4 with at least one block a stage: 10, 16, 22, …; got 12"),
        ({"depth": 4}, "depth must be 6n \\+ 4 .* got 4"),
        ({"width": 0}, "width must be a whole number of 1 or more; got 0"),
        ({"classes": 0}, "classes must be a whole number of 1 or more; got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model("wrn_16_2", **settings)


def test_images_of_a_wrong_shape_or_kind_are_named():
    with pytest.raises(
        ValueError, match=r"inputs must have 4 axes, \[batch, height, width, channels\]; got shape \(2, 32"
    ):
        SMALL.init(KEY, images(2, 32, 32), train=False)
    with pytest.raises(ValueError, match=r"inputs must hold floating-point numbers; got .* dtype uint8"):
        SMALL.init(KEY, jnp.zeros((1, 8, 8, 3), jnp.uint8), train=False)
