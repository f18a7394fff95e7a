"""The same training in kdjax and in PyTorch: recipes, methods, and what both sides read. Neither JAX nor PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

TEMPERATURE = 4.0
CRD = {"dim": 128, "temperature": 0.07, "momentum": 0.5, "warmup": 100}
BORDER = 4  # pixels of 0 around a picture that is cut out at random

METHODS: dict[str, dict[str, float]] = {
    "KD": {"labels": 0.1, "soft": 0.9},
    "FitNets": {"labels": 1.0, "hint": 100.0},
    "AT": {"labels": 1.0, "attention": 1000.0},
    "SP": {"labels": 1.0, "similarity": 3000.0},
    "CC": {"labels": 1.0, "congruence": 0.02},
    "VID": {"labels": 1.0, "variational": 1.0},
    "RKD": {"labels": 1.0, "distance": 25.0, "angle": 50.0},
    "PKT": {"labels": 1.0, "pkt": 30000.0},
    "NST": {"labels": 1.0, "selectivity": 50.0},
    "CRD": {"labels": 1.0, "crd": 0.8},
    "FSP": {"labels": 1.0, "flow": 50.0},
    "AB": {"labels": 1.0, "boundary": 0.001},
    "DKD": {"labels": 1.0, "decoupled": 1.0},
    "DIST": {"labels": 1.0, "dist": 1.0},
    "standardized": {"labels": 0.1, "standardized": 0.9},
}
"""Each method's terms and their weights: those of RepDistiller's scripts, where it has the method."""
STAGED = ("attention", "variational", "selectivity")
"""Terms of which there is one for each stage."""


@dataclass(frozen=True)
class Recipe:
    """Who teaches whom, and how; RepDistiller's numbers, where it has them.

    Attributes:
      teacher, student: names in `CNNS`, or of wide residual networks.
      stages: how many features ``stage1`` … both networks have.
      steps: of the student.
      teacher_steps: of the teacher, on the labels alone.
      drops: after what share of the steps the learning rate becomes a tenth of itself.
      views: whether pictures are cut out at random and mirrored, anew in each epoch.
      negatives: of CRD, for each example.
      drawn_alike: whether PyTorch gets the negatives that kdjax draws, or draws its own.
    """

    teacher: str
    student: str
    stages: int
    steps: int
    teacher_steps: int
    batch: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    decay: float = 5e-4
    drops: tuple[float, ...] = ()
    views: bool = False
    negatives: int = 256
    drawn_alike: bool = True

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"stage{number + 1}" for number in range(self.stages))

    def rate_at(self, step: int) -> float:
        return self.learning_rate * 0.1 ** sum(step >= drop for drop in self.dropped_at())

    def dropped_at(self) -> list[int]:
        return [round(share * self.steps) for share in self.drops]


# Widths of the stages, and of the hidden layer; all with batch normalisation.
CNNS = {"cnn_8_16": ((8, 16), 32), "cnn_16_32": ((16, 32), 64), "cnn_32_64_128": ((32, 64, 128), 128)}
DROPS = (150 / 240, 180 / 240, 210 / 240)
RECIPES = {
    "small": Recipe("cnn_16_32", "cnn_8_16", 2, steps=200, teacher_steps=400),
    **{
        name: Recipe(teacher, student, 3, 0, 0, drops=DROPS, views=True, negatives=16384, drawn_alike=False)
        for name, teacher, student in (("wrn", "wrn_40_2", "wrn_16_2"), ("unlike", "wrn_40_2", "cnn_32_64_128"))
    },
}


class Data(NamedTuple):
    """Pictures uint8 [examples, height, width, channels] and labels int32; channels' means and deviations of x / 255."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def saved(file: Path, data: Data) -> None:
    np.savez(file, **data._asdict())


def read(file: Path) -> Data:
    with np.load(file) as kept:
        return Data(**{name: kept[name] for name in Data._fields})


def normal(images: np.ndarray, data: Data) -> np.ndarray:
    return (images / 255 - data.mean) / data.deviation


def terms_of(method: str, recipe: Recipe) -> dict[str, float]:
    """The weight of each term by name: those of `STAGED` are there once for each stage."""
    weights = {}
    for kind, weight in METHODS[method].items():
        names = [f"{kind}_{stage}" for stage in recipe.stage_names] if kind in STAGED else [kind]
        weights |= dict.fromkeys(names, weight)
    return weights


def epochs(
    order: np.ndarray, data: Data, recipe: Recipe, seed: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Epoch by epoch, which examples make which batch, [steps, batch], and how each picture is seen.

    `order` is of all steps, [steps, batch]. With views, ``corner`` [examples, 2] is where the picture is cut out of the one
    with a border, ``mirrored`` whether it is turned around.
    """
    examples = len(data.labels)
    each = examples // recipe.batch
    for number, first in enumerate(range(0, len(order), each)):
        draw = np.random.default_rng((seed, number))
        seen = {
            "corner": draw.integers(0, 2 * BORDER + 1, (examples, 2), dtype=np.int32),
            "mirrored": draw.integers(0, 2, examples, dtype=np.int32),
        }
        yield order[first : first + each], seen if recipe.views else {}
