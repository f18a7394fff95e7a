"""What both sides of the comparison of losses have: arrays, turns, and numbers to be compared. Neither JAX nor PyTorch."""

import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Case = tuple[str, int]  # which loss, and at which batch
Run = Callable[[int], Any]
"""Takes so many values with their gradients, and waits until they are there."""
Result = tuple[float, list[np.ndarray]]
"""The batch's mean, and its gradients for what is learnt."""
LIST = "cases"
PORTIONS = 8
"""In which a turn is timed, so that what interrupts one of them spoils no other."""


def saved(file: Path, arrays: dict[Case, list[np.ndarray]]) -> None:
    """All cases' arrays, those that are equal once."""
    kept: dict[str, np.ndarray] = {}
    names: dict[tuple, str] = {}
    cases = []
    for (loss, batch), of_case in arrays.items():
        keys = [(array.shape, array.dtype.str, hash(array.tobytes())) for array in of_case]
        for key, array in zip(keys, of_case, strict=True):
            kept[names.setdefault(key, f"a{len(names)}")] = array
        cases.append([loss, batch, [names[key] for key in keys]])
    np.savez(file, **kept, **{LIST: np.array(json.dumps(cases))})


def read(file: Path, place: Callable[[np.ndarray], Any]) -> dict[Case, list[Any]]:
    """What `saved` saved, each array placed once."""
    with np.load(file) as kept:
        placed = cache(lambda name: place(kept[name]))
        return {(loss, batch): [placed(name) for name in names] for loss, batch, names in json.loads(str(kept[LIST]))}


def answers(made: Callable[[str, int], tuple[Run, Callable[[], Result]]]) -> dict[str, Callable[..., Any]]:
    """What a side does when asked: `result` of a case, `turn`, milliseconds a call for each of many cases, `cpu_seconds`."""
    made = cache(made)
    counts: dict[Case, int] = {}

    def turn(cases: list[Case], seconds: float) -> list[float]:
        times = []
        for case in cases:
            run, _ = made(*case)
            if case not in counts:  # its result was asked for before, so it is compiled
                counts[case] = max(1, math.ceil(1000 * seconds / PORTIONS / _milliseconds(run, 1)))
            if counts[case] > 1:
                run(1)
            times.append(_best(run, counts[case], seconds))
        return times

    return {"result": lambda loss, batch: made(loss, batch)[1](), "turn": turn, "cpu_seconds": time.process_time}


def _best(run: Run, count: int, seconds: float) -> float:
    """Milliseconds a call in the quickest portion, of so many calls each, for so many seconds and one portion at least."""
    ends, best = time.perf_counter() + seconds, math.inf
    while best == math.inf or time.perf_counter() < ends:
        best = min(best, _milliseconds(run, count))
    return best


def _milliseconds(run: Run, count: int) -> float:
    started = time.perf_counter()
    run(count)
    return 1000 * (time.perf_counter() - started) / count
