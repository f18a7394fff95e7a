"""The families for small images: sizes to the digit, features by name, PyTorch's values, a step of training, errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import KEY, SMALL, filled, images, shorten

from kdjax import cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.command._networks import NETWORKS, network
from kdjax.models import CNN, VGG, MobileNetV2, ResNet, ShuffleNetV1, ShuffleNetV2, ViT
from kdjax.models._blocks import convolution
from kdjax.networks import from_linen, weights_from
from kdjax.training import data_mesh

GOLDEN = Path(__file__).parent / "golden" / "torch" / "families.json"
# With 100 classes, of images of 32 × 32 pixels: what the tables of the architectures come to, as PyTorch counts too.
COUNTS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenet_v2_half": 812_836,
    "shufflenet_v1": 949_258,
    "shufflenet_v2": 1_355_528,
    "vit_tiny": 5_380_132,
}
PICTURE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_name_of_the_command_has_a_published_size():
    # Those of the CNNs and the wide networks are proved in test_models.py and test_models_wide_resnet.py.
    assert {name for name in NETWORKS if not name.startswith(("cnn", "wrn"))} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_to_the_digit(name):
    params, model_state = jax.eval_shape(network(name, 100)[0], KEY, PICTURE)
    assert size(params) == COUNTS[name]
    if name == "vit_tiny":
        assert model_state == {}
    else:  # each normalisation keeps a mean and a variance beside its scale and bias
        norms = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale")
        assert size(model_state) == 2 * norms


def test_the_tiny_transformer_is_deit_s_at_deit_s_size_of_image():
    shapes = jax.eval_shape(
        from_linen(ViT(patch=16, classes=1000))[0], KEY, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    )
    assert size(shapes.params) == 5_717_416


def square(names, sizes, channels):
    return {name: (3, side, side, width) for name, side, width in zip(names, sizes, channels, strict=True)}


STAGES = [f"stage{number}" for number in (1, 2, 3, 4, 5)]
FEATURES = {
    "resnet56": square(STAGES[:3], (32, 16, 8), (16, 32, 64)) | {"embedding": (3, 64)},
    "resnet8x4": square(STAGES[:3], (32, 16, 8), (64, 128, 256)) | {"embedding": (3, 256)},
    "vgg13": square(STAGES, (32, 16, 8, 4, 4), (64, 128, 256, 512, 512)) | {"embedding": (3, 512)},
    "mobilenet_v2_half": square(STAGES[:4], (16, 8, 4, 2), (12, 16, 48, 160)) | {"embedding": (3, 1280)},
    "shufflenet_v1": square(STAGES[:3], (16, 8, 4), (240, 480, 960)) | {"embedding": (3, 960)},
    "shufflenet_v2": square(STAGES[:3], (16, 8, 4), (116, 232, 464)) | {"embedding": (3, 1024)},
    "vit_tiny": {f"block{number}": (3, 65, 192) for number in range(1, 13)} | {"embedding": (3, 192)},
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_by_name(name):
    init, apply = network(name, 100)
    inputs = jnp.zeros((3, 32, 32, 3))
    outputs = jax.eval_shape(lambda: apply(*init(KEY, inputs), inputs, train=False)[0])
    expected = FEATURES[name]
    if not name.startswith(("mobilenet", "vit")):
        expected = expected | {f"{stage}_before_relu": expected[stage] for stage in expected if stage != "embedding"}
    assert {name: feature.shape for name, feature in outputs.features.items()} == expected
    assert outputs.logits.shape == (3, 100)


@pytest.mark.parametrize("name", SMALL)
def test_values_are_those_of_pytorch(name):
    """Kept by ``python tests/torch_values.py``: the logits, and of each feature the mean square of every example."""
    module, shape = SMALL[name]
    outputs, _ = jax.jit(lambda *given: from_linen(module)[1](*given, train=False))(
        *filled(module, shape), images(*shape)
    )
    kept = json.loads(GOLDEN.read_text())[name]
    np.testing.assert_allclose(outputs.logits, kept.pop("logits"), rtol=0, atol=1e-4 * np.ptp(outputs.logits))
    for feature, squares in kept.items():
        found = jnp.square(outputs.features[feature]).reshape(shape[0], -1).mean(axis=1)
        np.testing.assert_allclose(found, squares, rtol=1e-4)
    for feature, before in outputs.features.items():
        if feature.endswith("_before_relu"):
            after = outputs.features[feature.removesuffix("_before_relu")]
            assert before.min() < 0 == after.min()
            np.testing.assert_allclose(jnp.maximum(before, 0), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*SMALL, "cnn"])
def test_no_pictures_have_no_logits_and_gradients_of_the_parameters_shapes(name):
    module, (_, *shape) = SMALL.get(name, (CNN((4, 8), 16, 5), (2, 8, 8, 3)))
    init, apply = from_linen(module)
    weights = jax.eval_shape(init, KEY, jax.ShapeDtypeStruct((2, *shape), jnp.float32))

    def logits(params, model_state, inputs):
        return apply(params, model_state, inputs, train=False)[0].logits

    given = (*weights, jax.ShapeDtypeStruct((0, *shape), jnp.float32))
    assert jax.eval_shape(logits, *given).shape == (0, 5)
    gradient = jax.eval_shape(jax.grad(lambda *given: logits(*given).sum()), *given)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, weights.params)


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_training_moves_every_leaf(name, monkeypatch):
    shorten(monkeypatch)
    module, shape = SMALL[name]
    _, apply = from_linen(module)
    weights, optimizer = filled(module, shape), optax.sgd(0.1)
    batch = {"inputs": images(*shape, seed=2), "labels": jnp.arange(shape[0])}
    step = jax.jit(make_train_step(apply, None, optimizer))
    before = jax.tree.map(np.asarray, weights)
    after, metrics = step(init_state(weights, optimizer, KEY), None, weighted_sum(labels=(1.0, cross_entropy)), batch)
    assert np.isfinite(metrics["loss"])
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path((after.params, after.model_state)), jax.tree.leaves(before), strict=True
    ):
        assert np.isfinite(new).all(), path
        # A shift that a later normalisation takes away has no gradient.
        assert path[-1].key == "bias" or (new != old).any(), path


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(name, monkeypatch):
    shorten(monkeypatch)
    module, shape = SMALL[name]
    init, apply = from_linen(module.clone(dtype=jnp.bfloat16))
    inputs = jnp.zeros(shape)

    def traced():
        weights = init(KEY, inputs)
        return weights, *apply(*weights, inputs, train=True)

    weights, outputs, moved = jax.eval_shape(traced)
    assert {leaf.dtype for leaf in jax.tree.leaves((weights, moved, outputs.logits))} == {jnp.dtype(jnp.float32)}
    assert {feature.dtype for feature in outputs.features.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", [name for name in SMALL if name != "vit"])
def test_each_normalisation_looks_over_the_axis_that_is_named(name, monkeypatch):
    shorten(monkeypatch)
    module, shape = SMALL[name]
    weights = jax.eval_shape(from_linen(module)[0], KEY, jax.ShapeDtypeStruct(shape, jnp.float32))

    def exchanges(axis_name):
        _, apply = from_linen(module.clone(axis_name=axis_name))

        def forward(weights, inputs):
            return apply(*weights, inputs, train=True)[0].logits

        batch, whole = jax.P("data"), jax.P()
        mapped = jax.shard_map(forward, mesh=data_mesh(), in_specs=(whole, batch), out_specs=batch, check_vma=False)
        program = jax.make_jaxpr(mapped)(weights, jax.ShapeDtypeStruct((4, *shape[1:]), jnp.float32))
        return str(program).count("psum[")

    norms = sum(path[-1].key == "var" for path, _ in jax.tree_util.tree_leaves_with_path(weights.model_state))
    assert exchanges("data") == norms >= 5
    assert exchanges(None) == 0


@pytest.mark.parametrize(("groups", "reads"), [(1, 9 * 96), (96, 9)])
def test_initial_weights_have_hes_size(groups, reads):
    layer = convolution(96, 3, groups=groups, dtype=jnp.float32, name="layer")
    kernel = layer.init(KEY, jnp.zeros((1, 4, 4, 96)))["params"]["kernel"]
    assert kernel.shape == (3, 3, reads // 9, 96)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / reads), rtol=0.05)


def state_dict(layers):
    """Arrays with the names and the layouts of PyTorch, of (name, shape of the weight)."""
    state = {}
    for number, (name, shape) in enumerate(layers):
        state[f"{name}.weight"] = images(*shape, seed=number)
        if len(shape) != 4:
            state[f"{name}.bias"] = images(shape[0], seed=number + 1000)
        if len(shape) == 1:
            state[f"{name}.running_mean"] = images(*shape, seed=number + 2000)
            state[f"{name}.running_var"] = 1 + np.abs(images(*shape, seed=number + 3000))
            state[f"{name}.num_batches_tracked"] = np.array(7)
    return state


def repdistiller_resnet8x4():
    """The names of its resnet8x4, in the order in which PyTorch registers them."""
    layers, before = [("conv1", (32, 3, 3, 3)), ("bn1", (32,))], 32
    for stage, width in enumerate((64, 128, 256), 1):
        block = f"layer{stage}.0."
        layers += [(f"{block}conv1", (width, before, 3, 3)), (f"{block}bn1", (width,))]
        layers += [(f"{block}conv2", (width, width, 3, 3)), (f"{block}bn2", (width,))]
        layers += [(f"{block}downsample.0", (width, before, 1, 1)), (f"{block}downsample.1", (width,))]
        before = width
    return [*layers, ("fc", (100, 256))]


BLOCK = {"conv1": "conv1", "bn1": "conv1_norm", "conv2": "conv2", "bn2": "conv2_norm"}
BLOCK |= {"downsample.0": "shortcut", "downsample.1": "shortcut_norm"}
NAMES = {"conv1": "stem", "bn1": "stem_norm", "fc": "logits"}
NAMES |= {f"layer{i}.0.{own}": f"stage{i}_block1/{ours}" for i in (1, 2, 3) for own, ours in BLOCK.items()}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_state_dict_with_repdistillers_names_goes_where_it_belongs(ordered):
    """By its order; and from a file that is sorted by name, by the names."""
    state = state_dict(repdistiller_resnet8x4())
    if not ordered:
        state = {name: state[name] for name in sorted(state)}
    module = ResNet(8, (32, 64, 128, 256), classes=100)
    (params, model_state), _ = weights_from(state, module, PICTURE, names=None if ordered else NAMES)
    for own, path in NAMES.items():
        leaves, statistics = params, model_state["batch_stats"]
        for part in path.split("/"):
            leaves, statistics = leaves[part], statistics.get(part, {})
        weight = state[f"{own}.weight"]
        np.testing.assert_array_equal(
            leaves.get("kernel", leaves.get("scale")), weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        )
        if weight.ndim == 1:
            np.testing.assert_array_equal(statistics["var"], state[f"{own}.running_var"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(9), r"depth must be 6n \+ 2 with at least one block a stage: 8, 14, 20, …; got 9"),
        (lambda: ResNet(2), r"depth must be 6n \+ 2 .* got 2"),
        (lambda: ResNet(8, (16, 32, 64)), r"widths must be four numbers, .*; got \(16, 32, 64\)"),
        (lambda: ResNet(8, (16, 16, 32, 0)), "widths must be a whole number of 1 or more; got 0"),
        (lambda: VGG(12), "depth must be one of 8, 11, 13, 16, 19; got 12"),
        (lambda: MobileNetV2(0.0), "width must be a finite number greater than 0; got 0.0"),
        (lambda: MobileNetV2(0.05), "width must leave 16 channels at least one; got 0.05"),
        (lambda: ViT(width=100), "width must be a multiple of heads, 3; got 100"),
        (lambda: ViT(depth=0), "depth must be a whole number of 1 or more; got 0"),
        *(
            (lambda kind=kind: kind(classes=0), "classes must be a whole number of 1 or more; got 0")
            for kind in (MobileNetV2, ShuffleNetV1, ShuffleNetV2, ViT)
        ),
        (lambda: ResNet(8, classes=0), "classes must be a whole number of 1 or more; got 0"),
        (lambda: VGG(8, classes=0), "classes must be a whole number of 1 or more; got 0"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_wrong_shape_or_kind_are_named(name):
    module, shape = SMALL[name]
    with pytest.raises(
        ValueError, match=r"inputs must have 4 axes, \[batch, height, width, channels\]; got shape \(2, 32"
    ):
        module.init(KEY, jnp.zeros((2, 32, 32)), train=False)
    with pytest.raises(ValueError, match=r"inputs must hold floating-point numbers; got .* dtype uint8"):
        module.init(KEY, jnp.zeros(shape, jnp.uint8), train=False)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg", (1, 8, 7, 3), r"inputs must be at least 8 pixels high and wide; got shape \(1, 8, 7, 3\)"),
        ("vit", (1, 3, 4, 3), r"inputs must be at least 4 pixels high and wide; got shape \(1, 3, 4, 3\)"),
        ("vit", (1, 8, 10, 3), r"inputs must have a height and width that are multiples of patch, 4; got .*8, 10, 3"),
    ],
)
def test_images_that_are_too_small_or_no_whole_patches_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        SMALL[name][0].init(KEY, jnp.zeros(shape), train=False)
