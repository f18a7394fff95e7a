"""The parts of hinton2015.py: each trains what it needs for one seed and returns its figures, counted on the test digits."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from experiments._hinton2015_training import Bench, fitted, goal, trainer_of
from experiments._setting import Arrays
from kdjax import Apply, Weights
from kdjax.caching import cache_teacher
from kdjax.networks import from_linen

AMOUNTS = np.arange(0, 401) / 10  # of a bias, among which the validation digits choose
Figures = dict[str, Any]
Taught = tuple[Weights, Arrays]


def trained_teacher(
    bench: Bench, seed: int, arrays: Arrays, told: Arrays, folder: str = "teacher"
) -> tuple[Weights, Figures]:
    """The seed's teacher, trained on these arrays, or read where it has been; the folder's name ends with "teacher"."""
    settings = bench.settings
    network = bench.network(settings.teacher_width, dropout=settings.dropout, input_dropout=settings.input_dropout)
    trainer = trainer_of(
        network, len(arrays["labels"]), settings.teacher_epochs, settings.batch_size,
        settings.teacher_learning_rate, limit=settings.max_norm, jittered=True,
    )  # fmt: skip
    weights, found = fitted(bench, trainer, seed, folder, arrays, told)
    return weights, found | {"errors": _whole(sum(found["errors"]))}


def with_soft_targets(bench: Bench, teacher: Weights, arrays: Arrays) -> Arrays:
    """The arrays with the teacher's logits, of the pictures as they are."""
    return dict(arrays) | cache_teacher(from_linen(bench.teacher)[1], teacher, arrays["inputs"])


@lru_cache(maxsize=1)
def taught(bench: Bench, seed: int) -> Taught:
    """The seed's teacher, and all training digits with its logits."""
    weights, _ = trained_teacher(bench, seed, bench.train, bench.test)
    return weights, with_soft_targets(bench, weights, bench.train)


def trained_student(
    bench: Bench,
    seed: int,
    name: str,
    arrays: Arrays,
    told: Arrays,
    *,
    epochs: int,
    alpha: float | None,
    views: str,
    teacher: Weights | None = None,
) -> tuple[Weights, Apply, Figures]:
    """One student of the usual width; `alpha` None: labels alone."""
    settings, taught, jittered = bench.settings, alpha is not None, views == "jitter"
    in_step = taught and jittered  # the teacher says what it sees in the same view
    trainer = trainer_of(
        bench.network(settings.student_width), len(arrays["labels"]), epochs, settings.batch_size,
        settings.learning_rate, taught=taught, beside=bench.teacher if in_step else None, jittered=jittered,
    )  # fmt: skip
    if in_step:
        arrays = {name: array for name, array in arrays.items() if name != "teacher"}
    objectives = [goal(alpha, settings.temperature)] if alpha is not None else []
    weights, found = fitted(
        bench, trainer, seed, name, arrays, told, objectives=objectives, teacher=teacher if in_step else None
    )
    return weights, trainer.apply, found


def teacher(bench: Bench, seed: int) -> Figures:
    return trained_teacher(bench, seed, bench.train, bench.test)[1] | _of(bench)


def alone(bench: Bench, seed: int, views: str = "none") -> Figures:
    name = "alone" if views == "none" else "alone_jittered"
    epochs = bench.settings.epochs
    found = trained_student(bench, seed, name, bench.train, bench.test, epochs=epochs, alpha=None, views=views)[2]
    return found | {"errors": _whole(sum(found["errors"]))} | _of(bench)


def distilled(bench: Bench, seed: int) -> Figures:
    settings, (weights, arrays) = bench.settings, taught(bench, seed)
    found = trained_student(
        bench, seed, "distilled", arrays, bench.test, epochs=settings.epochs, alpha=settings.alpha,
        views=settings.views, teacher=weights,
    )[2]  # fmt: skip
    return found | {"errors": _whole(sum(found["errors"]))} | _of(bench)


def curves(bench: Bench, seed: int) -> Figures:
    """Students of a width at every temperature, and one from labels alone, side by side in one program."""
    settings, (_, arrays) = bench.settings, taught(bench, seed)
    goals = {"labels alone": goal(1.0, 1.0)} | {f"{T:g}": goal(settings.alpha, T) for T in settings.temperatures}
    figures: Figures = {}
    for width in settings.curve_widths:
        trainer = trainer_of(
            bench.network(width), len(arrays["labels"]), settings.epochs, settings.batch_size,
            settings.learning_rate, taught=True, together=len(goals),
        )  # fmt: skip
        _, found = fitted(bench, trainer, seed, f"curve_{width}", arrays, bench.test, objectives=list(goals.values()))
        errors = [_whole(sum(one)) for one in found["errors"]]
        figures |= {f"{width}": dict(zip(goals, errors, strict=True)), f"{width}_seconds": found["seconds"]}
    return figures | _of(bench)


