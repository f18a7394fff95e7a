"""ONNX, run by ONNX Runtime; where jax2onnx is missing, that it says so and how to get it."""

import importlib.util
import json
import sys

import families
import jax
import numpy as np
import pytest
from flax import linen as nn

from kdjax import Weights
from kdjax.data import unit_range
from kdjax.export import read_onnx, to_int8, to_onnx
from kdjax.models import CNN, WideResNet
from kdjax.networks import from_linen

THERE = importlib.util.find_spec("jax2onnx") is not None and importlib.util.find_spec("onnxruntime") is not None
needed = pytest.mark.skipif(not THERE, reason="needs jax2onnx and onnxruntime, in an environment with their orbax")
# What jax2onnx, onnx and onnxruntime warn of in themselves.
pytestmark = [pytest.mark.filterwarnings("default")]

MODELS = {
    "cnn": (CNN((4, 8), hidden=16), (8, 9, 1)),
    "normalised": (CNN((128, 128), batch_norm=True, dropout=0.3, padding="VALID"), (10, 10, 3)),
    "wide_resnet": (WideResNet(depth=10, width=8, classes=7), (8, 8, 3)),
}
INPUTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
WEIGHTS = Weights(np.arange(8.0, dtype=np.float32).reshape(4, 2), {})


def linear(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, model_state


def pictures(shape, batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *shape)).astype(np.uint8)


