"""One network trained from its first epoch to its last, saved on the way, and gone on with where it was stopped."""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from kdjax import _checks, _processes, _trees
from kdjax._apply import run
from kdjax._files import append_json_line
from kdjax._types import Apply, Tree, Weights
from kdjax.batches import epoch_indices
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.connectors import Connector, init_beside
from kdjax.objectives import Objective
from kdjax.runs import progress
from kdjax.training import init_state, make_epoch, make_evaluation, make_train_step, weights_of

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_SAVES = 30.0
Init = Callable[..., Weights]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
      network: a pair (init, apply), as of `kdjax.networks.from_linen`: ``init(rng, inputs) -> Weights``, and an `Apply`.
        `init` is called with another key for each seed.
      objective: what is minimised, from `weighted_sum`.
      optimizer: a function from the number of updates to an optax transformation, so that a schedule can end with them.
      epochs: passes over the training data.
      batch_size: examples an update.
      connectors: learnt parts between this network and its teacher, by name; they stay behind when it leaves.
      name: of the network, for people and records.
    """

    network: tuple[Init, Apply]
    objective: Objective
    optimizer: Callable[[int], optax.GradientTransformation]
    epochs: int
    batch_size: int
    connectors: Mapping[str, Connector] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        pair = self.network
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))):
            raise ValueError(
                "network must be a pair of functions (init, apply), with init(rng, inputs) -> Weights; what from_nnx and "
                f"from_equinox return, (weights, apply), has one start for all seeds; got {_kind(pair)}."
            )
        if not isinstance(self.objective, Objective):
            raise ValueError(f"objective must be one of weighted_sum; got {_kind(self.objective)}.")
        if isinstance(self.optimizer, tuple) or not callable(self.optimizer):
            raise ValueError(
                "optimizer must be a function from the number of updates to an optax transformation, such as "
                f"lambda updates: optax.adam(1e-3); got {_kind(self.optimizer)}."
            )
        _checks.whole("epochs", self.epochs, 1)
        _checks.whole("batch_size", self.batch_size, 1)


class Trainer(NamedTuple):
    """A recipe and its compiled functions, made once and used for every seed."""

    recipe: Recipe
    optimizer: optax.GradientTransformation
    init: Init
    apply: Apply
    step: Callable[..., Any]
    epoch: Callable[..., Any]
    evaluate: Callable[..., dict[str, float]]


def prepare(recipe: Recipe, examples: int, *, teacher_apply: Apply | None = None, mesh: Mesh | None = None) -> Trainer:
    """Compiles nothing yet; what it returns compiles at its first call, and only then."""
    if recipe.batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples; got {recipe.batch_size}.")
    init, apply = recipe.network
    optimizer = recipe.optimizer(recipe.epochs * (examples // recipe.batch_size))
    step = make_train_step(apply, teacher_apply, optimizer, connectors=recipe.connectors)
    epoch, evaluate = make_epoch(step, mesh=mesh), make_evaluation(apply, mesh=mesh)
    return Trainer(recipe, optimizer, init, apply, step, epoch, evaluate)


def digest_of_training(
    trainer: Trainer, arrays: Mapping[str, Any], classes: int, teacher: Trainer | None = None
) -> str:
    """Of the traced start and update, so that what cannot be trained is found before anything is.

    Two that differ train otherwise, in network, optimizer, schedules or losses. The objective's numbers are not in it:
    they are arguments of the update.

    Args:
      trainer: of `prepare`.
      arrays: the training data by name.
      classes: of the data.
      teacher: the trainer of its teacher, where it has one.

    Raises:
      ValueError: if the network has fewer logits than there are classes, or as the network, the step and the connectors
        say.
    """
    recipe = trainer.recipe
    sizes = {name: (recipe.batch_size, *array.shape[1:]) for name, array in arrays.items()}
    batch = {name: jax.ShapeDtypeStruct(sizes[name], array.dtype) for name, array in arrays.items()}
    batch["indices"] = jax.ShapeDtypeStruct((recipe.batch_size,), np.int32)

    def start(key: Any, inputs: Any) -> tuple[Any, Any, Any]:
        weights = trainer.init(key, inputs[:1])
        outputs, _ = run(trainer.apply, *weights, inputs, train=False)
        its: Any = None if teacher is None else teacher.init(key, inputs[:1])
        if recipe.connectors is not None and teacher is not None:
            weights = init_beside(recipe.connectors, key, trainer.apply, weights, teacher.apply, its, inputs[:1])
        return init_state(weights, trainer.optimizer, key), its, outputs.logits

    given = (jax.random.key(0), batch["inputs"])
    state, its, logits = jax.eval_shape(start, *given)
    if logits.shape[-1] < classes:
        raise ValueError(
            f"network must return a logit for each of the {classes} classes of the data; got {logits.shape}."
        )
    begun = _trees.digest_of_program(start, *given)
    return begun + _trees.digest_of_program(trainer.step, state, its, recipe.objective, batch)


def fit(
    trainer: Trainer,
    weights: Weights,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    seed: int,
    folder: Path,
    console: "Console",
    label: str,
    teacher: Weights | None = None,
    place: Callable[[Tree], Tree] = lambda tree: tree,
    print_every: int = 1,
) -> tuple[Weights, list[dict[str, Any]]]:
    """Trains for the recipe's epochs, from `folder`'s last good state where there is one.

    Args:
      trainer: of `prepare`.
      weights: to begin with; with connectors, as `init_beside` makes them.
      train: the arrays of `kdjax.training.make_epoch`.
      test: those of `kdjax.training.make_evaluation`.
      seed: of the order of the data and of the step's noise.
      folder: of the states and of ``metrics.jsonl``, a line an epoch.
      console: where to print.
      label: before each line.
      teacher: the teacher's weights, where the step runs it.
      place: puts the state where it is to be, such as on every device of a mesh.
      print_every: print a line each so many epochs; 0: only after the last.

    Returns:
      The final weights, without connectors, and one record an epoch: train means, test means, seconds.

    Raises:
      FloatingPointError: if an epoch's mean loss is not finite.
    """
    recipe, examples = trainer.recipe, len(train["inputs"])
    state = place(init_state(weights, trainer.optimizer, jax.random.key(seed)))
    steps = examples // recipe.batch_size
    history: list[dict[str, Any]] = []
    shown = progress.bar(console, label, recipe.epochs * steps, examples=recipe.batch_size)
    with open_run(folder / "state") as run, shown as show:
        restored = restore_state(run, state)
        if restored is not None:
            state, record = restored
            history = record["history"]
        _rewrite(folder / "metrics.jsonl", history)
        last_save = time.monotonic()
        for epoch in range(len(history), recipe.epochs):
            started = time.monotonic()
            order = np.asarray(epoch_indices(examples, recipe.batch_size, seed=seed, epoch=epoch))

            def watch(done: int, metrics: Any, before: int = epoch * steps) -> None:
                show(before, done, metrics)

            state, means = trainer.epoch(state, teacher, recipe.objective, train, order, watch=watch)
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"{label}: the loss of epoch {epoch + 1} is {means['loss']}; training has diverged."
                )
            seconds = time.monotonic() - started
            measured = trainer.evaluate(weights_of(state), test)
            one = {"epoch": epoch + 1, "train": means, "test": measured, "seconds": seconds}
            history.append(one)
            if _processes.is_first():
                append_json_line(folder / "metrics.jsonl", one)
            last = epoch + 1 == recipe.epochs
            # Every process saves its part: all must come to the same answer.
            if last or _processes.anywhere(time.monotonic() - last_save > SECONDS_BETWEEN_SAVES):
                save_state(run, epoch + 1, state, {"history": history})
                last_save = time.monotonic()
            if last or (print_every and (epoch + 1) % print_every == 0):
                line = progress.epoch_line(label, one, recipe.epochs, steps * recipe.batch_size / seconds)
                console.print(line, soft_wrap=True, markup=False, highlight=False)
    return weights_of(state), history


def parameters(trainer: Trainer, inputs: Any) -> Weights:
    """The shapes of the network's weights."""
    shapes: Weights = jax.eval_shape(trainer.init, jax.random.key(0), inputs)
    return shapes


def _rewrite(path: Path, history: list[dict[str, Any]]) -> None:
    """After a resumption the file holds what the restored state has seen, and nothing that was trained and then lost."""
    if _processes.is_first():
        path.unlink(missing_ok=True)
        for record in history:
            append_json_line(path, record)


def described(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a resumption can compare: names and numbers, as text."""
    objective = {
        name: f"{recipe.objective.weights[name]!r} × {term!r}" for name, term in recipe.objective.terms.items()
    }
    connectors = sorted(recipe.connectors or {})
    return {
        "network": recipe.name,
        "objective": {name: _without_addresses(text) for name, text in objective.items()},
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "connectors": connectors,
    }


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


def _without_addresses(text: str) -> str:
    """Functions by their names alone: where one is in memory is another in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
