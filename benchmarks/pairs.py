"""Does kdjax train a student as a plain loop in PyTorch does, step by step, and to the same accuracy?

python benchmarks/pairs.py --data idx:MNIST_FOLDER --examples 12800 --torch PYTHON --ledger benchmarks/ledger.jsonl
python benchmarks/pairs.py --pair wrn --data npz:CIFAR_FILE --platform cuda --kept FOLDER --ledger benchmarks/ledger.jsonl

For each method and seed both sides start from the same weights, the connectors' among them, see the same batches, and are
taught by the same teacher. The pair `small` makes 200 steps on a CPU and compares the loss and each of its terms at every
one, in float32 and, to tell rounding from a difference in mathematics, in float64. The pairs `wrn` and `unlike` are
RepDistiller's recipe whole, on pictures of 32 × 32; their first steps are compared, and the accuracies at the end.

Each result is a line of the ledger, at once; what it has already, by the same settings and data, is not measured again.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, ClassVar, Literal

import _pairs_kdjax
import _sides
import jax
import numpy as np
from _command_line import command_line
from _losses_compared import version_of_torch
from _pairs_judged import an_epoch, figures_of, row_of
from _pairs_work import METHODS, RECIPES, Data, Recipe, saved, terms_of
from _script import Report, Settings, gpu

from experiments import _ledger
from kdjax._files import digest_of_json
from kdjax.data import load, make_dataset
from kdjax.losses import Bank
from kdjax.runs import as_json, digest

OF_TEACHER = 1000
"""The teacher's seed: another than any student's."""
Sides = dict[tuple[str, str], dict[str, Any]]
"""By whose it is and precision."""


@dataclass(frozen=True)
class Benchmark(Settings):
    """The same trainings in kdjax and in PyTorch. A trial is of 3 methods, 1 seed and 3 steps."""

    LEAST: ClassVar = {"seeds": 1, "steps": 0, "epochs": 1, "examples": 0, "tested": 0, "compared": 0, "rate": 0}
    pair: Literal["small", "wrn", "unlike"] = "small"
    """who teaches whom: two small CNNs, WRN-40-2 and WRN-16-2, WRN-40-2 and a CNN"""
    data: str = "digits"
    """pictures: digits, idx:DIR, npz:FILE, npy:DIR, folder:DIR, …; random: 60,000 that show nothing, for speeds"""
    data_dir: Path | None = None
    """folder with original files"""
    examples: int = 0
    """use the first so many training pictures; 0: all"""
    tested: int = 0
    """test on the first so many test pictures; 0: all"""
    methods: tuple[Literal[tuple(METHODS)], ...] = tuple(METHODS)  # type: ignore[valid-type]
    """which"""
    seeds: int = 3
    """how often each method is trained, with seeds 0, 1, …"""
    epochs: int = 240
    """passes over the data of wrn and unlike, the teacher's too"""
    steps: int = 0
    """updates of the student, and for wrn and unlike of the teacher, in the place of what the recipe says; 0: as it says"""
    rate: float = 0.0
    """SGD's, of the student and the teacher, in the place of 0.05; 0: that"""
    compared: int = 200
    """first steps whose losses are compared"""
    precisions: tuple[Literal["float32", "float64", "TF32"], ...] = ()
    """what both sides compute in; default float32 and float64 for small, else TF32, which on a CPU is float32"""
    alone: bool = False
    """kdjax alone, without PyTorch"""
    platform: Literal["cpu", "cuda"] = "cpu"
    """what computes"""
    torch: Path | None = None
    """Python of another environment, which has PyTorch; default this one"""
    kept: Path | None = None
    """folder in which the trained teacher is kept for the next call"""
    ledger: Path | None = None
    """where a line of JSON is added for each method and seed"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    version, reason = (None, "--alone") if settings.alone else version_of_torch(settings.torch)
    report.found["versions"]["torch"] = version
    if settings.platform == "cuda":
        report.found["hardware"] |= {"platform": "gpu", "device": gpu()}
    if version is None:
        report.console.print(f"PyTorch is not measured: {reason}", markup=False, soft_wrap=True)
    data = data_of(settings)
    recipe = recipe_of(settings, len(data.labels))
    precisions = settings.precisions or (("float32", "float64") if settings.pair == "small" else ("TF32",))
    told = {
        "pair": settings.pair, "recipe": asdict(recipe), "compared": settings.compared, "precisions": precisions,
        "platform": settings.platform, "pytorch": version is not None, "source": _named(settings.data),
        "pictures": [len(data.labels), len(data.test_labels)],
    }  # fmt: skip
    digests = {"pictures": digest(data.images, data.labels, data.test_images, data.test_labels)}
    about = as_json(report.found | {"settings": told, "data": digests})
    lines: list[_ledger.Line] = []
    with TemporaryDirectory() as folder:
        file = Path(folder, "data.npz")
        saved(file, data)
        sides: Sides = {}
        for method, seed in _wanted(settings, about, report):
            if not sides:
                sides = _sides_of(settings, recipe, file, precisions, version is not None)
                with report.console.status("the teacher"):
                    teacher, of_teacher = _teacher(settings, recipe, data, sides, about)
            with report.console.status(f"{method}, seed {seed}"):
                trained = _trained(method, seed, recipe, data, sides, teacher)
            figures = figures_of(trained) | {"weights": terms_of(method, recipe)} | of_teacher
            line = as_json(_ledger.line_of("pairs", method, seed, figures, about))
            lines.append(line | {"curves": {" ".join(who): one["curves"] for who, one in trained.items()}})
            if settings.ledger is not None:
                _ledger.add(settings.ledger, [line])
            report.console.print(row_of(line), markup=False, soft_wrap=True)
    report.write(lines=lines)


def _wanted(settings: Benchmark, about: dict[str, Any], report: Report) -> Iterator[tuple[str, int]]:
    """What the ledger does not have yet; a method's seeds follow each other, which are one program."""
    there = [] if settings.ledger is None else _ledger.read(settings.ledger, "pairs")
    same = {
        (line["part"], line["seed"])
        for line in there
        if all(line[name] == about[name] for name in ("settings", "data"))
    }
    methods, seeds = (settings.methods[:3], 1) if settings.quick else (settings.methods, settings.seeds)
    for method in methods:
        for seed in range(seeds):
            if (method, seed) in same:
                report.console.print(f"{method}, seed {seed}: the ledger has it.", markup=False)
            else:
                yield method, seed


