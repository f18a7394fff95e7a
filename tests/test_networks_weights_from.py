"""PyTorch's networks in Linen: the same logits, a report of every leaf, and an error for whatever does not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from torch_twins import FOLDER, IMAGES, OUTPUTS, TOKENS, TWINS, Convolutional, Residual, Transformer

from kdjax.networks import from_linen, transfer_lines, weights_from
from kdjax.networks._torch_files import read


def logits_of(module, weights, inputs):
    return from_linen(module)[1](*weights, inputs, train=False)[0].logits


@pytest.mark.parametrize("name", TWINS)
def test_logits_are_those_of_torch(name):
    module, inputs = TWINS[name]
    weights, report = weights_from(FOLDER / f"{name}.pt", module, inputs, logits=OUTPUTS[name])
    wanted = OUTPUTS[name]
    np.testing.assert_allclose(logits_of(module, weights, inputs), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    shapes = jax.eval_shape(from_linen(module)[0], jax.random.key(0), inputs)
    chex.assert_trees_all_equal_shapes_and_dtypes(weights, shapes)
    state = read(FOLDER / f"{name}.pt")
    assert sorted({entry.source for entry in report}) == sorted(state)  # of each entry it is said what became of it
    assert [entry.name for entry in report if entry.name] == [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]


def test_the_report_says_what_was_done_and_what_decided():
    _, report = weights_from(FOLDER / "cnn.pt", Convolutional(), IMAGES)
    lines = [" ".join(line.split()) for line in transfer_lines(report)]
    said = "from fc1.weight, transposed, rows reordered from channels first to last: 3 × 2 × 8"
    assert f"copied params/Dense_1/kernel {said}" in lines
    assert "unused bn1.num_batches_tracked counts batches, which Flax does not" in lines
    _, report = weights_from(FOLDER / "residual.pt", Residual(), IMAGES)
    said = {entry.name: entry for entry in report}
    assert said["params/Block_2/BatchNorm_2/scale"][1:] == (
        "layer2.0.downsample.1.weight",
        "copied",
        "by order among 5 of this shape",
    )
    _, report = weights_from(FOLDER / "transformer.pt", Transformer(epsilon=1e-6), TOKENS)
    said = {entry.name: entry.why for entry in report}
    assert said["params/LayerNorm_0/bias"].endswith("epsilon is 1e-06, PyTorch's default 1e-05")


def test_a_branch_that_is_called_earlier_changes_nothing():
    weights_from(FOLDER / "residual.pt", Residual(shortcut_first=True), IMAGES, logits=OUTPUTS["residual"])


def test_safetensors_keep_no_order_and_names_mend_that():
    weights_from(FOLDER / "cnn.safetensors", Convolutional(), IMAGES, logits=OUTPUTS["cnn"])
    file, logits = FOLDER / "residual.safetensors", OUTPUTS["residual"]
    with pytest.raises(ValueError, match=r"names must say which is which.*does not keep the order of the layers"):
        weights_from(file, Residual(), IMAGES)
    names = {"bn1": "BatchNorm_0", "layer2.0.downsample": "Block_2"}
    with pytest.raises(ValueError, match=r"the same layers within 'layer2.0.downsample' and 'Block_2'"):
        weights_from(file, Residual(), IMAGES, names=names)
    names = {"bn1": "BatchNorm_0", "layer2.0.downsample.1": "params/Block_2/BatchNorm_2"}
    weights_from(file, Residual(), IMAGES, names=names, logits=logits)
    blocks = {f"blocks.{number}": f"TransformerBlock_{number}" for number in range(2)}
    weights_from(FOLDER / "transformer.safetensors", Transformer(), TOKENS, names=blocks, logits=OUTPUTS["transformer"])


@pytest.mark.parametrize("wrong", [{"bn1": "Block_0/BatchNorm_0", "layer1.0.bn2": "BatchNorm_0"}])
def test_the_logits_tell_of_a_wrong_pair(wrong):
    weights_from(FOLDER / "residual.pt", Residual(), IMAGES, names=wrong)
    with pytest.raises(
        ValueError, match=r"logits must be those of the module to 1e-05 of the largest, .* were paired "
    ):
        weights_from(FOLDER / "residual.pt", Residual(), IMAGES, names=wrong, logits=OUTPUTS["residual"])


@pytest.mark.parametrize("module", [Transformer(epsilon=1e-2), Transformer(heads=4)])
def test_the_logits_tell_of_what_a_state_dict_does_not_hold(module):
    with pytest.raises(
        ValueError, match=r"logits must be those of the module .* Compare strides, padding, epsilon, heads"
    ):
        weights_from(FOLDER / "transformer.pt", module, TOKENS, logits=OUTPUTS["transformer"])


def test_a_new_head_keeps_its_own_numbers():
    module = Convolutional(classes=7)
    own = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 3.0), jax.eval_shape(from_linen(module)[0], jax.random.key(0), IMAGES)
    )
    with pytest.raises(
        ValueError, match=r"in the source fc2 \(5, 12\); in the module Dense_0 \(12, 7\), linear .* Nearest: fc2 to"
    ):
        weights_from(FOLDER / "cnn.pt", module, IMAGES)
    weights, report = weights_from(FOLDER / "cnn.pt", module, IMAGES, skip=("fc2",), keep=("Dense_0",), target=own)
    assert weights.params["Dense_0"]["kernel"].tolist() == own.params["Dense_0"]["kernel"].tolist()
    whole, _ = weights_from(FOLDER / "cnn.pt", Convolutional(), IMAGES)
    del weights.params["Dense_0"], whole.params["Dense_0"]
    jax.tree.map(np.testing.assert_array_equal, weights, whole)
    said = [
        (entry.name or entry.source, entry.what) for entry in report if entry.why in ("named by keep", "named by skip")
    ]
    assert said == [
        ("params/Dense_0/bias", "left"),
        ("params/Dense_0/kernel", "left"),
        ("fc2.weight", "unused"),
        ("fc2.bias", "unused"),
    ]


class Tensor:
    """As a torch tensor on the CPU: NumPy asks it for its numbers."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_a_mapping_stands_for_a_file_and_types_are_cast_aloud():
    state = {
        name: Tensor(array.astype(np.float64) if array.ndim else array)
        for name, array in read(FOLDER / "cnn.pt").items()
    }
    _, report = weights_from(state, Convolutional(), IMAGES, logits=OUTPUTS["cnn"])
    assert all(entry.why.endswith("cast from float64 to float32") for entry in report if entry.what == "copied")

    half = nn.Dense(2, param_dtype=jnp.float16)
    weights, report = weights_from(
        {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(2, np.float32)}, half, np.ones((1, 3), np.float16)
    )
    assert weights.params["kernel"].dtype == jnp.float16
    assert report[0].why == "cast from float32 to float16"
    with pytest.raises(
        ValueError, match=r"source must hold numbers that float16 holds; those for params/bias are too large"
    ):
        weights_from({"a.weight": np.ones((2, 3)), "a.bias": np.full(2, 1e5)}, half, np.ones((1, 3), np.float16))


