"""One network trained from its first epoch to its last, saved on the way, and gone on with where it was stopped."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kdjax import _processes
from kdjax._files import append_json_line
from kdjax._types import Tree, Weights
from kdjax.batches import epoch_indices
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.runs import progress
from kdjax.runs.recipes import Trainer
from kdjax.training import init_state, weights_of

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_SAVES = 30.0


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
    recipe, examples = trainer.recipe, len(jax.tree.leaves(train["inputs"])[0])
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


def _rewrite(path: Path, history: list[dict[str, Any]]) -> None:
    """After a resumption the file holds what the restored state has seen, and nothing that was trained and then lost."""
    if _processes.is_first():
        path.unlink(missing_ok=True)
        for record in history:
            append_json_line(path, record)
