"""What a person sees while a run goes on: a live bar on a terminal; in a file one line an epoch, at once."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def bar(
    console: "Console", label: str, total: int, *, examples: int, numbers: Mapping[str, float] | None = None
) -> Iterator[Callable[[int, int, Any], None]]:
    """Shows how many steps are done, what the newest of them measured, and how long the rest will take.

    Args:
      console: where to; nothing is drawn where it is no terminal.
      label: before the bar.
      total: how many steps there will be.
      examples: in a step.
      numbers: those of the objective's terms at the start, as of `numbers_at`; temperatures are shown, as they are now.

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
                now = temperatures(numbers or {}, values)
                news = f"loss {float(values['loss']):.4f}  {now}{accuracy}{rate:,.0f} examples/s"
                progress.update(task, completed=before + steps, news=news)

        yield show


def temperatures(numbers: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
    """Each term's T: what the metrics say of it now, where it moves; by the term's name, where there are several.

    Example:
      >>> temperatures({"soft temperature": 8.0, "soft power": 2.0}, {"soft_temperature": 5.5})
      'T 5.5  '
      >>> temperatures({"soft temperature": 4.0, "more temperature": 2.0}, {})
      'T of soft 4, of more 2  '
    """
    ending = "temperature"
    found = {name.removesuffix(f" {ending}"): value for name, value in numbers.items() if name.endswith(f" {ending}")}
    found |= {name.removesuffix(f"_{ending}"): value for name, value in metrics.items() if name.endswith(f"_{ending}")}
    if len(found) == 1:
        return f"T {float(next(iter(found.values()))):.3g}  "
    return f"T {', '.join(f'of {name} {float(value):.3g}' for name, value in found.items())}  " if found else ""


def epoch_line(
    label: str, record: dict[str, Any], epochs: int, rate: float, numbers: Mapping[str, float] | None = None
) -> str:
    """One epoch in a line: what was learnt, at which T, what that is worth on the test data, and how fast."""
    train, test = record["train"], record["test"]
    accuracy = f"train accuracy {100 * train['accuracy']:.2f} %  " if "accuracy" in train else ""
    return (
        f"{label}  epoch {record['epoch']}/{epochs}  train loss {train['loss']:.4f}  "
        f"{temperatures(numbers or {}, train)}{accuracy}"
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
