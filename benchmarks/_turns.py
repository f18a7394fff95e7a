"""All cases take turns, so that a slow minute of the machine hits all alike."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from _work import Step
from rich.console import Console

PAUSE = 0.3
"""Seconds between two turns where the sides are apart: idle threads spin for a while before they sleep."""
Case = tuple[str, str]  # who, and which work
Key = TypeVar("Key", bound=Hashable)
Run = Callable[[int], Any]
"""Makes so many steps and waits until they are done."""


def first_steps(cases: dict[Case, Step], console: Console, tolerance: float = 1e-4) -> dict[Case, float]:
    """Seconds from the call to the end of the first step, compilation included; raises where two sides' losses differ."""
    seconds: dict[Case, float] = {}
    losses: dict[str, tuple[str, float]] = {}
    for (who, work), step in cases.items():
        with console.status(f"first steps: {who}, {work}"):
            started = time.perf_counter()
            loss = step(1)
            seconds[who, work] = time.perf_counter() - started
        first, wanted = losses.setdefault(work, (who, loss))
        if not math.isclose(loss, wanted, rel_tol=tolerance):
            raise RuntimeError(f"The {work} step of {who} has loss {loss}, and that of {first} has {wanted}.")
    return seconds


def rounds(
    cases: Mapping[Key, Run], steps: Mapping[Key, int] | int, count: int, *, pause: float = 0.0, warm_up: int = 3
) -> dict[Key, list[float]]:
    """Milliseconds a step, one number a round. Each turn is of so many steps, after a warm-up that is not timed."""
    times: dict[Key, list[float]] = {case: [] for case in cases}
    for _ in range(count):
        for case, run in cases.items():
            of_turn = steps if isinstance(steps, int) else steps[case]
            time.sleep(pause)
            run(warm_up)
            times[case].append(milliseconds(run, of_turn))
    return times


def in_turns(cases: Mapping[Key, Run], seconds: float, count: int, *, pause: float = 0.0) -> dict[Key, list[float]]:
    """As `rounds`, of as many steps as last `seconds` in a turn, one at least."""
    steps = {}
    for case, run in cases.items():
        run(2)  # the first compiles
        steps[case] = max(1, math.ceil(1000 * seconds / milliseconds(run, 1)))
    return rounds(cases, steps, count, pause=pause, warm_up=1)


def milliseconds(run: Run, steps: int) -> float:
    """A step's, of so many in one go."""
    started = time.perf_counter()
    run(steps)
    return 1000 * (time.perf_counter() - started) / steps