def only(arrays: Arrays, classes: Sequence[int], without: bool = False) -> Arrays:
    """The rows whose label is one of these classes, or with `without` none of them; a transfer set."""
    rows = np.flatnonzero(np.isin(np.asarray(arrays["labels"]), classes, invert=without))
    return jax.tree.map(lambda array: array[rows], dict(arrays))


def transferred(
    bench: Bench,
    seed: int,
    name: str,
    arrays: Arrays,
    told: Arrays,
    *,
    alpha: float,
    teacher: Weights,
    folder: str = "",
) -> Figures:
    """A student of the transfer set `name`, before and after the bias that the validation digits choose.

    It makes as many updates as the student of all digits. The validation digits are in no transfer set. It trains in
    `folder`, by default the set's name.

    Returns:
      Errors in `told` before and after; of a transfer set without 3 also those of the threes; the bias; the errors in the
      validation digits with it; and, as the paper chose, the fewest that any bias has in `told` itself.
    """
    settings, (classes, without) = bench.settings, TRANSFER[name]
    transfer = only(arrays, classes, without)
    epochs = max(1, round(settings.epochs * len(bench.train["labels"]) / len(transfer["labels"])))
    weights, apply, found = trained_student(
        bench, seed, folder or name, transfer, told, epochs=epochs, alpha=alpha, views=settings.views, teacher=teacher
    )
    sign = 1 if without else -1
    chosen_on = biased(apply, weights, bench.validation, classes, sign)
    counted = biased(apply, weights, told, classes, sign)
    place = best(chosen_on.sum(axis=1))
    figures = {
        "errors": _whole(counted[0].sum()),
        "bias": sign * AMOUNTS[place],
        "errors_with_bias": _whole(counted[place].sum()),
        "validation_errors_with_bias": _whole(chosen_on[place].sum()),
        "fewest_errors_of_any_bias": _whole(counted.sum(axis=1).min()),
        "transfer_pictures": len(transfer["labels"]),
        "seconds": found["seconds"],
    }
    if without:
        own = {f"errors_of_{one}": _whole(counted[0, one]) for one in classes}
        own |= {f"errors_of_{one}_with_bias": _whole(counted[place, one]) for one in classes}
        own |= {f"pictures_of_{one}": int((np.asarray(told["labels"]) == one).sum()) for one in classes}
        figures |= own
    return figures


def biased(apply: Apply, weights: Weights, arrays: Arrays, classes: Sequence[int], sign: int) -> np.ndarray:
    """Each class's errors, [amounts, classes], with every amount of `AMOUNTS` times `sign` on the logits of `classes`."""
    logits = np.asarray(cache_teacher(apply, weights, arrays["inputs"])["teacher"].logits)
    labels, raised = np.asarray(arrays["labels"]), np.isin(np.arange(logits.shape[1]), classes)
    counts = []
    for amount in AMOUNTS:
        wrong = (logits + (sign * amount * raised).astype(logits.dtype)).argmax(axis=1) != labels
        counts.append(np.bincount(labels[wrong], minlength=logits.shape[1]))
    return np.stack(counts)


def best(errors: np.ndarray) -> int:
    """The place of the fewest errors; of several, the middle one."""
    places = np.flatnonzero(errors == errors.min())
    return int(places[len(places) // 2])


def without_3(bench: Bench, seed: int) -> Figures:
    return _transfer(bench, seed, "without_3", bench.settings.alpha_without_3)


def only_7_8(bench: Bench, seed: int) -> Figures:
    return _transfer(bench, seed, "only_7_8", bench.settings.alpha_only_7_8)


def _transfer(bench: Bench, seed: int, name: str, alpha: float) -> Figures:
    weights, _ = taught(bench, seed)
    arrays = with_soft_targets(bench, weights, bench.rest)
    return transferred(bench, seed, name, arrays, bench.test, alpha=alpha, teacher=weights) | _of(bench)


def _of(bench: Bench) -> Figures:
    return {"of": len(bench.test["labels"])}


def _whole(count: float) -> int:
    return round(float(count))


TRANSFER = {"without_3": ((3,), True), "only_7_8": ((7, 8), False)}  # which classes, and whether they are left out
PARTS: dict[str, Callable[[Bench, int], Figures]] = {
    "teacher": teacher,
    "alone": alone,
    "alone_jittered": lambda bench, seed: alone(bench, seed, "jitter"),
    "distilled": distilled,
    "curves": curves,
    "without_3": without_3,
    "only_7_8": only_7_8,
}
