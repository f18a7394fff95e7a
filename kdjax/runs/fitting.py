"""One network trained from its first epoch to its last, saved on the way, and gone on with where it was stopped."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _processes, _trees
from kdjax._files import append_json_line, set_aside, write_json_lines
from kdjax._types import Tree, Weights
from kdjax.batches import epoch_indices
from kdjax.checkpoints import (
    DamagedError,
    load_weights,
    open_run,
    restore_state,
    save_state,
    save_weights,
)
from kdjax.runs import progress, tracking
from kdjax.runs.recipes import Trainer, described, first_of, numbers_at, objectives_of
from kdjax.runs.stopping import StoppedError
from kdjax.training import DivergedError, DivergenceWatch, weights_of
from kdjax.training.divergence import all_finite, of_counted
from kdjax.training.state import states_in

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_SAVES = 30.0
NOTHING: Mapping[str, Any] = {"done": 0, "means": {}, "seconds": 0.0}  # of an epoch, has been made before
LOWER, TIMES = 0.1, 3  # the learning rate, each time that training goes back, and how often it may


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
    track: Sequence[tracking.Track] = (),
    stop: Callable[[], bool] | None = None,
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
      track: makers of writers, which are told each epoch besides.
      stop: asked after each call of the device; where it says True, the state is saved, and the training ends.

    Returns:
      The final weights, without connectors, and one record an epoch: train means, test means, seconds.

    Raises:
      DivergedError: a FloatingPointError, if training diverges, as `kdjax.training.divergence` says, and the trainer is to
        stop then, or a lower rate or skipped updates did not help. What was saved before it stays.
      StoppedError: where `stop` said so. Called again, training goes on from that step, to the same bits.
    """
    recipe, examples = trainer.recipe, len(jax.tree.leaves(train["inputs"])[0])
    steps = examples // recipe.batch_size

    def restored(run: Any) -> tuple[Any, dict[str, Any]]:
        """What is saved, or the start."""
        begun = place(trainer.begin(weights, jax.random.key(seed), first_of(train["inputs"])))
        return restore_state(run, begun) or (begun, {})

    asked: list[bool] = []

    def ends() -> bool:
        """Whether `stop` has said so: once is enough, also at the last step of an epoch."""
        asked.extend([True] if stop is not None and not asked and stop() else [])
        return bool(asked)

    def tell(record: Mapping[str, Any]) -> None:
        done = record["epoch"] * steps
        now = numbers_at(recipe, done - 1)
        tracked.scalars(tracking.scalars_of(record, now, steps * recipe.batch_size), done)

    numbers = numbers_at(recipe, 0)
    shown = progress.bar(console, label, recipe.epochs * steps, examples=recipe.batch_size, numbers=numbers)
    with tracked_by(track, folder, console) as tracked, open_run(folder / "state") as run, shown as show:
        state, record = restored(run)
        at_first = None if _all_finite(_weights_in(state)) else _not_finite(_weights_in(state))
        history: list[dict[str, Any]] = record.get("history", [])
        lowered = record.get("lowered", 0)
        advance = trainer.epoch_at(LOWER**lowered) if lowered else trainer.epoch
        _rewrite(folder / "metrics.jsonl", history)
        for before in history:
            tell(before)
        diverging = DivergenceWatch(record.get("start"))
        last_save, saved = time.monotonic(), len(history)
        begun = record.get("begun") or NOTHING
        while len(history) < recipe.epochs:
            epoch, started = len(history), time.monotonic() - begun["seconds"]
            order = np.asarray(epoch_indices(examples, recipe.batch_size, seed=seed, epoch=epoch))

            def watch(done: int, metrics: Any, before: int = epoch * steps, judge: Any = diverging) -> None:
                show(before, done, metrics)
                judge(done, metrics)

            last = epoch + 1 == recipe.epochs
            try:
                state, means = advance(
                    state,
                    teacher,
                    objectives_of(recipe),
                    train,
                    order[begun["done"] :],
                    watch=watch,
                    stop=ends,
                    begun=(begun["done"], begun["means"]),
                )
                done, begun = _steps_made(state) - epoch * steps, NOTHING
                if done == steps:  # of a part of an epoch, what is left of it decides
                    diverging.finish(means)
                # To go back is to go back one epoch, whatever the clock says.
                saves = done < steps or last or bool(asked) or trainer.diverged == "lower_rate"
                # Every process saves its part: all must come to the same answer.
                saves = saves or _processes.anywhere(time.monotonic() - last_save > SECONDS_BETWEEN_SAVES)
                if saves and not _all_finite(_weights_in(state), at_first):
                    raise DivergedError(f"after step {done} its weights are not all finite", done)
            except DivergedError as error:
                said = diverged_message(trainer, label, error, epoch, steps, LOWER**lowered, folder / "state", saved)
                if trainer.diverged != "lower_rate" or lowered == TIMES:
                    raise DivergedError(said, error.done) from error
                lowered += 1
                console.print(f"{said} Going back, with {LOWER**lowered:g} × the rate.", soft_wrap=True, markup=False)
                advance = trainer.epoch_at(LOWER**lowered)
                state, record = restored(run)
                history = record.get("history", [])
                _rewrite(folder / "metrics.jsonl", history)
                diverging = DivergenceWatch(record.get("start", diverging.start))
                continue
            seconds = time.monotonic() - started
            about = {"history": history, "start": diverging.start, "lowered": lowered}
            if done < steps:
                kept = saved * steps
                if trainer.diverged != "lower_rate":  # which goes back to the state after an epoch
                    about["begun"] = {"done": done, "means": means, "seconds": seconds}
                    kept = _steps_made(state)
                    save_state(run, kept, state, about)
                raise _stopped(label, epoch * steps + done, kept, recipe.epochs * steps, folder)
            measured = trainer.evaluate(weights_of(states_in(state)[0]), test)
            one = {"epoch": epoch + 1, "train": of_counted(means), "test": measured, "seconds": seconds}
            history.append(one | {"rate": LOWER**lowered} if lowered else one)
            if _processes.is_first():
                append_json_line(folder / "metrics.jsonl", history[-1])
            tell(history[-1])
            if saves:
                save_state(run, _steps_made(state), state, about)
                last_save, saved = time.monotonic(), epoch + 1
            if last or (print_every and (epoch + 1) % print_every == 0):
                line = progress.epoch_line(label, one, recipe.epochs, steps * recipe.batch_size / seconds, numbers)
                console.print(line, soft_wrap=True, markup=False, highlight=False)
            if asked and not last:
                raise _stopped(label, _steps_made(state), _steps_made(state), recipe.epochs * steps, folder)
        settings = described(recipe)
        settings |= {f"objective/{name}": text for name, text in settings.pop("objective").items()}
        measured = history[-1]["test"].items()
        tracked.hyper_parameters(
            settings, {f"last/{name}": value for name, value in measured if isinstance(value, float)}
        )
    return weights_of(states_in(state)[0]), history


