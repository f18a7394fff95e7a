"""Which dropout, rate, labels' weight, views and length? Compared on validation digits, which no network has seen."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from experiments._hinton2015_parts import TRANSFER, trained_student, trained_teacher, transferred, with_soft_targets
from experiments._hinton2015_training import Bench
from kdjax.metrics import mean_interval

FIRST_SEED = 1000  # those of the final runs begin at 0
VIEWS = ("none", "jitter")
Asked = Callable[..., Any]


def choose(bench: Bench, entry: Asked, *, students: bool = True) -> dict[str, Any]:
    """The setting with the fewest validation errors, mean over the search's own seeds; of equal ones the first.

    First the teacher's dropout, then its rate with that; then, with that teacher, the labels' weight and the views, at
    the usual length; then the length with those; then the labels' weight of each transfer set. The test digits are read
    nowhere.

    Args:
      bench: the settings and the data.
      entry: of `kdjax.runs.open_results`: what is recorded already is not trained again.
      students: whether anything but the teacher is compared.

    Returns:
      The chosen settings by name, and under ``"compared"`` each one's validation errors, a number a seed.
    """
    settings, compared = bench.settings, {}

    def errors_of_teacher(dropout: float, input_dropout: float, rate: float) -> float:
        own = {"dropout": dropout, "input_dropout": input_dropout, "teacher_learning_rate": rate}
        asked = replace(bench, settings=replace(settings, **own))
        name = f"search dropout={dropout:g} input_dropout={input_dropout:g} rate={rate:g}"
        found = [entry(place, name, _teacher, asked, place) for place in seeds]
        compared[name] = [one["errors"] for one in found]
        return float(np.mean(compared[name]))

    def errors(alpha: float, views: str, epochs: int) -> float:
        name = f"search alpha={alpha:g} views={views} epochs={epochs}"
        found = [entry(place, name, _student, of_teacher, place, name, alpha, views, epochs) for place in seeds]
        compared[name] = [one["errors"] for one in found]
        return float(np.mean(compared[name]))

    def errors_of_transfer(which: str, alpha: float) -> float:
        name = f"search {which} alpha={alpha:g}"
        found = [entry(place, name, _transfer, with_chosen, place, name, which, alpha) for place in seeds]
        compared[name] = [one["validation_errors_with_bias"] for one in found]
        return float(np.mean(compared[name]))

    seeds = range(settings.search_seeds)
    usual = settings.teacher_learning_rate
    drops = [(dropout, of_input) for dropout in settings.dropouts for of_input in settings.input_dropouts]
    dropout, input_dropout = min(drops, key=lambda one: errors_of_teacher(*one, usual))
    rate = min(dict.fromkeys((usual, *settings.teacher_rates)), key=partial(errors_of_teacher, dropout, input_dropout))
    chosen = {"dropout": dropout, "input_dropout": input_dropout, "teacher_learning_rate": rate}
    if not students:
        return _told(bench, chosen, compared)
    settings = replace(settings, **chosen)
    of_teacher = replace(bench, settings=settings)
    grid = [(alpha, views) for views in VIEWS for alpha in settings.alphas]
    alpha, views = min(grid, key=lambda one: errors(*one, settings.epochs))
    epochs = min((settings.epochs, *settings.lengths), key=lambda one: errors(alpha, views, one))
    chosen |= {"alpha": alpha, "views": views, "epochs": epochs}
    with_chosen = replace(bench, settings=replace(settings, **chosen))
    for which in TRANSFER:
        chosen[f"alpha_{which}"] = min(settings.alphas, key=lambda one, which=which: errors_of_transfer(which, one))
    return _told(bench, chosen, compared)


def _told(bench: Bench, chosen: dict[str, Any], compared: dict[str, list[float]]) -> dict[str, Any]:
    for name, values in compared.items():
        mean = mean_interval([float(one) for one in values])
        bench.console.print(f"{name.removeprefix('search ')}: validation errors {mean:.1f}", highlight=False)
    return chosen | {"compared": compared}


def _teacher(bench: Bench, place: int) -> dict[str, Any]:
    _, found = _trained_teacher(bench, FIRST_SEED + place)
    return {"errors": found["errors"], "of": len(bench.validation["labels"]), "seed": FIRST_SEED + place}


def _trained_teacher(bench: Bench, seed: int) -> Any:
    """The search's teachers have not seen the validation digits either."""
    settings = bench.settings
    dropout = f"dropout-{settings.dropout:g}_input-{settings.input_dropout:g}"
    folder = f"{dropout}_rate-{settings.teacher_learning_rate:g}_teacher"
    return trained_teacher(bench, seed, bench.rest, bench.validation, folder=folder)


def _student(bench: Bench, place: int, name: str, alpha: float, views: str, epochs: int) -> dict[str, Any]:
    seed, teacher, arrays = _taught(bench, place)
    found = trained_student(
        bench, seed, _folder(name), arrays, bench.validation, epochs=epochs, alpha=alpha, views=views, teacher=teacher
    )[2]
    return {"errors": round(sum(found["errors"])), "of": len(bench.validation["labels"]), "seed": seed}


def _transfer(bench: Bench, place: int, name: str, which: str, alpha: float) -> dict[str, Any]:
    seed, teacher, arrays = _taught(bench, place)
    told = bench.validation
    return transferred(bench, seed, which, arrays, told, alpha=alpha, teacher=teacher, folder=_folder(name))


def _taught(bench: Bench, place: int) -> Any:
    seed = FIRST_SEED + place
    weights, _ = _trained_teacher(bench, seed)
    return seed, weights, with_soft_targets(bench, weights, bench.rest)


def _folder(name: str) -> str:
    return name.replace(" ", "_").replace("=", "-")
