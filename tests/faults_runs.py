"""Saves that are whole runs: a comparison, from its first file to results.json, and the report of a finished one."""

import functools
import io
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from faults_saves import Save, nothing
from rich.console import Console

from kdjax import cross_entropy, losses, on_logits, weighted_sum
from kdjax._trees import digest_of_tree
from kdjax.runs import Recipe, StoppedError, compare, write_report
from kdjax.runs.fitting import fit
from kdjax.runs.recipes import prepare
from kdjax.runs.report import _write

NETWORKS = ("teacher", "alone", "distilled")
EXAMPLES, BATCH, EPOCHS = 400, 8, 4  # 200 steps


@functools.cache
def recipes():
    """Of a dense network on the digits, an epoch of four updates each."""
    import tiny

    labels = weighted_sum(labels=(1.0, cross_entropy))
    soft = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(losses.soft_target_kl, temperature=4.0)))
    return {
        name: Recipe(tiny.network(width), objective, lambda updates: optax.sgd(0.3), 1, 256, name=name)
        for name, width, objective in zip(NETWORKS, (12, 6, 6), (labels, labels, soft), strict=True)
    }


@functools.cache
def data():
    from kdjax.data import load

    return [load("digits", split) for split in ("train", "test")]


def compared(folder: Path, resume: bool = False, report: bool = False):
    """A comparison; its report is a save of its own here, since it takes longer than all else."""
    module = sys.modules["kdjax.runs.compare"]
    own = module.report_at_end
    if not report:
        module.report_at_end = lambda *run: ""
    try:
        console = Console(file=io.StringIO())
        return compare(
            folder / "run",
            data=data(),
            seeds=1,
            cache="disk",
            resume=resume,
            console=console,
            print_every=0,
            **recipes(),
        )
    finally:
        module.report_at_end = own


def compared_again(folder: Path) -> None:
    """With --resume where there is a run to go on with, as its messages say."""
    try:
        compared(folder)
    except FileExistsError:
        compared(folder, resume=True)


def numbers(results) -> list:
    seconds = ("seconds",)
    return [
        {name: {key: value for key, value in seed[name].items() if key not in seconds} for name in NETWORKS}
        for seed in results["seeds"]
    ]


@functools.cache
def wanted_numbers():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return numbers(compared(Path(folder)))


def comparison_of(folder: Path) -> str:
    """Its results must be those of an unbroken run, whether they were just written or are there from before."""
    import json

    file = folder / "run" / "results.json"
    if not file.exists():
        return "before"
    assert numbers(json.loads(file.read_text())) == wanted_numbers()
    return "after"


# --- reports


def without_report(folder: Path) -> None:
    compared(folder, report=True)
    (folder / "run" / "report.html").rename(folder / "wanted.html")
    for figure in (folder / "run" / "report-figures").iterdir():
        figure.unlink()


def reported(folder: Path) -> None:
    """Figures are drawn once a process: what is struck is how they are written."""
    _write.as_png = lambda one: b"PNG of " + one.name.encode()
    write_report(folder / "run")


def report_of(folder: Path) -> str:
    page = folder / "run" / "report.html"
    if not page.exists():
        return "before"
    assert page.read_text() == (folder / "wanted.html").read_text()
    return "after"


RUNS = {
    "a comparison, from its first file to results.json": Save(nothing, compared, comparison_of, compared_again),
    "a report": Save(without_report, reported, report_of, reported),
}


# --- a network's training that is asked to stop


@functools.cache
def fitted_trainer():
    import tiny

    inputs = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype(np.float32)
    arrays = {"inputs": jax.numpy.asarray(inputs), "labels": jax.numpy.asarray(inputs.argmax(axis=1))}
    goal = weighted_sum(labels=(1.0, cross_entropy))
    recipe = Recipe(tiny.network(5, classes=4), goal, lambda updates: optax.adam(1e-2), EPOCHS, BATCH)
    return prepare(recipe, EXAMPLES), arrays


def fitted(folder: Path, stop_at: int | None = None):
    """The weights' digest and the epochs' numbers; None where it stopped after that step, as it was asked to."""
    trainer, arrays = fitted_trainer()
    weights = trainer.init(jax.random.key(0), arrays["inputs"][:1])
    calls = iter(range(1, 10**6))
    stop = None if stop_at is None else lambda: next(calls) == stop_at
    settings = {"seed": 3, "folder": folder, "console": Console(file=io.StringIO()), "label": "own", "print_every": 0}
    try:
        found, history = fit(trainer, weights, arrays, arrays, stop=stop, **settings)
    except StoppedError:
        return None
    return digest_of_tree(found), [{key: one[key] for key in ("epoch", "train", "test")} for one in history]
