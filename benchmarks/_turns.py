"""All cases take turns, so that a slow minute of the machine hits all alike."""

import math
import time

from _work import Step
from rich.console import Console

WARM_UP = 3
PAUSE = 0.3
"""Seconds between two turns where the sides are apart: idle threads spin for a while before they sleep."""
Case = tuple[str, str]  # who, and which work


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


def rounds(cases: dict[Case, Step], steps: int, count: int, pause: float) -> dict[Case, list[float]]:
    """Milliseconds a step, one number a round."""
    times: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(count):
        for case, step in cases.items():
            time.sleep(pause)
            step(WARM_UP)
            started = time.perf_counter()
            step(steps)
            times[case].append(1000 * (time.perf_counter() - started) / steps)
    return times
