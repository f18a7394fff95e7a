"""The one training loop of all experiments: a recipe, some data, and out come weights and a history.

On CPU one step a call, since XLA's CPU convolutions inside a loop fall off their fast path; elsewhere many steps a call
in one `lax.scan`. The loop never waits for the device inside an epoch: progress shows what has arrived so far.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdjax import Apply, Objective, Weights, init_state, make_eval_step, make_train_step
from kdjax._files import append_json_line
from kdjax.batches import epoch_indices, evaluation_indices, take
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.models import make_model
from kdjax.networks import from_linen

STEPS_PER_CALL = 64  # in one scan, on GPU and TPU
EVALUATION_BATCH = 500
SECONDS_BETWEEN_SAVES = 30.0

Arrays = dict[str, Any]  # a data set on the device: "inputs", "labels", and "teacher" where its outputs are cached


@dataclass(frozen=True)
class Recipe:
    """How one network is trained."""

    model: str
    objective: Objective
    optimizer: Callable[[int], optax.GradientTransformation]  # given how many updates there will be
    epochs: int
    batch_size: int


class Network(NamedTuple):
    """A model and its compiled functions, made once and used for every seed."""

    recipe: Recipe
    optimizer: optax.GradientTransformation
    init: Callable[..., Weights]
    apply: Apply
    step: Callable[..., Any]
    advance: Callable[..., Any]
    evaluate: Callable[..., dict[str, float]]


def prepare(recipe: Recipe, *, examples: int, classes: int, teacher_apply: Apply | None = None) -> Network:
    """Compiles nothing yet; what it returns compiles at its first call, and only then."""
    init, apply = from_linen(make_model(recipe.model, classes=classes))
    optimizer = recipe.optimizer(recipe.epochs * (examples // recipe.batch_size))
    step = make_train_step(apply, teacher_apply, optimizer)

    @partial(jax.jit, donate_argnums=(0, 1))
    def advance(state, totals, teacher, objective, arrays, indices, rows=None):
        def one(carry, batch):
            chosen, own = batch
            state, metrics = step(carry[0], teacher, objective, take(arrays, chosen) | (own or {}))
            return (state, jax.tree.map(jnp.add, carry[1], metrics)), metrics

        if len(indices) == 1:
            (state, totals), metrics = one((state, totals), jax.tree.map(lambda array: array[0], (indices, rows)))
        else:
            (state, totals), history = jax.lax.scan(one, (state, totals), (indices, rows))
            metrics = jax.tree.map(lambda values: values[-1], history)
        return state, totals, metrics

    return Network(recipe, optimizer, init, apply, step, advance, evaluator(apply))


def fit(
    network: Network,
    *,
    weights: Weights,
    train: Arrays,
    test: Arrays,
    seed: int,
    folder: Path,
    teacher: Weights | None = None,
    on_disk: Arrays | None = None,
    console: Console,
    label: str,
    print_every: int = 1,
) -> tuple[Weights, list[dict]]:
    """Trains for the recipe's epochs, from `folder`'s last good state where there is one.

    What `on_disk` holds of the training data does not fit in memory: a call's rows are read for each call.

    Returns:
      The final weights, and one record an epoch: train loss and accuracy, test accuracy, seconds. They are also written
      to ``folder/metrics.jsonl``, a line an epoch.
    """
    recipe, examples = network.recipe, len(train["labels"])
    state = init_state(weights, network.optimizer, jax.random.key(seed))
    steps = examples // recipe.batch_size
    per_call = 1 if jax.default_backend() == "cpu" else STEPS_PER_CALL
    history: list[dict] = []
    with open_run(folder / "state") as run, _progress(console) as progress:
        restored = restore_state(run, state)
        if restored is not None:
            state, record = restored
            history = record["history"]
        _rewrite(folder / "metrics.jsonl", history)
        zeros = _zeros_like_metrics(network, state, teacher, train | (on_disk or {}))
        bar = progress.add_task(label, total=recipe.epochs * steps, completed=len(history) * steps, news="")
        last_save = time.monotonic()
        for epoch in range(len(history), recipe.epochs):
            started = time.monotonic()
            order = np.asarray(epoch_indices(examples, recipe.batch_size, seed=seed, epoch=epoch))
            totals = jax.tree.map(jnp.zeros_like, zeros)
            watched: deque = deque()
            for first in range(0, steps, per_call):
                chunk = order[first : first + per_call]
                rows = _rows(on_disk, chunk)
                state, totals, metrics = network.advance(state, totals, teacher, recipe.objective, train, chunk, rows)
                watched.append((epoch * steps + first + len(chunk), metrics))
                _show(progress, bar, watched, started, epoch * steps, recipe.batch_size)
            means = {name: float(total) / steps for name, total in totals.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"{label}: the loss of epoch {epoch + 1} is {means['loss']}; training has diverged."
                )
            seconds = time.monotonic() - started
            measured = network.evaluate(Weights(state.params, state.model_state), test)
            record = {"epoch": epoch + 1, "train": means, "test": measured, "seconds": seconds}
            history.append(record)
            append_json_line(folder / "metrics.jsonl", record)
            last = epoch + 1 == recipe.epochs
            if last or time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
                save_state(run, epoch + 1, state, {"history": history})
                last_save = time.monotonic()
            if last or (print_every and (epoch + 1) % print_every == 0):
                console.print(_line(label, recipe, record, steps), soft_wrap=True)
    return Weights(state.params, state.model_state), history


def evaluator(apply: Apply) -> Callable[[Weights, Arrays], dict[str, float]]:
    step = make_eval_step(apply)

    @jax.jit
    def sums(weights, arrays, chosen, mask):
        return step(weights, take(arrays, chosen) | {"mask": mask})

    def evaluate(weights: Weights, arrays: Arrays) -> dict[str, float]:
        indices, masks = map(np.asarray, evaluation_indices(len(arrays["labels"]), EVALUATION_BATCH))
        parts = [sums(weights, arrays, chosen, mask) for chosen, mask in zip(indices, masks, strict=True)]
        totals = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
        means = {"accuracy": totals["correct"], "cross_entropy": totals["cross_entropy"]}
        if "agreeing" in totals:
            means["agreement"] = totals["agreeing"]
        return {name: total / totals["examples"] for name, total in means.items()}

    return evaluate


def _rows(arrays: Arrays | None, indices: np.ndarray) -> Arrays | None:
    """`take` of arrays that stay on the host."""
    return jax.tree.map(lambda array: array[indices], arrays)


def _zeros_like_metrics(network: Network, state, teacher, train: Arrays) -> Any:
    """Where a whole epoch's metrics are added up, on the device."""
    some = np.zeros(network.recipe.batch_size, np.int32)

    def metrics(state, teacher, objective, arrays):
        return network.step(state, teacher, objective, take(arrays, some))[1]

    shapes = jax.eval_shape(metrics, state, teacher, network.recipe.objective, train)
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    live = console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[news]}"), console=console, transient=True,
                  disable=not live) as progress:  # fmt: skip
        yield progress


