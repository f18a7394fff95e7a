"""What do the tutorials' wrong losses do? Each trains beside the right one, all else equal: docs/common-mistakes.md.

    python experiments/common_mistakes.py --seeds 12

28 ways to train the student of digits.py, some 25 s a seed on 2 cores. Test accuracy in %, wrong − right, 12 paired seeds:

    log-probabilities as targets   −86.92 ± 0.88    no T², with SGD                 −2.34 ± 1.12
    probabilities as logarithms    −20.86 ± 6.32    a weak teacher's choice        −12.80 ± 5.21
    softmax twice                  −11.32 ± 4.61    batches sorted by class        −26.32 ± 23.49
    logits as probabilities        −86.27 ± 0.86    the same, next to labels        −1.11 ± 0.87

The logarithm of a masked zero is NaN in 12 of 12; other pairs show no difference: docs/common-mistakes.md says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from experiments._mistaken_forms import TRIALS, Arm, arms
from experiments._networks import make_model
from experiments._setting import LABELS, Arrays, Network
from experiments._settings import Run, recorded, start
from experiments._stopping import until_asked
from kdjax import init_state, make_train_step
from kdjax.batches import epoch_indices
from kdjax.caching import cache_teacher
from kdjax.data import on_device, unit_range
from kdjax.metrics import mean_interval
from kdjax.networks import from_linen
from kdjax.training import make_epoch, make_evaluation, weights_of

EPOCHS_SHOWN = (1, 5, 20, 80)

OPTIMIZERS = {
    "Adam": lambda updates: optax.adam(optax.cosine_decay_schedule(1e-2, updates)),
    "SGD": lambda updates: optax.sgd(optax.cosine_decay_schedule(1e-2, updates), momentum=0.9),
}


@dataclass(frozen=True)
class CommonMistakes(Run):
    """The teacher and the student of digits.py."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"""
    seeds: int = 12
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    epochs: int = 80
    """passes over the training data, for each student"""
    teacher_epochs: int = 20
    """passes over the training data, for the teacher; the weak teacher gets one"""
    batch_size: int = 32
    """examples an update"""
    temperature: float = 4.0
    """T of the soft targets, in logits"""
    only: str = ""
    """run only the comparisons whose wrong form has this text in its name"""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = dict.fromkeys(wrong for wrong, _ in TRIALS)
        if not any(self.only in name for name in names):
            raise ValueError(f"only must be part of a wrong form's name: {'; '.join(names)}; got {self.only!r}.")


def main(settings: CommonMistakes) -> None:
    console = Console()
    data = settings.load()
    train, test = (on_device(part, unit_range) for part in data)
    trials = [trial for trial in TRIALS if settings.only in trial[0]]
    wanted = {name: arm for name, arm in arms(settings.temperature).items() if any(name in trial for trial in trials)}
    teacher, student = (
        from_linen(make_model(name, classes=len(data[0].class_names))) for name in ("digits_teacher", "digits_student")
    )
    lengths = {"teacher": settings.teacher_epochs, "weak teacher": 1}
    teachers = {name: trainer(settings, teacher, train, test, epochs) for name, epochs in lengths.items()}
    students = {name: trainer(settings, student, train, test, settings.epochs, name) for name in OPTIMIZERS}

    @cache
    def taught(seed: int, name: str) -> tuple[Arrays, dict[str, Any]]:
        """The training data with what a teacher says of them, and its record; trained when an arm wants it."""
        weights, record = teachers[name](Arm(LABELS), train, seed, 1)
        return train | cache_teacher(teacher[1], weights, train["inputs"], features=("stage2", "embedding")), record

    def measured(seed: int, name: str) -> dict[str, Any]:
        arm = wanted.get(name)
        record = taught(seed, name)[1] if arm is None else (
            students[arm.optimizer](arm, taught(seed, arm.teacher)[0], seed, 0)[1])  # fmt: skip
        console.print(f"seed {seed}  {name}  {100 * record['accuracy']:.2f} %", soft_wrap=True, highlight=False)
        return record

    with recorded("common_mistakes", settings, data) as (results, entry, file):
        for seed in range(settings.seeds):
            for name in (*teachers, *wanted):
                entry(seed, name, measured, seed, name)
            taught.cache_clear()
    show(results["seeds"], trials, console)
    console.print(f"Results: {file}", soft_wrap=True, markup=False)


