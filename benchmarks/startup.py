"""How long until kdjax works: its import, an experiment's --help, the first distillation step, cold and from JAX's cache.

python benchmarks/startup.py --out startup.json

Each figure is from Python processes of its own, all kinds in turns. The files lie in the system's memory and are compiled to
bytecode, as after an installation. `import kdjax` counts what it adds once jax and optax are imported. The first step is
article C's: both networks are made, the step is compiled or read from JAX's compilation cache, and one update is done; once
counted from there, and once from the start of Python. Medians over rounds with quartiles, on the CPU. Targets are checked
and printed; a miss raises nothing.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import jax
from _command_line import command_line
from _script import Report, Settings, quartiles, spread, verdict

HERE = Path(__file__).parent
TARGETS = {"import kdjax adds": 0.1, "experiment --help": 1.5, "first step, cold": 4.0, "first step, cached": 1.0}
"""Seconds, at most."""


@dataclass(frozen=True)
class Benchmark(Settings):
    """What a start costs. A trial has 3 rounds."""

    LEAST: ClassVar = {"rounds": 3}
    rounds: int = 9
    """how often every case has its turn"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    seconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as caches, report.console.status("starts"):
        _round(Path(caches))  # reads all files once, and fills the caches
        for _ in range(3 if settings.quick else settings.rounds):
            for name, value in _round(Path(caches)).items():
                seconds.setdefault(name, []).append(value)
    rows = []
    for name, values in seconds.items():
        target = TARGETS.get(name)
        met = None if target is None else quartiles(values)[1] <= target
        rows.append({"what": name, "quartiles_s": quartiles(values), "rounds_s": values, "target": target, "met": met})
    report.table(
        None,
        ("s, median over the rounds (quartiles)", "", "target", ""),
        [
            (
                row["what"],
                spread(row["quartiles_s"]),
                f"≤ {row['target']}" if row["target"] else "",
                verdict(row["met"]),
            )
            for row in rows
        ],
    )
    report.write(rows=rows)


def _round(caches: Path) -> dict[str, float]:
    """Seconds of one start of each kind, by its name. Bytecode and compiled steps are kept in two folders of `caches`."""
    plain = {
        key: value
        for key, value in os.environ.items()
        if key not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    }
    plain |= {"JAX_PLATFORMS": "cpu", "PYTHONPYCACHEPREFIX": str(caches / "bytecode")}
    # The experiments keep what took as long to compile.
    kept = {"JAX_COMPILATION_CACHE_DIR": str(caches / "steps"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    _, imports = _run("_startup.py", "import", variables=plain)
    whole_help, _ = _run("../experiments/model_compression.py", "--help", variables=plain)
    whole_cold, cold = _run("_startup.py", "step", variables=plain)
    whole_cached, cached = _run("_startup.py", "step", variables=plain | kept)
    others, added = json.loads(imports)
    return {
        "import jax and optax": others,
        "import kdjax adds": added,
        "experiment --help": whole_help,
        "first step, cold": json.loads(cold),
        "first step, cold, from the start of Python": whole_cold,
        "first step, cached": json.loads(cached),
        "first step, cached, from the start of Python": whole_cached,
    }


def _run(script: str, argument: str, *, variables: dict[str, str]) -> tuple[float, str]:
    """Seconds of the whole process, and what it printed."""
    started = time.perf_counter()
    command = [sys.executable, str(HERE / script), argument]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    return time.perf_counter() - started, done.stdout


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(command_line(Benchmark, __doc__))