def test_inputs_may_hold_numbers_beside_arrays():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(2)(inputs["x"]) * inputs["scale"]

    state = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(2, np.float32)}
    found, _ = weights_from(state, Scaled(), {"x": np.ones((4, 3), np.float32), "scale": 2.0})
    assert found.params["Dense_0"]["bias"].tolist() == [1.0, 1.0]


def test_weights_that_two_layers_share_are_skipped_by_name():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            table = nn.Embed(7, 4)
            return table.attend(table(ids))

    state = dict.fromkeys(("wte.weight", "lm_head.weight"), np.ones((7, 4), np.float32))
    ids = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"skip, as of weights that two layers share and the module has once"):
        weights_from(state, Tied(), ids)
    weights, _ = weights_from(state, Tied(), ids, skip=("lm_head",))
    assert weights.params["Embed_0"]["embedding"].shape == (7, 4)


def test_branches_that_are_joined_flattened_are_reordered_by_nobody_but_you():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            maps = nn.Conv(4, (1, 1))(x), nn.Conv(2, (1, 1))(x)
            return nn.Dense(5)(jnp.concatenate([one.reshape(len(one), -1) for one in maps], axis=1))

    shapes = {"a.weight": (4, 3, 1, 1), "a.bias": (4,), "b.weight": (2, 3, 1, 1), "b.bias": (2,)}
    shapes |= {"fc.weight": (5, 6 * 8 * 6), "fc.bias": (5,)}
    state = {name: np.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=r'flattened must be "last" for Dense_0'):
        weights_from(state, Two(), np.ones((2, 8, 6, 3), np.float32), flattened={"Dense_0": "first"})


def test_the_frames_of_a_video_stay_in_front_of_its_channels():
    class Video(nn.Module):
        @nn.compact
        def __call__(self, x):
            maps = nn.Conv(4, (1, 1))(x)
            return nn.Dense(5)(maps.reshape(len(maps), -1))

    draw = np.random.default_rng(0).normal
    frames, conv, head = draw(size=(2, 3, 2, 5, 3)), draw(size=(4, 3, 1, 1)), draw(size=(5, 3 * 4 * 2 * 5))
    state = {"conv.weight": conv, "conv.bias": np.zeros(4), "fc.weight": head, "fc.bias": np.zeros(5)}
    maps = np.einsum("bthwi,oi->btohw", frames, conv[:, :, 0, 0])  # as PyTorch holds them
    frames = frames.astype(np.float32)
    _, report = weights_from(state, Video(), frames, logits=maps.reshape(2, -1) @ head.T)
    assert any("rows reordered" in entry.why for entry in report)


def test_a_leaf_of_a_layer_of_ones_own_is_named_entry_by_entry():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return (
                x @ self.param("matrix", nn.initializers.zeros, (3, 3))
                + self.param("shift", nn.initializers.zeros, (3,))[None]
            )

    state = {"own.weight": np.arange(9.0).reshape(3, 3), "own.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"source and module must have the same layers"):
        weights_from(state, Own(), np.ones((4, 3), np.float32))
    names = {"own.weight": "matrix", "own.bias": "shift"}
    # A Linear's square matrix would have to be transposed, and nothing shows whether it is one's.
    with pytest.raises(
        ValueError, match=r"must not leave open whether own\.weight, of shape \(3, 3\), is transposed for matrix"
    ):
        weights_from(state, Own(), np.ones((4, 3), np.float32), names=names)
    state = {"own.matrix": state["own.weight"], "own.shift": state["own.bias"]}
    names = {"own.matrix": "matrix", "own.shift": "shift"}
    weights, _ = weights_from(state, Own(), np.ones((4, 3), np.float32), names=names)
    np.testing.assert_array_equal(weights.params["matrix"], state["own.matrix"])
