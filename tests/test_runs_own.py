"""From nothing to a table: one's own network, one's own folder of pictures, and what it takes of one's own code."""

import json
import re

import numpy as np
import pytest
from comparisons import DATA, RECIPES, WIDTHS, numbers, run

from kdjax._trees import digest_of_program
from kdjax.checkpoints import read_description
from kdjax.data import make_dataset, unit_range
from kdjax.runs import remeasure, write_report

OWN = """
import optax
from flax import linen as nn

from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax.data import load
from kdjax.losses import soft_target_kl
from kdjax.networks import from_linen
from kdjax.runs import Recipe, compare


class CNN(nn.Module):  # any network of one's own
    width: int

    @nn.compact
    def __call__(self, images, train=False):
        maps = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(images))
        return nn.Dense(2)(maps.mean((1, 2)))


data = [load(f"folder:{folder}/pictures", split, size=16) for split in ("train", "test")]
labels = weighted_sum(labels=(1.0, cross_entropy))
both = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))


def recipe(width, objective):
    return Recipe(from_linen(CNN(width)), objective, lambda updates: optax.adam(1e-2), epochs=2, batch_size=8)


recipes = {"teacher": recipe(16, labels), "alone": recipe(4, labels), "distilled": recipe(4, both)}
results = compare(f"{folder}/run", data=data, **recipes, seeds=2, resume=True)
"""


def test_ones_own_network_and_pictures_take_25_lines(tmp_path, capsys):
    from PIL import Image

    code = [line for line in OWN.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 25
    noise = np.random.default_rng(0)
    for number, split in enumerate(["train"] * 24 + ["test"] * 8):
        folder = tmp_path / "pictures" / split / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 128, (18 + number % 5, 20, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    found = []
    for _ in range(2):
        names = {"folder": tmp_path}
        exec(compile(OWN, "own", "exec"), names)
        table = re.sub(r"[│ ]+", " ", capsys.readouterr().out)
        assert "distilled − alone" in table
        assert "teacher" in table
        found.append(names["results"]["seeds"])
    for first, second in zip(*found, strict=True):
        for phase in ("teacher", "alone", "distilled"):
            assert {**first[phase], "seconds": 0} == {**second[phase], "seconds": 0}
    assert (tmp_path / "run" / "seed-1" / "distilled" / "weights").is_dir()
    assert len((tmp_path / "run" / "seed-1" / "distilled" / "metrics.jsonl").read_text().splitlines()) == 2


def floats(part):
    """The same digits as floats, in the range that bytes are brought to."""
    inputs = np.asarray(unit_range(part.inputs))
    return make_dataset(inputs, part.labels, class_names=part.class_names, name=part.name, split=part.split)


def test_floats_of_a_data_set_are_taken_as_they_are(tmp_path):
    """They were refused, unless one gave a preprocess that does nothing."""
    own = [floats(part) for part in DATA]
    run(tmp_path / "bytes")
    run(tmp_path / "floats", data=own)
    for phase in WIDTHS:
        np.testing.assert_array_equal(numbers(tmp_path / "floats", phase), numbers(tmp_path / "bytes", phase))
    assert write_report(tmp_path / "floats").exists()
    assert not [one for one in remeasure(tmp_path / "floats", data=own, **RECIPES) if one.problem]
    before = (tmp_path / "floats" / "results.json").stat().st_mtime_ns
    run(tmp_path / "floats", data=own, resume=True)
    assert (tmp_path / "floats" / "results.json").stat().st_mtime_ns > before
    digests = {}
    for kind, name in (("bytes", "unit_range"), ("floats", "as_given")):
        for phase in WIDTHS:
            assert read_description(tmp_path / kind / "seed-0" / phase / "weights")["preprocess"] == name
        digests[kind] = json.loads((tmp_path / kind / "config.json").read_text())["programs"]["preprocess"]
    # That of bytes is the one that runs of before have.
    assert digests["bytes"] == digest_of_program(unit_range, DATA[0].inputs[:1])
    assert digests["floats"] == digest_of_program(lambda inputs: inputs, own[0].inputs[:1])
    with pytest.raises(ValueError, match="resume"):
        run(tmp_path / "floats", data=DATA, resume=True)
    with pytest.raises(
        ValueError, match=r"data must have inputs of one dtype in both sets, .* got float32 .* and uint8 to"
    ):
        run(tmp_path / "both", data=[own[0], DATA[1]])
    assert not (tmp_path / "both").exists()
