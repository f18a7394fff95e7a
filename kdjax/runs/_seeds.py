"""What all seeds of a comparison share, and what one seed is: a teacher, a student alone, a student with the teacher."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kdjax import _checks, _processes
from kdjax._apply import run
from kdjax._types import Outputs, Tree, Weights
from kdjax.caching import cache_teacher, choose_place, features_of, free_memory
from kdjax.connectors import init_beside
from kdjax.metrics import as_measure
from kdjax.networks.precision import computed_in, product_types
from kdjax.objectives import cross_entropy
from kdjax.runs._data import arrays_of, check_data, class_names_of, count_of, labels_outside, not_finite
from kdjax.runs._measured import has_classes
from kdjax.runs.fitting import fit, keep_weights
from kdjax.runs.folders import chosen
from kdjax.runs.recipes import Diverged, Recipe, Trainer, described, first_of, given_teacher, prepare
from kdjax.runs.tracking import Track
from kdjax.training import DivergedError, data_mesh, replicate
from kdjax.training.compiler import Options

if TYPE_CHECKING:
    from rich.console import Console

PHASES = ("teacher", "alone", "distilled")


@dataclass
class Shared:
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
    diverged: Diverged = "stop"
    track: Sequence[Track] = ()
    stop: Callable[[], bool] | None = None
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

    def prepared(
        self, recipes: Mapping[str, Recipe], options: Mapping[str, Options] | None = None
    ) -> dict[str, Trainer]:
        made: dict[str, Trainer] = {}
        for name, recipe in recipes.items():
            if recipe.batch_size % self.parts:
                raise ValueError(
                    f"batch_size of {name} must divide by the {self.parts} devices; got {recipe.batch_size}."
                )
            if recipe.peer is not None and (name != "distilled" or self.cache in ("memory", "disk")):
                wrong = f"the {name} network has one" if name != "distilled" else f"cache is {self.cache!r}"
                raise ValueError(
                    "peer must be of the distilled network alone, and nothing of it can be stored, since it learns too; "
                    f"{wrong}."
                )
            recipe = self.in_dtype(name, recipe)
            teacher_apply = made["teacher"].apply if name == "distilled" else None
            made[name] = prepare(
                recipe,
                count_of(self.data.train),
                teacher_apply=teacher_apply,
                mesh=self.mesh,
                measures=self.measures,
                ignore_label=self.ignore_label,
                diverged=self.diverged,
                compiler_options=(options or {}).get(name),
            )
            self.check_labels(name, made[name])
        return made

    def in_dtype(self, name: str, recipe: Recipe) -> Recipe:
        """The recipe, and its peer, with networks that compute in the run's dtype."""
        if self.dtype == "float32":
            return recipe
        init, apply = recipe.network
        cast = computed_in(apply, jnp.dtype(self.dtype))
        inputs = first_of(self.data.train["inputs"])
        weights = jax.eval_shape(init, jax.random.key(0), inputs)
        found = product_types(lambda *given: run(cast, *given, train=False)[0].logits, *weights, inputs)
        if found and self.dtype not in found:
            raise ValueError(
                f"dtype must be what the {name}'s layers compute in; got {self.dtype!r}, and all their products are of "
                f"{', '.join(sorted(found))}: leave the layers' own dtype unset."
            )
        peer = None if recipe.peer is None else self.in_dtype(name, recipe.peer)
        return replace(recipe, network=(init, cast), peer=peer)

    def check_labels(self, name: str, trainer: Trainer) -> None:
        """Class numbers of which a cross-entropy would be NaN: those to learn from, and those to measure by."""
        terms = getattr(trainer.recipe.objective, "terms", {}).values()
        learnt = any(getattr(term, "func", term) is cross_entropy for term in terms)
        measured = self.measures is None or any(
            as_measure(one).values is cross_entropy for one in self.measures.values()
        )
        for part, reads in (("train", learnt), ("test", measured)):
            if reads and (said := self.labels_outside(part, trainer)):
                raise ValueError(f"data must fit the {name}'s logits: of the {part} data, {said}.")

    def labels_outside(self, part: str, trainer: Trainer) -> str | None:
        place = ("train", "test").index(part)
        inputs = (self.data.train, self.data.test)[place]["inputs"]
        return labels_outside(self.given_data[place], trainer.logits_shape(inputs), self.ignore_label)

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
        place, why = self.cache, ""
        if place == "auto":
            now = _everywhere(choose_place(size, memory=memory, disk=disk))
            # Run in every step, the teacher's sums are of another order: a resumption stays with what was chosen.
            place = chosen(self.out, "cache", now)
            _checks.one_of("the chosen cache", place, ("memory", "disk", "off"))
            free = f"{memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk are free"
            why = f", as {free}" if place == now else ", as the run began"
        where = {"memory": "are kept in memory", "disk": f"are kept in {self.out}", "off": "are computed in every step"}
        self.say(f"The teacher's logits for the training data, {size / 1e6:.2f} MB, {where[place]}{why}.")
        return place

    def loaded(self, trainer: Trainer, given: Path | Weights) -> Weights:
        return self.placed(given_teacher(given, trainer, self.about(trainer), self.data.train["inputs"]))

    def about(self, trainer: Trainer) -> dict[str, Any]:
        """What saved weights say of themselves."""
        told = {"data": self.data.name, "preprocess": _name(self.data.preprocess), "model": trainer.recipe.name}
        names = class_names_of(self.given_data)
        return told if names is None else told | {"class_names": names}

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
        if recipe.peer is not None:
            _, record["distilled"] = self.trained(seed, "distilled", trainers, train, test)
            return record
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
        _, record["distilled"] = self.trained(seed, "distilled", trainers, train, test, teacher, beside)
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
        try:
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
                track=self.track,
                stop=self.stop,
            )
        except DivergedError as error:
            if said := self.labels_outside("train", trainer) or not_finite(self.data.train):
                raise DivergedError(f"{error} Of the training data, {said}.") from error
            raise
        keep_weights(folder / "weights", weights, self.about(trainer) | {"seed": seed, "test": history[-1]["test"]})
        record = history[-1]["test"] | {"seconds": sum(epoch["seconds"] for epoch in history)}
        # What was done because it diverged belongs to what it came to.
        record |= {"rate": history[-1]["rate"]} if "rate" in history[-1] else {}
        skipped = sum(epoch["train"].get("skipped", 0.0) for epoch in history) / len(history)
        return weights, record | ({"skipped": skipped} if skipped else {})

    def said(
        self,
        trainer: Trainer,
        teacher: Weights,
        arrays: Mapping[str, Any],
        features: Sequence[str],
        path: Path | None = None,
    ) -> dict[str, Outputs]:
        """The teacher's outputs for all examples; what `path` holds from before a resumption is checked, and used."""
        options = trainer.options
        return cache_teacher(
            trainer.apply, teacher, arrays["inputs"], features=features, path=path, compiler_options=options
        )


def _everywhere(place: str) -> str:
    """The last choice of any process: all must train by one program."""
    return next((one for one in ("off", "disk") if _processes.anywhere(place == one)), place)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
