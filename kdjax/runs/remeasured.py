"""Whether a run's results are what its saved networks give: each is loaded and measured again."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdjax import _trees
from kdjax._types import Weights
from kdjax.checkpoints import load_weights
from kdjax.data import Dataset
from kdjax.runs._data import check_of_run
from kdjax.runs._measured import has_classes
from kdjax.runs._options import kept, options_of
from kdjax.runs._seeds import PHASES, Shared
from kdjax.runs.folders import read_object
from kdjax.runs.recipes import Recipe, Trainer, first_of, parameters


class Measured(NamedTuple):
    """One measure of one saved network, measured again.

    Attributes:
      seed: of the network.
      network: ``"teacher"``, ``"alone"`` or ``"distilled"``.
      measure: its name; ``"weights"`` where they could not be loaded.
      recorded: what ``results.json`` says.
      found: what was measured now; None where nothing could be.
      problem: what is wrong, in words; empty where nothing is.
    """

    seed: int
    network: str
    measure: str
    recorded: Any
    found: Any
    problem: str


def remeasure(
    run: str | os.PathLike[str],
    *,
    data: Sequence[Dataset] | Sequence[Mapping[str, Any]],
    teacher: Recipe,
    alone: Recipe,
    distilled: Recipe,
    preprocess: Callable[[Any], Any] | None = None,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    given_teacher: str | os.PathLike[str] | Weights | None = None,
    devices: int | Literal["all"] = 1,
    dtype: str = "float32",
    tolerance: float = 1e-5,
) -> list[Measured]:
    """Loads every network that a finished run saved, measures it on the test data, and compares that with ``results.json``.

    Args:
      run: the folder of `compare`.
      data: as in `compare`, and likewise the rest, which must be what the run was made with.
      teacher: of it the network alone counts, and likewise of the other two.
      alone: as above.
      distilled: as above.
      preprocess: as in `compare`.
      measures: as in `compare`.
      ignore_label: as in `compare`.
      given_teacher: as in `compare`.
      devices: as in `compare`.
      dtype: as in `compare`.
      tolerance: by how much a measure may differ, in parts of the recorded one where that is over 1: another kind of
        device sums in another order.

    Returns:
      One `Measured` for each measure of each network of each seed. A given teacher's are among them.

    Raises:
      FileNotFoundError: if there is no ``results.json``: the run has not come to its end.
      ValueError: if ``results.json`` is damaged or no comparison's, or the data or their class names are not
        those of the run.
    """
    from rich.console import Console

    folder = Path(run)
    results = read_object(folder / "results.json")
    seeds = results.get("seeds")
    if not seeds or not isinstance(seeds, list) or not all(isinstance(one, Mapping) for one in seeds):
        raise ValueError(f"run must be the folder of a comparison; {folder / 'results.json'} has no seeds.")
    config = results.get("config")
    config = config if isinstance(config, Mapping) else {}
    check_of_run(data, config, folder)
    quiet = Console(quiet=True)
    shared = Shared(
        folder, data, preprocess, "off", devices, dtype, given_teacher, 0, quiet, measures, ignore_label, "stop"
    )
    recipes = dict(zip(PHASES, (teacher, alone, distilled), strict=True))
    trainers = shared.prepared(recipes)
    options = kept(results.get("compiler_options", {}), options_of(trainers), folder / "results.json")
    trainers = shared.prepared(recipes, options)
    its = None
    if given_teacher is not None:
        given = given_teacher if isinstance(given_teacher, Weights) else Path(given_teacher)
        its = shared.loaded(trainers["teacher"], given)
        if _trees.digest_of_tree(its) != config.get("given_teacher_digest"):
            raise ValueError("given_teacher must be the one of the run; its weights have another digest.")
    one_teacher = bool(config.get("one_teacher"))
    found: list[Measured] = []
    for number, record in enumerate(results["seeds"]):
        found += _of_seed(shared, trainers, its, number, record, one_teacher, tolerance)
    return found


def _of_seed(
    shared: Shared,
    trainers: Mapping[str, Trainer],
    given: Weights | None,
    number: int,
    record: Mapping[str, Any],
    one_teacher: bool,
    tolerance: float,
) -> list[Measured]:
    """All three networks of one seed; the teacher first, with whom the students are said to agree."""
    found: list[Measured] = []
    test: dict[str, Any] = shared.data.test
    beside: dict[str, Any] = {}
    for name in PHASES:
        own = record.get(name)
        if not isinstance(own, Mapping):
            found.append(Measured(number, name, "results", None, None, "results.json has no record of it"))
            continue
        try:
            weights = given if name == "teacher" else None
            if weights is None:
                weights = _saved(shared, trainers[name], 0 if name == "teacher" and one_teacher else number, name)
        except (ValueError, FileNotFoundError) as error:
            found.append(Measured(number, name, "weights", None, None, str(error)))
            continue
        if name == "teacher" and has_classes(trainers[name], test):
            beside = shared.placed(shared.said(trainers[name], weights, test, ()))
        again = trainers[name].evaluate(weights, test | beside if name != "teacher" else test)
        for measure in sorted((own.keys() | again.keys()) - {"seconds", "rate", "skipped"}):
            if measure == "agreement" and not beside:
                continue  # with a teacher whose weights could not be loaded, which is said above
            recorded, now = own.get(measure), again.get(measure)
            problem = (
                "" if _close(recorded, now, tolerance) else "results.json has another number than was measured now"
            )
            found.append(Measured(number, name, measure, recorded, now, problem))
    return found


def _saved(shared: Shared, trainer: Trainer, number: int, name: str) -> Weights:
    path = shared.out / f"seed-{number}" / name / "weights"
    return shared.placed(load_weights(path, parameters(trainer, first_of(shared.data.train["inputs"]))))


def _close(recorded: Any, found: Any, tolerance: float) -> bool:
    if isinstance(recorded, list) and isinstance(found, list):
        pairs = zip(recorded, found, strict=False)
        return len(recorded) == len(found) and all(_close(one, other, tolerance) for one, other in pairs)
    if not isinstance(found, int | float):
        return bool(recorded == found)
    if recorded is None:  # JSON has no NaN
        return not math.isfinite(found)
    return isinstance(recorded, int | float) and math.isclose(recorded, found, rel_tol=tolerance, abs_tol=tolerance)
