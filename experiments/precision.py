"""What does bfloat16 cost? The student of digits.py, computed in float32 and in bfloat16, all else equal.

    python experiments/precision.py

Five minutes on 2 cores that had other work to do. Test accuracy in %, mean ± 95 % interval over 16 seeds:

                float32        bfloat16       bfloat16 − float32
    alone       96.22 ± 0.66   96.72 ± 0.59   +0.50 ± 0.56
    distilled   97.27 ± 0.42   97.17 ± 0.44   −0.10 ± 0.31

These seeds show no cost: zero lies within both intervals.

Parameters, the optimiser's state, logits and losses are float32 in both. On a CPU bfloat16 saves nothing; this is about
accuracy.
"""

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments._settings import Run, recorded, start
from experiments.search import ALONE, DIGITS, Search, learning, teaching, way_of
from kdjax.data import on_device, unit_range
from kdjax.metrics import mean_interval, paired_difference

ARMS = {"alone": ALONE, "distilled": DIGITS}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Precision(Run):
    """The teacher and the student of digits.py; for each seed the same start, batches and teacher."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"""
    seeds: int = 16
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    epochs: int = 80
    """passes over the training data, for each student"""
    teacher_epochs: int = 20
    """passes over the training data, for the teacher"""
    batch_size: int = 32
    """examples an update"""


def main(settings: Precision) -> None:
    console = Console()
    data = settings.load()
    training = Search(epochs=settings.epochs, teacher_epochs=settings.teacher_epochs, batch_size=settings.batch_size)
    (taught, _), test = teaching(training, data[0]), on_device(data[1], unit_range)
    with recorded("precision", settings, data) as (results, entry, file):
        way = results.setdefault("way", way_of("auto"))
        arms = {dtype: learning(training, data[0], taught, way, console, dtype) for dtype in DTYPES}
        found = [
            [entry(seed, dtype, accuracies, seed, list(ARMS.values()), test) for dtype, accuracies in arms.items()]
            for seed in range(settings.seeds)
        ]
    shown = Table("test accuracy in %", *DTYPES, "bfloat16 − float32")
    for column, name in enumerate(ARMS):
        single, half = 100 * np.array(found)[:, :, column].T
        means = (f"{mean_interval(values):.2f}" for values in (single, half))
        shown.add_row(name, *means, f"{paired_difference(half, single):+.2f}")
    console.print(shown)
    console.print(f"Results: {file}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    start(main, Precision, __doc__)
