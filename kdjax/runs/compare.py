"""A teacher, a student alone, and the student with the teacher: over seeds, then one table.

Alone and distilled start from the same weights and see the same batches in the same order: for each seed their difference
is what the teacher changed, and nothing else.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax

from kdjax import _checks, _processes, _trees
from kdjax._types import Weights
from kdjax.data import Dataset
from kdjax.metrics import parameter_count
from kdjax.runs import records
from kdjax.runs._data import class_names_of, digest_of, inputs_of, not_finite
from kdjax.runs._measured import check_measures, digest_of_measures, headline
from kdjax.runs._options import begun_with, options_of
from kdjax.runs._seeds import PHASES, Shared
from kdjax.runs.fitting import tracked_by
from kdjax.runs.folders import NUMBERS, open_folder
from kdjax.runs.recipes import (
    Diverged,
    Recipe,
    described,
    digest_of_training,
    first_of,
    objectives_of,
    parameters,
)
from kdjax.runs.report import comparison
from kdjax.runs.report._write import FIGURES
from kdjax.runs.report._write import at_end as report_at_end
from kdjax.runs.tracking import Track, pictures_in

if TYPE_CHECKING:
    from rich.console import Console

Cache = Literal["auto", "memory", "disk", "off"]


def compare(
    out: str | os.PathLike[str],
    *,
    data: Sequence[Dataset] | Sequence[Mapping[str, Any]],
    teacher: Recipe,
    alone: Recipe,
    distilled: Recipe,
    preprocess: Callable[[Any], Any] | None = None,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    seeds: int = 3,
    resume: bool = False,
    given_teacher: str | os.PathLike[str] | Weights | None = None,
    one_teacher: bool = False,
    cache: Cache = "auto",
    devices: int | Literal["all"] = 1,
    dtype: str = "float32",
    diverged: Diverged = "stop",
    track: Sequence[Track] = (),
    stop: Callable[[], bool] | None = None,
    config: Mapping[str, Any] | None = None,
    title: str = "comparison",
    print_every: int = 1,
    console: "Console | None" = None,
) -> dict[str, Any]:
    """Trains all three over all seeds, prints the table, and writes everything, a report too, into one folder.

    Args:
      out: the folder: states, weights, a line of metrics an epoch, ``config.json``, ``results.json``, and ``report.html``,
        of `kdjax.runs.write_report`. A report that cannot be written is said, and no error.
      data: the training and the test data, as of `kdjax.data.load`; or arrays by name, ``"inputs"``, ``"labels"``, and what
        else terms and measures read, such as ``"mask"``, each an array or a pytree of arrays [examples, …].
      teacher: how the teacher is trained.
      alone: how the student is trained from labels alone.
      distilled: how the student is trained with the teacher; its connectors, if any, stay behind. With a `peer` it learns
        together with that, from the start, in the place of the teacher, which is then only compared: online distillation.
      preprocess: from the data's inputs to the networks', each example from its own alone. None: `unit_range` of a data
        set's uint8 inputs; a data set's floats, and arrays by name, stay as they are.
      measures: what is measured on the test data, as in `make_evaluation`; the table compares the first. None: accuracy
        and cross-entropy.
      ignore_label: as in `make_train_step`.
      seeds: how often everything is repeated, with seeds 0, 1, 2, …
      resume: go on with the run in `out`, from the last saved epoch of each network, where there is one. States are saved
        at the end of an epoch, half a minute or more after the last, and after the last epoch.
      given_teacher: the folder of a teacher's saved weights, or its weights, such as those of `ensemble_weights`; used for
        every seed in the place of a trained one.
      one_teacher: whether the teacher is trained for the first seed alone, and serves the others; the intervals are then
        over students of that one teacher.
      cache: whether the teacher's outputs for the training data are computed once and stored: ``"memory"``, ``"disk"`` (in
        `out`), ``"off"`` (it is run in every step), or ``"auto"``: the first of these for which there is room.
      devices: over how many devices each batch is split; ``"all"``, also those of other processes.
      dtype: what networks compute in, ``"float32"`` or ``"bfloat16"``; weights, losses and the optimiser are float32.
      diverged: what is done where training diverges, as `kdjax.training.divergence` says: ``"stop"``; ``"skip"``, updates
        that are not finite are left out, and it stops where that is not enough; or ``"lower_rate"``, the epoch is begun
        anew with a tenth of the learning rate, three times at most; states are then saved after every epoch.
      track: where numbers, settings and the report's figures go besides: makers of writers, such as
        `kdjax.runs.tracking.TensorBoard`. One that fails is said, and stops nothing.
      stop: asked after each call of the device, a step on a CPU; where it says True, the state is saved, and the run ends
        by a StoppedError. `kdjax.runs.stopped_by_signals` gives one. Of several processes all must get the same answer.
      config: what else the run is made of, as JSON can hold it: recorded, and compared at a resumption.
      title: of the table.
      print_every: print a line each so many epochs; 0: only after the last of each network.
      console: where to print; None: standard output.

    Returns:
      What ``results.json`` holds: `kdjax.runs.provenance`, the networks' ``"parameters"``, and a record for each of
      ``"seeds"``: by network its test means and its seconds of training.

    Raises:
      ValueError: if an argument is out of its range, a recipe cannot be trained on the data, or, at a resumption, if
        settings, data, networks, optimizers, losses or the given teacher are not those that the run began with.
      FileExistsError, NotADirectoryError, PermissionError, RuntimeError: if `out` cannot be the run's folder; nothing is
        trained then.
      kdjax.training.DivergedError: a FloatingPointError, if training diverges.
      StoppedError: where `stop` said so. With `resume` the run goes on from that step, to the same bits.
    """
    from rich.console import Console

    for name, value in (("seeds", seeds), *(() if devices == "all" else (("devices", devices),))):
        _checks.whole(name, value, 1)
    _checks.whole("print_every", print_every, 0)
    _checks.one_of("cache", cache, ("auto", "memory", "disk", "off"))
    _checks.one_of("dtype", dtype, ("float32", "bfloat16"))
    _checks.one_of("diverged", diverged, get_args(Diverged))
    check_measures(measures)
    console = console or Console()
    console.quiet = console.quiet or not _processes.is_first()
    run = Shared(
        Path(out),
        data,
        preprocess,
        cache,
        devices,
        dtype,
        given_teacher,
        print_every,
        console,
        measures,
        ignore_label,
        diverged,
        track,
        stop,
    )
    recipes = dict(zip(PHASES, (teacher, alone, distilled), strict=True))
    if diverged == "skip" and (said := not_finite(run.data.train)):
        raise ValueError(
            f"data must be finite where diverged is 'skip', which leaves out each update that sees what is not: {said}."
        )
    trainers = run.prepared(recipes)
    digests = {name: digest_of(one) for name, one in zip(("train", "test"), data, strict=True)}
    about = dict(config or {}) | {
        "title": title,
        "seeds": seeds,
        "cache": cache,
        "dtype": dtype,
        "data_digests": digests,
        "class_names": class_names_of(data),
    }
    about |= {f"{name}_recipe": described(recipe) for name, recipe in recipes.items()}
    about |= {"measures": sorted(measures or {}), "one_teacher": one_teacher, "ignore_label": ignore_label}
    about |= {} if diverged == "stop" else {"diverged": diverged}
    about["programs"] = {name: digest_of_training(name, trainers, run.data.train, run.data.classes) for name in PHASES}
    # What is said of an objective in words leaves out most of a large array.
    about["programs"] |= {
        f"{name}{NUMBERS}": _trees.digest_of_tree(objectives_of(one)) for name, one in recipes.items()
    }
    about["programs"]["measures"] = digest_of_measures(trainers["alone"], run.data.test, measures, ignore_label)
    about["programs"]["preprocess"] = _trees.digest_of_program(run.data.preprocess, first_of(inputs_of(data[0])))
    about["jax"] = jax.__version__
    given = None
    if given_teacher is not None:
        its = given_teacher if isinstance(given_teacher, Weights) else Path(given_teacher)
        given = run.loaded(trainers["teacher"], its)
    about["given_teacher_digest"] = None if given is None else _trees.digest_of_tree(given)
    counts = {
        name: parameter_count(parameters(trainer, first_of(run.data.train["inputs"])).params)
        for name, trainer in trainers.items()
    }
    results = records.provenance(about, data=digests) | {"experiment": title, "parameters": counts, "seeds": []}
    results["measure"] = headline(measures)
    with open_folder(out, about, resume=resume) as folder:
        now = options_of(trainers)
        results["compiler_options"] = options = begun_with(folder, now, run.say)
        if options != now:
            trainers = run.prepared(recipes, options)
        run.announce(title, trainers, counts)
        place = "off" if distilled.peer is not None else run.place_of_cache(trainers["teacher"])
        for seed in range(seeds):
            results["seeds"].append(run.one_seed(seed, trainers, given, place))
            if one_teacher and given is None:
                given = run.loaded(trainers["teacher"], Path(out) / "seed-0" / "teacher" / "weights")
        if _processes.is_first():
            records.write_json(folder / "results.json", results)
        report = report_at_end(run, trainers, given)
        with tracked_by(track, folder, console) as tracked:
            tracked.images(pictures_in(folder / FIGURES), recipes["distilled"].epochs)
    comparison(results, console)
    console.print(report, soft_wrap=True, markup=False, highlight=False)
    return results