def answers(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(["logits"], inputs)[0], session.get_modelmeta().custom_metadata_map


@needed
@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_in_onnx_runtime(name, tmp_path):
    module, shape = MODELS[name]
    init, apply = from_linen(module)
    weights = jax.jit(init)(jax.random.key(0), unit_range(pictures(shape, 1)))
    words = [f"class {number}" for number in range(module.classes)]
    path = tmp_path / "new" / "student.onnx"
    record = to_onnx(path, apply, weights, pictures(shape, 2), preprocess=unit_range, class_names=words)
    inputs = pictures(shape, 5)  # a batch of another size than the example
    found, metadata = answers(path, {"inputs": inputs})
    expected = np.asarray(apply(*weights, unit_range(inputs), train=False)[0].logits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert 0 <= record["largest_difference"] <= 1e-5 * np.abs(expected).max() * 2
    assert json.loads(metadata["class_names"]) == words
    assert record["inputs"] == {"inputs": {"shape": [None, *shape], "dtype": "uint8"}}
    assert record["bytes"] == path.stat().st_size
    assert read_onnx(path).items() <= record.items()

    small = tmp_path / "int8.onnx"
    record8 = to_int8(small, path, pictures(shape, 30), batch_size=20)
    found8, metadata8 = answers(small, {"inputs": inputs})
    assert json.loads(metadata8["class_names"]) == words
    assert record8["calibrated_with"] == 30
    assert 0 < np.abs(found8 - expected).max() < 0.2 * np.ptp(expected)
    assert 0.7 <= record8["agreement"] <= 1
    if name != "cnn":  # of few weights the names of the operations are the most
        assert record8["bytes"] < 0.4 * record["bytes"]


@needed
@pytest.mark.parametrize("name", [name for name in families.SMALL if name != "wide_resnet"])
def test_every_family_answers_in_onnx_runtime(name, tmp_path, monkeypatch):
    families.shorten(monkeypatch)
    module, (_, *shape) = families.SMALL[name]
    _, apply = from_linen(module)
    weights = families.filled(module, (1, *shape))
    with jax.numpy_rank_promotion("allow"):  # which jax2onnx's form of Flax's convolutions wants
        to_onnx(tmp_path / "student.onnx", apply, weights, families.images(2, *shape))
    inputs = families.images(3, *shape, seed=1)  # a batch of another size than the example
    found, _ = answers(tmp_path / "student.onnx", {"inputs": inputs})
    expected = jax.jit(lambda inputs: apply(*weights, inputs, train=False)[0].logits)(inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.ptp(expected))


@needed
def test_inputs_may_be_a_tree_and_the_size_of_the_batch_asked_for(tmp_path):
    def both(params, model_state, inputs, *, train, rng=None):
        return (inputs["left"] + inputs["far"]["right"]).reshape(len(inputs["left"]), -1) @ params, model_state

    record = to_onnx(tmp_path / "tree.onnx", both, WEIGHTS, {"left": INPUTS, "far": {"right": 2 * INPUTS}})
    assert sorted(record["inputs"]) == ["far/right", "left"]
    found, _ = answers(tmp_path / "tree.onnx", {"left": INPUTS[:2], "far/right": INPUTS[:2]})
    np.testing.assert_allclose(found, 2 * INPUTS[:2] @ WEIGHTS.params, rtol=1e-5)


class OfItsLength(nn.Module):
    """As many write it, and as the README does."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(images))
        return nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))


@needed
def test_a_convolutional_network_may_ask_for_the_size_of_the_batch(tmp_path):
    init, apply = from_linen(OfItsLength())
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
    weights = init(jax.random.key(0), images)
    to_onnx(tmp_path / "student.onnx", apply, weights, images)
    found, _ = answers(tmp_path / "student.onnx", {"inputs": images[:2]})
    np.testing.assert_allclose(found, apply(*weights, images[:2], train=False)[0].logits, rtol=0, atol=1e-5)
    assert to_int8(tmp_path / "int8.onnx", tmp_path / "student.onnx", images)["largest_difference"] < 0.1


@needed
def test_logits_that_differ_are_refused_and_nothing_written(tmp_path, monkeypatch):
    from kdjax.export import _onnx

    real = _onnx._running
    monkeypatch.setattr(_onnx, "_running", lambda *given: lambda inputs: 1.001 * real(*given)(inputs))
    with pytest.raises(ValueError, match="they differ by"):
        to_onnx(tmp_path / "student.onnx", linear, WEIGHTS, INPUTS)
    assert list(tmp_path.iterdir()) == []


@needed
def test_what_cannot_be_translated_is_named(tmp_path):
    def drawn(params, model_state, inputs, *, train, rng=None):
        return inputs @ params + jax.lax.linalg.schur(np.eye(2, dtype=np.float32))[0].sum(), model_state

    with pytest.raises(ValueError, match="apply must be of operations that"):
        to_onnx(tmp_path / "student.onnx", drawn, WEIGHTS, INPUTS)
    assert list(tmp_path.iterdir()) == []


@needed
def test_bad_files_and_bad_calibration_are_named(tmp_path):
    path = tmp_path / "student.onnx"
    to_onnx(path, linear, WEIGHTS, INPUTS)
    with pytest.raises(FileExistsError, match="path must be free"):
        to_onnx(path, linear, WEIGHTS, INPUTS)
    with pytest.raises(FileExistsError, match="path must be free"):
        to_int8(path, path, INPUTS)
    for calibration in (INPUTS[:, :3], INPUTS.astype(np.float64), {"other": INPUTS}):
        with pytest.raises(ValueError, match="calibration must be batches of what"):
            to_int8(tmp_path / "int8.onnx", path, calibration)
    for calibration, message in ((INPUTS[:0], "must be a batch"), (np.nan * INPUTS, "must give finite logits")):
        with pytest.raises(ValueError, match=f"calibration {message}"):
            to_int8(tmp_path / "int8.onnx", path, calibration)
    with pytest.raises(ValueError, match="batch_size"):
        to_int8(tmp_path / "int8.onnx", path, INPUTS, batch_size=0)
    to_int8(tmp_path / "eight.onnx", path, INPUTS)
    with pytest.raises(ValueError, match=r"source must be a file of to_onnx; .*eight\.onnx is one of to_int8"):
        to_int8(tmp_path / "int8.onnx", tmp_path / "eight.onnx", INPUTS)
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx does not exist"):
        to_int8(tmp_path / "int8.onnx", tmp_path / "missing.onnx", INPUTS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="path must be a file of to_onnx, whole"):
        to_int8(tmp_path / "int8.onnx", path, INPUTS)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("missing", ["jax2onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_way_to_get_it(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'{missing} is missing.* pip install "kdjax\[onnx\]"'):
        to_onnx(tmp_path / "student.onnx", linear, WEIGHTS, INPUTS)