def trainer(
    settings: CommonMistakes, network: Network, train: Arrays, test: Arrays, epochs: int, optimizer: str = "Adam"
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """``trained(arm, arrays, seed, init) -> (weights, record)``, whatever becomes of the training: NaN is a result here."""
    (init_weights, apply), examples = network, len(train["labels"])
    if settings.batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples; got {settings.batch_size}.")
    transform = OPTIMIZERS[optimizer](epochs * (examples // settings.batch_size))
    epoch, evaluate = make_epoch(make_train_step(apply, None, transform)), make_evaluation(apply)

    def trained(arm: Arm, arrays: Arrays, seed: int, init: int) -> tuple[Any, dict[str, Any]]:
        weights = init_weights(jax.random.fold_in(jax.random.key(seed), init), arrays["inputs"][:1])
        state = init_state(weights, transform, jax.random.key(seed))
        history = []
        for number in range(epochs):
            order = order_of(arm.order, arrays["labels"], settings.batch_size, seed=seed, epoch=number)
            state, means = epoch(state, None, arm.objective, arrays, order, watch=until_asked())
            history.append(means)
        terms = {term: [means[term] for means in history] for term in history[0]}
        return weights_of(state), evaluate(weights_of(state), test) | {"terms": terms}

    return trained


def order_of(order: str, labels: Any, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """[steps, batch]: which examples make which batch."""
    shuffled = np.asarray(epoch_indices(len(labels), batch_size, seed=seed, epoch=epoch))
    places = np.argsort(labels, kind="stable") if order == "sorted" else np.arange(len(labels))
    return shuffled if order == "shuffled" else places[: shuffled.size].reshape(shuffled.shape)


def show(records: list[dict[str, Any]], trials: list[tuple[str, str]], console: Console) -> None:
    """Tables in Markdown: accuracy and cross-entropy on the test digits, then each term's training curve."""

    def number(value: float | None) -> float:
        return np.nan if value is None else value  # JSON has no NaN

    def over(name: str, measure: str, factor: float) -> list[float]:
        return [factor * number(record[name][measure]) for record in records]

    def line(*cells: str) -> None:
        console.print("| " + " | ".join(cells) + " |", soft_wrap=True, highlight=False)

    for measure, factor, title in (
        ("accuracy", 100.0, "test accuracy, %"),
        ("cross_entropy", 1.0, "test cross-entropy"),
    ):
        line(f"{title}: wrong", "right", "wrong form", "right form", "wrong − right")
        for teacher in ("teacher", "weak teacher"):
            line("–", teacher, "–", spread(over(teacher, measure, factor)), "–")
        for wrong, right in trials:
            pair = over(wrong, measure, factor), over(right, measure, factor)
            line(wrong, right, *map(spread, pair), spread(list(np.subtract(*pair)), "+"))
    line("term", *(f"epoch {epoch}" for epoch in EPOCHS_SHOWN))
    for name in records[0]:
        for term in ("soft", "feature", "labels"):
            found = [record[name]["terms"][term] for record in records if term in record[name]["terms"]]
            if curves := [list(map(number, curve)) for curve in found]:
                means = np.mean(curves, axis=0)
                line(f"{name}: {term}", *(f"{means[epoch - 1]:.4g}" for epoch in EPOCHS_SHOWN if epoch <= len(means)))


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± 95 % interval of Student's t; with one value, that; with one that is not finite, how many are not."""
    if broken := int(np.sum(~np.isfinite(values))):
        return f"NaN in {broken} of {len(values)}"
    interval = mean_interval(values)
    digits = ".2f" if abs(interval.mean) < 1e4 else ".1e"
    return f"{interval:{sign}{digits}}"


if __name__ == "__main__":
    start(main, CommonMistakes, __doc__)