@contextmanager
def tracked_by(track: Sequence[tracking.Track], folder: Path, console: "Console") -> Iterator[tracking.Tracked]:
    """Writers of one network, closed whatever happens. Of several processes the first has them."""
    name = f"{folder.parent.name}/{folder.name}"
    tracked = tracking.Tracked(track if _processes.is_first() else (), name, folder, console)
    try:
        yield tracked
    finally:
        tracked.close()


def diverged_message(
    trainer: Trainer, label: str, error: DivergedError, epoch: int, steps: int, rate: float, folder: Path, saved: int
) -> str:
    """Which network, when, by which term, with which learning rate and objective, and what is left of it."""
    recipe = trainer.recipe
    step = epoch * steps + error.done
    known = recipe.learning_rate
    with_rate = "" if known is None else f"learning rate {rate * known:g}, "
    objective = " + ".join(described(recipe)["objective"].values())
    left = f"is that after epoch {saved}, in {folder}" if saved else "was not saved: there is none"
    return (
        f"{label}{f' ({recipe.name})' if recipe.name else ''}: training has diverged in epoch {epoch + 1} of "
        f"{recipe.epochs}: {error} ({step} of the run); {with_rate}objective {objective}. The last good state {left}."
    )


def keep_weights(path: Path, weights: Weights, about: Mapping[str, Any]) -> None:
    """Saves a finished network; what is there stays if it is whole and the same, and is set aside and written anew else."""
    damaged: Exception | None = None
    if path.exists():
        try:
            kept = load_weights(path, weights)
            if _trees.digest_of_tree(kept) != _trees.digest_of_tree(weights):
                damaged = ValueError(f"{path} holds other weights than those that the training came to now.")
        except (DamagedError, FileNotFoundError) as error:
            damaged = error
    # All must come to the same answer: each of them saves.
    if _processes.anywhere(damaged is not None):
        warnings.warn(f"{damaged or path} Its weights are written again.", RuntimeWarning, stacklevel=2)
        if _processes.is_first():
            set_aside(path)
        _processes.wait()
    if not path.exists():
        save_weights(path, weights, description=about)


def _steps_made(state: Any) -> int:
    """Of several students in one state, and of peers, all have made as many."""
    return int(np.max(np.asarray(states_in(state)[0].step)))


def _stopped(label: str, done: int, saved: int, steps: int, folder: Path) -> StoppedError:
    kept = f"it is saved in {folder / 'state'}" if saved == done else "nothing of it is saved"
    if 0 < saved < done:
        kept = f"what it was after step {saved} is saved in {folder / 'state'}"
    return StoppedError(f"{label}: stopped after step {done} of {steps}, as asked; {kept}.")


def _weights_in(state: Any) -> list[Any]:
    return [(one.params, one.model_state) for one in states_in(state)]


_all_finite = jax.jit(all_finite)


@jax.jit
def _not_finite(weights: Any) -> Any:
    """A copy that tells which numbers were not finite at first, as in a mask: the state itself is donated to the step."""

    def copied(leaf: Any) -> Any:
        return jnp.where(jnp.isfinite(leaf), 0.0, jnp.inf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(copied, weights)


def _rewrite(path: Path, history: list[dict[str, Any]]) -> None:
    """After a resumption the file holds what the restored state has seen, and nothing that was trained and then lost."""
    if _processes.is_first():
        write_json_lines(path, history)
