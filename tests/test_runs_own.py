"""From nothing to a table: one's own network, one's own folder of pictures, and what it takes of one's own code."""

import re

import numpy as np

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
