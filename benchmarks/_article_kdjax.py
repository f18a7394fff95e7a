"""Article C in kdjax, phase by phase, with the functions that `experiments/compression.py` runs."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments._loop import EVALUATION_BATCH, Recipe, fit, prepare

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _arithmetic import Peak
from _kdjax_side import LABELS_ONLY, WITH_TEACHER
from _work import LEARNING_RATE, STUDENT, TEACHER, Batches
from rich.console import Console

from kdjax.caching import cache_teacher
from kdjax.data import unit_range


def steps(splits: Batches, classes: int, epochs: int, batch: int) -> dict[str, Any]:
    """The article's three phases by name, and what else is asked of this side.

    A phase trains a new network, compiles all that it needs, and evaluates after each epoch. The first also brings the data
    to the device, the last asks the teacher, once. State and metrics go to a folder, as in the experiment.
    """
    kept: dict[str, Any] = {}

    def phase(name: str, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        if name == "teacher":
            kept["train"], kept["test"] = (_on_device(images, labels) for images, labels in splits)
        train = kept["train"]
        if name == "distilled":
            network, teacher = kept["teacher"]
            train = train | cache_teacher(network.apply, teacher, train["inputs"], batch_size=EVALUATION_BATCH)
        recipe = Recipe(
            TEACHER if name == "teacher" else STUDENT,
            WITH_TEACHER if name == "distilled" else LABELS_ONLY,
            lambda updates: optax.adam(LEARNING_RATE),
            epochs,
            batch,
        )
        network = prepare(recipe, examples=len(train["labels"]), classes=classes)
        # One key for both students, another for the teacher.
        init_key = jax.random.fold_in(jax.random.key(seed), int(name != "teacher"))
        with TemporaryDirectory() as folder:
            weights, history = fit(
                network,
                weights=network.init(init_key, train["inputs"][:1]),
                train=train,
                test=kept["test"],
                seed=seed,
                folder=Path(folder),
                console=Console(quiet=True),
                label=name,
            )
        if name == "teacher":
            kept["teacher"] = network, weights
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


def _on_device(images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    arrays = {"inputs": jax.jit(unit_range)(jnp.asarray(images)), "labels": jnp.asarray(labels)}
    return jax.block_until_ready(arrays)
