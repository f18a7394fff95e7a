"""Article C in kdjax, phase by phase, with the functions that `kdjax.runs.compare` trains by."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import optax
from _arithmetic import Peak
from _cases import LABELS_ONLY, WITH_TEACHER
from _work import LEARNING_RATE, STUDENT, TEACHER
from rich.console import Console

from experiments._networks import make_model
from kdjax.caching import cache_teacher
from kdjax.data import Dataset, on_device, unit_range
from kdjax.networks import from_linen
from kdjax.runs.fitting import fit
from kdjax.runs.recipes import Recipe, prepare
from kdjax.training import jit_init


def steps(data: list[Dataset], epochs: int, batch: int) -> dict[str, Any]:
    """The article's three phases by name, and what else is asked of this side.

    A phase trains a new network, compiles all that it needs, and evaluates after each epoch. The first also brings the data
    to the device, the last asks the teacher, once. State and metrics go to a folder, as in the experiment.
    """
    kept: dict[str, Any] = {}

    def phase(name: str, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        if name == "teacher":
            kept["data"] = jax.block_until_ready([on_device(part, unit_range) for part in data])
        train, test = kept["data"]
        if name == "distilled":
            train = train | cache_teacher(*kept["teacher"], train["inputs"])
        model = make_model(TEACHER if name == "teacher" else STUDENT, classes=len(data[0].class_names))
        objective = WITH_TEACHER if name == "distilled" else LABELS_ONLY
        init, apply = from_linen(model)
        recipe = Recipe((jit_init(init), apply), objective, lambda updates: optax.adam(LEARNING_RATE), epochs, batch)
        trainer = prepare(recipe, len(train["labels"]))
        # One key for both students, another for the teacher.
        key = jax.random.fold_in(jax.random.key(seed), int(name != "teacher"))
        weights = trainer.init(key, train["inputs"][:1])
        with TemporaryDirectory() as folder:
            quiet = {"folder": Path(folder), "console": Console(quiet=True), "label": name}
            weights, history = fit(trainer, weights, train, test, seed=seed, **quiet)
        if name == "teacher":
            kept["teacher"] = trainer.apply, weights
        return {
            "seconds": time.perf_counter() - started,
            "epochs_s": [epoch["seconds"] for epoch in history],
            "test_accuracy": history[-1]["test"]["accuracy"],
        }

    def product_rate() -> float:
        """FLOP/s of a large matrix product."""
        peak = Peak()
        peak.measure()
        return peak.rate

    return {"phase": phase, "product_rate": product_rate}
