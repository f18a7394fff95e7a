"""What a person sees while a run goes on: a live bar on a terminal; in a file one line an epoch, at once."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def bar(console: "Console", label: str, total: int, *, examples: int) -> Iterator[Callable[[int, int, Any], None]]:
    """Shows how many steps are done, what the newest of them measured, and how long the rest will take.

    Args:
      console: where to; nothing is drawn where it is no terminal.
      label: before the bar.
      total: how many steps there will be.
      examples: in a step.

    Yields:
      ``show(before, done, metrics)``, for the `watch` of an epoch: steps before the epoch, steps of it, and the newest
      metrics. It waits for no device: what is shown is the newest step that has finished.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    watched: deque[tuple[int, Any]] = deque()
    started: dict[int, float] = {}
    with Progress(
        *columns, TextColumn("{task.fields[news]}"), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(label, total=total, news="")

        def show(before: int, done: int, metrics: Any) -> None:
            if progress.disable:
                return
            began = started.setdefault(before, time.monotonic())
            watched.append((done, metrics))
            newest = None
            while watched and watched[0][1]["loss"].is_ready():
                newest = watched.popleft()
            if newest is not None:
                steps, values = newest
                rate = steps * examples / max(time.monotonic() - began, 1e-9)
                accuracy = f"accuracy {100 * float(values['accuracy']):.0f} %  " if "accuracy" in values else ""
                news = f"loss {float(values['loss']):.4f}  {accuracy}{rate:,.0f} examples/s"
                progress.update(task, completed=before + steps, news=news)

        yield show


def epoch_line(label: str, record: dict[str, Any], epochs: int, rate: float) -> str:
    """One epoch in a line: what was learnt, what that is worth on the test data, and how fast."""
    train, test = record["train"], record["test"]
    accuracy = f"train accuracy {100 * train['accuracy']:.2f} %  " if "accuracy" in train else ""
    return (
        f"{label}  epoch {record['epoch']}/{epochs}  train loss {train['loss']:.4f}  {accuracy}"
        f"{_measured(test)}  {rate:,.0f} examples/s"
    )


def _measured(test: dict[str, Any]) -> str:
    """The measures of the test data, but for the teacher's agreement and what is no number."""
    shown = {"cross_entropy": "loss", "agreement": ""}
    if "accuracy" in test and "cross_entropy" in test:
        return f"test loss {test['cross_entropy']:.4f}  test accuracy {100 * test['accuracy']:.2f} %"
    return "  ".join(
        f"test {name} {value:.4g}" for name, value in test.items() if shown.get(name, name) and isinstance(value, float)
    )