def _sides_of(settings: Benchmark, recipe: Recipe, file: Path, precisions: tuple[str, ...], torch: bool) -> Sides:
    sides: Sides = {}
    for precision in precisions:
        given = file, recipe, settings.compared, precision
        sides["kdjax", precision] = _sides.apart("_pairs_kdjax", *given, platform=settings.platform)
        if torch:
            python = settings.torch or sys.executable
            sides["PyTorch", precision] = _sides.apart("_pairs_pytorch", *given, settings.platform, python=python)
    return sides


def _teacher(
    settings: Benchmark, recipe: Recipe, data: Data, sides: Sides, about: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Its weights, and figures: trained by kdjax on the labels, or kept from an earlier call."""
    same = digest_of_json([about["data"], asdict(replace(recipe, student="", steps=0)), settings.platform])
    file = None if settings.kept is None else settings.kept / f"teacher-{same}.npz"
    fresh = _pairs_kdjax.initial(None, OF_TEACHER, recipe, data, None)
    leaves, structure = jax.tree.flatten(fresh)
    if file is not None and file.exists():
        with np.load(file) as kept:
            weights = jax.tree.unflatten(structure, [kept[f"a{place}"] for place in range(len(leaves))])
            return weights, {"teacher_accuracy": float(kept["accuracy"]), "teacher_epoch_s": None}
    train = sides["kdjax", min(precision for _, precision in sides)]["train"]  # TF32, float32, float64
    order = _pairs_kdjax.order_of(data, recipe, recipe.teacher_steps, OF_TEACHER)
    found = train(None, OF_TEACHER, order, fresh, None)
    weights = found["weights"]
    if file is not None:
        named = {f"a{place}": array for place, array in enumerate(jax.tree.leaves(weights))}
        settings.kept.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=settings.kept, suffix=".npz", delete=False) as half:
            np.savez(half, **named, accuracy=np.array(found["accuracy"]))
        os.replace(half.name, file)
    return weights, {"teacher_accuracy": found["accuracy"], "teacher_epoch_s": an_epoch(found["epochs_s"])}


def _trained(
    method: str, seed: int, recipe: Recipe, data: Data, sides: Sides, teacher: tuple
) -> dict[tuple[str, str], dict[str, Any]]:
    """Each side's training, one after the other: from the same weights, on the same batches."""
    order = _pairs_kdjax.order_of(data, recipe, recipe.steps, seed)
    student = _pairs_kdjax.initial(method, seed, recipe, data, teacher)
    # PyTorch's Python does not know kdjax's types.
    is_bank = lambda one: isinstance(one, Bank)  # noqa: E731
    plain = jax.tree.map(lambda one: tuple(one) if is_bank(one) else one, student, is_leaf=is_bank)
    trained = {}
    for (who, precision), side in sides.items():
        if who == "kdjax":
            trained[who, precision] = side["train"](method, seed, order, student, teacher)
        else:
            negatives = sides["kdjax", precision]["drawn"](method, seed, order)
            trained[who, precision] = side["train"](method, seed, order, plain, teacher, negatives)
    return trained


def _named(source: str) -> str:
    """The source without its folders, which are this machine's."""
    kind, colon, rest = source.partition(":")
    return f"{kind}{colon}{Path(rest).name if kind in ('npz', 'npy', 'idx', 'folder') else rest}"


def data_of(settings: Benchmark) -> Data:
    if settings.data == "random":  # of CIFAR's size: speeds do not depend on what is in them
        draw = np.random.default_rng(0)
        images, labels = draw.integers(0, 256, (60_000, 32, 32, 3), np.uint8), draw.integers(0, 10, 60_000)
        train, test = (
            make_dataset(images[own], labels[own], class_names=tuple("0123456789"), name="random", split=split)
            for own, split in ((slice(50_000), "train"), (slice(50_000, None), "test"))
        )
    else:
        train, test = (load(settings.data, split, data_dir=settings.data_dir) for split in ("train", "test"))
    count = 3 * 64 if settings.quick else settings.examples or len(train.labels)
    pictures = train.inputs[:count]
    scaled = np.asarray(pictures, np.float64) / 255
    deviation = scaled.std(axis=(0, 1, 2))
    return Data(
        np.asarray(pictures), np.asarray(train.labels[:count], np.int32), np.asarray(test.inputs[: settings.tested or None]),
        np.asarray(test.labels[: settings.tested or None], np.int32), scaled.mean(axis=(0, 1, 2)), deviation,
    )  # fmt: skip


def recipe_of(settings: Benchmark, count: int) -> Recipe:
    recipe = RECIPES[settings.pair]
    recipe = replace(recipe, learning_rate=settings.rate or recipe.learning_rate)
    if settings.pair != "small":
        steps = settings.steps or settings.epochs * (count // recipe.batch)
        recipe = replace(recipe, steps=steps, teacher_steps=steps)
    return replace(recipe, steps=settings.steps or recipe.steps)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the sides have processes, and the device, of their own
    main(command_line(Benchmark, __doc__))
