"""A teacher, a student alone, and the student with the teacher: over seeds, then one table.

Alone and distilled start from the same weights and see the same batches in the same order: for each seed their difference
is what the teacher changed, and nothing else.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from kdjax import _checks, _processes, _trees
from kdjax._types import Outputs, Tree, Weights
from kdjax.caching import cache_teacher, choose_place, features_of, free_memory
from kdjax.checkpoints import save_weights
from kdjax.connectors import init_beside
from kdjax.data import Dataset
from kdjax.metrics import parameter_count
from kdjax.networks.precision import computed_in
from kdjax.runs import records
from kdjax.runs._data import arrays_of, check_data, count_of, digest_of, inputs_of
from kdjax.runs._measured import check_measures, digest_of_measures, has_classes, headline
from kdjax.runs.fitting import fit
from kdjax.runs.folders import open_folder
from kdjax.runs.recipes import (
    Recipe,
    Trainer,
    described,
    digest_of_training,
    first_of,
    load_teacher,
    parameters,
    prepare,
)
from kdjax.runs.report import comparison
from kdjax.training import data_mesh, replicate

if TYPE_CHECKING:
    from rich.console import Console

PHASES = ("teacher", "alone", "distilled")
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
    given_teacher: str | os.PathLike[str] | None = None,
    one_teacher: bool = False,
    cache: Cache = "auto",
    devices: int | Literal["all"] = 1,
    dtype: str = "float32",
    config: Mapping[str, Any] | None = None,
    title: str = "comparison",
    print_every: int = 1,
    console: "Console | None" = None,
) -> dict[str, Any]:
    """Trains all three over all seeds, prints the table, and writes everything into one folder.

    Args:
      out: the folder: states, weights, a line of metrics an epoch, ``config.json``, ``results.json``.
      data: the training and the test data, as of `kdjax.data.load`; or arrays by name, ``"inputs"``, ``"labels"``, and what
        else terms and measures read, such as ``"mask"``, each an array or a pytree of arrays [examples, …].
      teacher: how the teacher is trained.
      alone: how the student is trained from labels alone.
      distilled: how the student is trained with the teacher; its connectors, if any, stay behind.
      preprocess: from the data's inputs to the networks'. None: of a data set's uint8 pictures `unit_range`; of arrays by
        name nothing.
      measures: what is measured on the test data, as in `make_evaluation`; the table compares the first. None: accuracy
        and cross-entropy.
      ignore_label: as in `make_train_step`.
      seeds: how often everything is repeated, with seeds 0, 1, 2, …
      resume: go on with the run in `out`, from the last saved epoch of each network, where there is one. States are saved
        every half minute and after the last epoch.
      given_teacher: the folder of a teacher's saved weights, used for every seed in the place of a trained one.
      one_teacher: whether the teacher is trained for the first seed alone, and serves the others; the intervals are then
        over students of that one teacher.
      cache: whether the teacher's outputs for the training data are computed once and stored: ``"memory"``, ``"disk"`` (in
        `out`), ``"off"`` (it is run in every step), or ``"auto"``: the first of these for which there is room.
      devices: over how many devices each batch is split; ``"all"``, also those of other processes.
      dtype: what networks compute in, ``"float32"`` or ``"bfloat16"``; weights, losses and the optimiser are float32.
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
      FloatingPointError: if training diverges.
    """
    from rich.console import Console

    for name, value in (("seeds", seeds), *(() if devices == "all" else (("devices", devices),))):
        _checks.whole(name, value, 1)
    _checks.whole("print_every", print_every, 0)
    _checks.one_of("cache", cache, ("auto", "memory", "disk", "off"))
    _checks.one_of("dtype", dtype, ("float32", "bfloat16"))
    check_measures(measures)
    console = console or Console()
    console.quiet = console.quiet or not _processes.is_first()
    run = _Run(
        Path(out), data, preprocess, cache, devices, dtype, given_teacher, print_every, console, measures, ignore_label
    )
    recipes = dict(zip(PHASES, (teacher, alone, distilled), strict=True))
    trainers = run.prepared(recipes)
    digests = {name: digest_of(one) for name, one in zip(("train", "test"), data, strict=True)}
    about = dict(config or {}) | {
        "title": title,
        "seeds": seeds,
        "cache": cache,
        "dtype": dtype,
        "data_digests": digests,
    }
    about |= {f"{name}_recipe": described(recipe) for name, recipe in recipes.items()}
    about |= {"measures": sorted(measures or {}), "one_teacher": one_teacher, "ignore_label": ignore_label}
    about["programs"] = {name: digest_of_training(name, trainers, run.data.train, run.data.classes) for name in PHASES}
    about["programs"]["measures"] = digest_of_measures(trainers["alone"], run.data.test, measures, ignore_label)
    about["programs"]["preprocess"] = _trees.digest_of_program(run.data.preprocess, first_of(inputs_of(data[0])))
    given = None if given_teacher is None else run.loaded(trainers["teacher"], Path(given_teacher))
    about["given_teacher_digest"] = None if given is None else _trees.digest_of_tree(given)
    counts = {
        name: parameter_count(parameters(trainer, first_of(run.data.train["inputs"])).params)
        for name, trainer in trainers.items()
    }
    results = records.provenance(about, data=digests) | {"experiment": title, "parameters": counts, "seeds": []}
    results["measure"] = headline(measures)
    with open_folder(out, about, resume=resume) as folder:
        run.announce(title, trainers, counts)
        place = run.place_of_cache(trainers["teacher"])
        for seed in range(seeds):
            results["seeds"].append(run.one_seed(seed, trainers, given, place))
            if one_teacher and given is None:
                given = run.loaded(trainers["teacher"], Path(out) / "seed-0" / "teacher" / "weights")
        if _processes.is_first():
            records.write_json(folder / "results.json", results)
    comparison(results, console)
    return results


@dataclass
class _Run:
    """What all seeds of a comparison share."""

    out: Path
    given_data: Sequence[Any]
    given_preprocess: Any
    cache: str
    devices: int | str
    dtype: str
    given_teacher: Any
    print_every: int
    console: "Console"
    measures: Mapping[str, Any] | None = None
    ignore_label: int | None = None
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_data(self.given_data)
        found = jax.devices()
        count = len(found) if self.devices == "all" else int(self.devices)
        if count > len(found):
            raise ValueError(f"devices must be at most the {len(found)} there are; got {count}.")
        self.mesh = None if count == 1 else data_mesh(found[:count])
        self.parts = count
        self.data = arrays_of(self.given_data, self.given_preprocess, self.placed)

    def placed(self, tree: Tree) -> Tree:
        return tree if self.mesh is None else replicate(tree, self.mesh)

    def prepared(self, recipes: Mapping[str, Recipe]) -> dict[str, Trainer]:
        made: dict[str, Trainer] = {}
        for name, recipe in recipes.items():
            if recipe.batch_size % self.parts:
                raise ValueError(
                    f"batch_size of {name} must divide by the {self.parts} devices; got {recipe.batch_size}."
                )
            init, apply = recipe.network
            if self.dtype != "float32":
                recipe = replace(recipe, network=(init, computed_in(apply, jnp.dtype(self.dtype))))
            teacher_apply = made["teacher"].apply if name == "distilled" else None
            made[name] = prepare(
                recipe,
                count_of(self.data.train),
                teacher_apply=teacher_apply,
                mesh=self.mesh,
                measures=self.measures,
                ignore_label=self.ignore_label,
            )
        return made

    def announce(self, title: str, trainers: Mapping[str, Trainer], counts: Mapping[str, int]) -> None:
        train, test = count_of(self.data.train), count_of(self.data.test)
        devices = f"{self.parts} × {jax.devices()[0].platform}" if self.parts > 1 else jax.devices()[0].platform
        self.say(
            f"{title}: {train:,} training and {test:,} test examples of {self.data.name}, {devices}; results go to "
            f"{self.out}"
        )
        for batch_size in sorted({trainer.recipe.batch_size for trainer in trainers.values()}):
            if left_over := train % batch_size:
                self.say(
                    f"{left_over} examples of each shuffled epoch, other ones each time, fill no batch of {batch_size}."
                )
        own, its = (described(trainers[name].recipe) | {"parameters": counts[name]} for name in PHASES[1:])
        for what in ("parameters", "epochs", "batch_size"):
            if own[what] != its[what]:
                self.say(
                    f"Beware: {what} of alone is {own[what]} and of distilled {its[what]}; their difference is then not the "
                    "teacher's alone."
                )

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def place_of_cache(self, trainer: Trainer) -> str:
        """Where what the teacher says of the training data is kept, and a line about it."""
        # Of logits; features come on top, and are found when they are kept.
        size = 4 * math.prod(trainer.logits_shape(self.data.train["inputs"]))
        self.out.mkdir(parents=True, exist_ok=True)
        memory, disk = free_memory(), shutil.disk_usage(self.out).free
        place = _everywhere(choose_place(size, memory=memory, disk=disk)) if self.cache == "auto" else self.cache
        where = {"memory": "are kept in memory", "disk": f"are kept in {self.out}", "off": "are computed in every step"}
        chosen = f", as {memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk are free"
        self.say(
            f"The teacher's logits for the training data, {size / 1e6:.2f} MB, {where[place]}"
            f"{chosen if self.cache == 'auto' else ''}."
        )
        return place

    def loaded(self, trainer: Trainer, path: Path) -> Weights:
        return self.placed(load_teacher(path, trainer, self.about(trainer), self.data.train["inputs"]))

    def about(self, trainer: Trainer) -> dict[str, Any]:
        """What saved weights say of themselves."""
        return {"data": self.data.name, "preprocess": _name(self.data.preprocess), "model": trainer.recipe.name}

    def one_seed(self, seed: int, trainers: Mapping[str, Trainer], given: Weights | None, place: str) -> dict[str, Any]:
        """The teacher, the student alone, the student with the teacher."""
        record: dict[str, Any] = {"seed": seed}
        first, train, test = first_of(self.data.train["inputs"]), self.data.train, self.data.test
        if given is None:
            teacher, record["teacher"] = self.trained(seed, "teacher", trainers, train, test)
        else:
            teacher = given
            measured = self.shared("measured", given, lambda: trainers["teacher"].evaluate(given, test))
            record["teacher"] = measured | {"seconds": 0.0}
        if has_classes(trainers["teacher"], test):
            said = self.shared("test", given, lambda: self.placed(self.said(trainers["teacher"], teacher, test, ())))
            test = test | said
        _, record["alone"] = self.trained(seed, "alone", trainers, train, test)
        recipe, started = trainers["distilled"].recipe, time.monotonic()
        if place != "off":
            folder = self.out if given is not None else self.out / f"seed-{seed}"
            path = folder / "teacher-outputs" if place == "disk" else None

            def kept() -> dict[str, Outputs]:
                features = features_of(recipe.objective, recipe.connectors)
                outputs = self.said(trainers["teacher"], teacher, self.data.train, features, path)
                return outputs if path else self.placed(jax.block_until_ready(outputs))

            train = train | self.shared("train", given, kept)
        seconds = time.monotonic() - started
        beside = (teacher, trainers["teacher"].apply, first)
        running = teacher if place == "off" else None
        _, record["distilled"] = self.trained(seed, "distilled", trainers, train, test, running, beside)
        record["distilled"]["seconds"] += seconds
        return record

    def shared(self, name: str, given: Weights | None, make: Callable[[], Any]) -> Any:
        """What all seeds of one given teacher share is made once; of a seed's own teacher it is made anew."""
        if given is None:
            return make()
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def trained(
        self,
        seed: int,
        phase: str,
        trainers: Mapping[str, Trainer],
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        teacher: Weights | None = None,
        beside: tuple[Weights, Any, Any] | None = None,
    ) -> tuple[Weights, dict[str, Any]]:
        """One network: its weights, saved, and its last epoch's record."""
        trainer, folder = trainers[phase], self.out / f"seed-{seed}" / phase
        # One key for both students, another for the teacher.
        key = jax.random.fold_in(jax.random.key(seed), min(PHASES.index(phase), 1))
        weights = trainer.init(key, first_of(train["inputs"]))
        if trainer.recipe.connectors is not None and beside is not None:
            its_weights, its_apply, inputs = beside
            weights = init_beside(
                trainer.recipe.connectors, key, trainer.apply, weights, its_apply, its_weights, inputs
            )
        weights, history = fit(
            trainer,
            weights,
            train,
            test,
            seed=seed,
            folder=folder,
            console=self.console,
            label=f"seed {seed} {phase}",
            teacher=teacher,
            place=self.placed,
            print_every=self.print_every,
        )
        if not (folder / "weights").exists():
            about = self.about(trainer) | {"seed": seed, "test": history[-1]["test"]}
            save_weights(folder / "weights", weights, description=about)
        return weights, history[-1]["test"] | {"seconds": sum(epoch["seconds"] for epoch in history)}

    def said(
        self,
        trainer: Trainer,
        teacher: Weights,
        arrays: Mapping[str, Any],
        features: Sequence[str],
        path: Path | None = None,
    ) -> dict[str, Outputs]:
        """The teacher's outputs for all examples; what `path` holds from before a resumption is checked, and used."""
        return cache_teacher(trainer.apply, teacher, arrays["inputs"], features=features, path=path)


def _everywhere(place: str) -> str:
    """The last choice of any process: all must train by one program."""
    return next((one for one in ("off", "disk") if _processes.anywhere(place == one)), place)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