def _show(progress: Progress, bar: Any, watched: deque, started: float, before: int, batch_size: int) -> None:
    """Shows the newest step that the device has finished; waits for none."""
    newest = None
    while watched and watched[0][1]["loss"].is_ready():
        newest = watched.popleft()
    if newest is None or progress.disable:
        return
    done, metrics = newest
    rate = (done - before) * batch_size / (time.monotonic() - started)
    accuracy = f"accuracy {100 * float(metrics['accuracy']):.0f} %  " if "accuracy" in metrics else ""
    progress.update(bar, completed=done, news=f"loss {float(metrics['loss']):.4f}  {accuracy}{rate:,.0f} images/s")


def _line(label: str, recipe: Recipe, record: dict, steps: int) -> str:
    rate = steps * recipe.batch_size / record["seconds"]
    return (
        f"{label}  epoch {record['epoch']}/{recipe.epochs}  train loss {record['train']['loss']:.4f}  "
        f"test accuracy {100 * record['test']['accuracy']:.2f} %  {rate:,.0f} images/s"
    )


def _rewrite(path: Path, history: list[dict]) -> None:
    """After a resumption the file holds what the restored state has seen, and nothing that was trained and then lost."""
    path.unlink(missing_ok=True)
    for record in history:
        append_json_line(path, record)
