"""Every call of a save that changes a file failed in turn: once, from then on as on a full disk, or by a kill there.

`faults_calls.c`, loaded before libc, sees the calls of Python, Orbax and tensorstore alike. Each fault is a forked
process of its own, and what it left is looked at by another.
"""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from faults_records import SAVES
from faults_runs import RUNS

ONCE, FROM_THEN_ON, KILL = 1, 2, 3
MODES = {
    "ENOSPC once": (errno.ENOSPC, ONCE),
    "ENOSPC from then on": (errno.ENOSPC, FROM_THEN_ON),
    "EIO once": (errno.EIO, ONCE),
    "killed": (0, KILL),
}
SECONDS = 60  # for one save; one that takes longer hangs
SOURCE = Path(__file__).with_name("faults_calls.c")


def compiled(folder: Path) -> Path | None:
    """The shim, or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    shim = folder / "faults_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", shim, SOURCE, "-ldl"], check=True)
    return shim


def in_child(call, patience=SECONDS):
    """What `call` returns in a forked process, as JSON; None where it was killed, "hangs" where it had to be."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        code = 1
        try:
            with warnings.catch_warnings():
                said = json.dumps(call())
            with os.fdopen(writes, "w") as pipe:
                pipe.write(said)
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    last = time.monotonic() + patience
    answer = b""
    os.set_blocking(reads, False)
    hangs = False
    while True:
        try:
            part = os.read(reads, 1 << 16)
        except BlockingIOError:
            if time.monotonic() > last:
                os.kill(child, signal.SIGKILL)
                hangs = True
                break
            time.sleep(0.001)
            continue
        if not part:
            break
        answer += part
    os.close(reads)
    _, status = os.waitpid(child, 0)
    if hangs:
        return "hangs"
    code = os.waitstatus_to_exitcode(status)
    if code == 137:
        return None
    if code:
        raise RuntimeError(f"the process ended with {code}")
    return json.loads(answer)


def armed(folder, number, error, mode):
    ctypes.CDLL(None).faults_arm(str(folder).encode(), ctypes.c_long(number), error, mode)


def calls_of(save, folder):
    """The calls that the save makes, by name."""
    shim = ctypes.CDLL(None)
    shim.faults_names.restype = ctypes.c_char_p
    armed(folder, 10**9, 0, ONCE)
    save(folder)
    return shim.faults_names().decode().split()


def struck(save, folder, number, mode):
    armed(folder, number, *MODES[mode])
    try:
        save(folder)
    except Exception as error:
        armed("/", 0, 0, 0)
        return [type(error).__name__, str(error), is_named(error, folder)]
    reached = ctypes.CDLL(None).faults_count() > number
    armed("/", 0, 0, 0)
    return "returned" if reached else "not reached"


def is_named(error, folder):
    """Whether somebody who reads it knows what to mend: an error of people's files that names one of them."""
    return isinstance(error, OSError | ValueError) and str(folder) in str(error)


def judged(save, folder, said):
    """The outcome of one fault: "after" or "before" the save, and an error or none; or "failed" and why."""
    if said == "hangs":
        return ["failed", "hangs"]
    try:
        found = save.check(folder)
    except Exception as error:
        return ["failed", f"said {said!r:.300}; then {type(error).__name__}: {error!s:.300}"]
    if said in ("returned", "not reached") and found != "after":
        return ["failed", f"returned, and the folder is {found}"]
    if isinstance(said, list) and not said[2]:
        return ["failed", f"unclear: {said[0]}: {said[1]:.400}"]
    try:
        save.again(folder)
        last = save.check(folder)
    except Exception as error:
        return ["failed", f"cannot go on: {type(error).__name__}: {error!s:.300}"]
    if last != "after":
        return ["failed", f"gone on with, the folder is {last}"]
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if "tmp" in path.name]
    if left and save.tidy:
        return ["failed", f"left over: {left[:3]}"]
    if said == "not reached":  # threads do not always make the same number of calls
        return ["", ""]
    end = "killed" if said is None else "no error" if said == "returned" else "named error"
    return [f"{end}, {'new' if found == 'after' else 'old'} content", ""]


def run(name: str, *, share: float = 1.0, seed: int = 0) -> dict:
    """All faults of one save, or a seeded share of them; needs the shim loaded and no JAX backend yet."""
    import random

    save = (SAVES | RUNS)[name]
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:
        root = Path(scratch)
        (root / "before").mkdir()
        in_child(lambda: save.before(root / "before"))
        shutil.copytree(root / "before", root / "counted")
        calls = in_child(lambda: calls_of(save.save, root / "counted"))
        places = [(mode, number) for mode in MODES for number in range(len(calls))]
        if share < 1:
            places = random.Random(f"{seed} {name}").sample(places, max(1, round(share * len(places))))
        said = []
        for index, (mode, number) in enumerate(places):
            shutil.copytree(root / "before", root / str(index))
            said.append(in_child(lambda i=index, n=number, m=mode: struck(save.save, root / str(i), n, m)))

        def judge_all():
            return [judged(save, root / str(index), one) for index, one in enumerate(said)]

        judgements = in_child(judge_all, 600)
    failures = [
        f"{name}: {mode} at call {number} ({calls[number]}): {why}"
        for (mode, number), (_, why) in zip(places, judgements, strict=True)
        if why
    ]
    pairs = zip(places, judgements, strict=True)
    counted = Counter((mode, outcome) for (mode, _), (outcome, _) in pairs if outcome)
    return {
        "injected": sum(counted.values()),
        "calls": dict(Counter(calls)),
        "outcomes": [[mode, outcome, count] for (mode, outcome), count in sorted(counted.items())],
        "failures": failures,
    }
