"""Training that is killed before each of its steps, or at any moment: it must end in the bits of an unbroken one."""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults_calls import in_child
from faults_runs import fitted
from faults_training import STEPS, WAYS, KilledError, go_on


def at_each_step(name: str, *, every: int = 40, share: float = 1.0, seed: int = 0) -> dict:
    """Killed before step k, for every k: what is in memory is thrown away, and the folder is gone on with."""
    way, failures, counted = WAYS[name](), [], Counter()
    drawn = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:
        wanted = go_on(way, Path(scratch) / "unbroken", every=every)
        for number in range(STEPS):
            if share < 1 and drawn.random() > share:
                continue
            folder = Path(scratch) / str(number)
            try:
                go_on(way, folder, every=every, killed_at=number)
            except KilledError:
                found = go_on(way, folder, every=every)
            outcome = "same bits" if found == wanted else "failed"
            counted[outcome] += 1
            if found != wanted:
                failures.append(f"{name}: killed before step {number}: other weights than those of the unbroken run")
    return {
        "injected": sum(counted.values()),
        "outcomes": [["killed before a step", outcome, count] for outcome, count in sorted(counted.items())],
        "failures": failures,
    }


def asked_at_each_step(*, share: float = 1.0, seed: int = 0) -> dict:
    """Asked to stop after step k of a comparison's network, for every k: weights and each epoch's numbers are the same."""
    failures, counted, drawn = [], Counter(), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:
        wanted = fitted(Path(scratch) / "unbroken")
        for number in range(1, STEPS):
            if share < 1 and drawn.random() > share:
                continue
            folder = Path(scratch) / str(number)
            stopped = fitted(folder, number) is None
            same = stopped and fitted(folder) == wanted
            counted["same bits" if same else "failed"] += 1
            if not same:
                failures.append(f"asked to stop after step {number}: {'other numbers' if stopped else 'did not stop'}")
    return {
        "injected": sum(counted.values()),
        "outcomes": [["asked to stop after a step", outcome, count] for outcome, count in sorted(counted.items())],
        "failures": failures,
    }


def at_random(name: str, *, rounds: int = 4, kills: int = 2, every: int = 5, seed: int = 0) -> dict:
    """Real processes, each killed by SIGKILL at a moment drawn from the time of an unbroken one, twice in a run."""
    drawn, failures, counted = random.Random(f"{seed} {name}"), [], Counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:

        def finished(folder: Path) -> str:
            return go_on(WAYS[name](), folder, every=every)

        in_child(lambda: finished(Path(scratch) / "compiled"))
        started = time.monotonic()
        wanted = in_child(lambda: finished(Path(scratch) / "unbroken"))
        seconds = time.monotonic() - started
        for number in range(rounds):
            folder = Path(scratch) / str(number)
            moments = [drawn.uniform(0.0, seconds) for _ in range(kills)]
            hit = sum(killed_after(moment, lambda own=folder: finished(own)) for moment in moments)
            found = in_child(lambda own=folder: finished(own))
            outcome = "same bits" if found == wanted else "failed"
            counted[outcome] += hit
            if found != wanted:
                failures.append(f"{name}: killed after {moments} s: {found} where {wanted} was wanted")
    return {
        "injected": sum(counted.values()),
        "outcomes": [["SIGKILL at a random moment", outcome, count] for outcome, count in sorted(counted.items())],
        "failures": failures,
    }


def killed_after(seconds: float, call) -> bool:
    """Whether the process was still at work when SIGKILL came."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
