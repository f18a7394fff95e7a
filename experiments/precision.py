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

import shlex
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from experiments.search import ALONE, DIGITS, ROOT, Search, trained

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from kdjax._files import write_json
from kdjax.metrics import mean_interval, paired_difference

ARMS = {"alone": ALONE, "distilled": DIGITS}


@dataclass(frozen=True)
class Precision:
    """The digits, the teacher and the student of digits.py; for each seed the same start, batches and teacher."""

    seeds: int = 16
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    epochs: int = 80
    """passes over the training data, for each student"""
    teacher_epochs: int = 20
    """passes over the training data, for the teacher"""
    out: Path = ROOT / "checkpoints" / "runs" / "precision"
    """folder of results.json, which is overwritten"""


def main(settings: Precision) -> None:
    console = Console()
    started = time.monotonic()
    training = Search(seeds=settings.seeds, epochs=settings.epochs, teacher_epochs=settings.teacher_epochs)
    accuracies = {
        dtype: trained(training, list(ARMS.values()), range(settings.seeds), "test", console, jnp.dtype(dtype))[0]
        for dtype in ("float32", "bfloat16")
    }
    write_json(
        settings.out / "results.json",
        {
            "command": shlex.join(["python", *sys.argv]),
            "config": asdict(settings) | {"out": str(settings.out)},
            "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
            "device": jax.devices()[0].device_kind,
            "seconds": time.monotonic() - started,
            "test_accuracy": {dtype: values.tolist() for dtype, values in accuracies.items()},
        },
    )
    shown = Table("test accuracy in %", *accuracies, "bfloat16 − float32")
    for column, name in enumerate(ARMS):
        single, half = (100 * accuracies[dtype][:, column] for dtype in ("float32", "bfloat16"))
        means = (f"{mean_interval(values):.2f}" for values in (single, half))
        shown.add_row(name, *means, f"{paired_difference(half, single):+.2f}")
    console.print(shown)
    console.print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main(tyro.cli(Precision, description=__doc__))
