"""The page of exports: its program runs, from pictures to files that answer; what needs ONNX, where it is installed."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax.data.digits import read_digits

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)
THERE = importlib.util.find_spec("jax2onnx") is not None and importlib.util.find_spec("onnxruntime") is not None
TRAINING, ONNX, INT8, STABLEHLO, STRANGER, WEIGHTS, COSTS = BLOCKS


def run(names, *blocks):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "export.md", "exec"), names)
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The names after the first block, in a folder of pictures: digits, scaled to 16 × 16."""
    folder = tmp_path_factory.mktemp("page")
    for split in ("train", "test"):
        digits = read_digits(split)
        for number, (picture, label) in enumerate(zip(digits.inputs, digits.labels, strict=True)):
            place = folder / "pictures" / split / f"digit {label}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[..., 0]).save(place)
    names: dict = {}
    with contextlib.chdir(folder), jax.numpy_rank_promotion("allow"):
        run(names, TRAINING)
        yield names


def test_from_pictures_to_an_answer_in_onnx_runtime_are_25_lines():
    assert len([line for line in (TRAINING + ONNX).splitlines() if line.strip()]) <= 25
    assert "InferenceSession" in ONNX.splitlines()[-1]


def test_the_student_leaves_as_stablehlo_and_as_weights(trained):
    said = run(trained, STABLEHLO)
    assert said.startswith("digit ")
    test = trained["test"]
    accuracy = np.mean(np.asarray(trained["call"](test.inputs)).argmax(-1) == test.labels)
    assert accuracy > 0.7  # chance is 0.1
    run(trained, STRANGER)
    np.testing.assert_allclose(trained["logits"], trained["call"](test.inputs), rtol=1e-5, atol=1e-5)
    before = trained["weights"]
    run(trained, WEIGHTS)
    assert trained["weights"] is not before
    jax.tree.map(np.testing.assert_array_equal, trained["weights"], before)
    assert trained["description"]["class_names"][0] == "digit 0"


@pytest.mark.filterwarnings("default")  # of jax2onnx and its packages
@pytest.mark.skipif(not THERE, reason="needs jax2onnx and onnxruntime, in an environment with their orbax")
def test_the_student_leaves_as_onnx_in_32_and_in_8_bits(trained):
    said = run(trained, ONNX, INT8)
    difference, agreement = map(float, said.split())
    assert difference < 1e-4
    assert agreement > 0.95
    test = trained["test"]
    assert np.mean(trained["logits"].argmax(-1) == test.labels) > 0.7
    rows = run(trained, COSTS).splitlines()
    assert [line.split("|")[1].strip() for line in rows] == ["StableHLO", "ONNX, float32", "ONNX, int8"]
