"""The memory of one case, in a process of its own: python benchmarks/_memory.py CASE, from the list in _losses_memory.py.

Two figures, both over the inputs. XLA's: what the compiled program asks for, temporary space and results. The process's:
how far resident memory rises in a call. Before it the program is compiled, the inputs are made, and the same work is done
at a small batch, which starts the threads and loads what is loaded once. The allocator then gives back what all that left
free, and the kernel's high-water mark is set to what the process holds now.
"""

import ctypes
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
from _losses_memory import MEMORY

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SMALL = 32
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "pred": 1}


def by_xla(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Temporary space, results and the largest single array of the program, in MB."""
    sizes = compiled.memory_analysis()
    arrays = re.findall(r"\b(\w+)\[([\d,]+)\]", compiled.as_text())
    largest = max(BYTES.get(kind, 8) * math.prod(map(int, shape.split(","))) for kind, shape in arrays)
    return {
        "temporary_mb": sizes.temp_size_in_bytes / 1e6,
        "results_mb": sizes.output_size_in_bytes / 1e6,
        "largest_array_mb": largest / 1e6,
    }


def by_process(compiled: jax.stages.Compiled, arrays: tuple) -> float | None:
    """MB by which resident memory rises in a call; None where the system is no Linux."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        MARK.write_text("5")
    except OSError:
        return None
    before = _resident("VmHWM")
    jax.block_until_ready(compiled(*arrays))
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text())[1]) / 1e6


def free_mb() -> float:
    """MB that a process can get; without limit where the system does not say."""
    information = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", information.read_text()) if information.exists() else None
    return 1024 * int(found[1]) / 1e6 if found else math.inf


def measured(name: str) -> dict[str, Any]:
    case = MEMORY[name]
    compiled = case.work.compiled(case.batch)
    result: dict[str, Any] = {**by_xla(compiled), "process_mb": None, "seconds": None}
    if result["temporary_mb"] < 0.5 * free_mb():
        jax.block_until_ready(case.work.compiled(SMALL)(*case.work.arrays(SMALL)))
        arrays = jax.block_until_ready(case.work.arrays(case.batch))
        result["process_mb"] = by_process(compiled, arrays)
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        result["seconds"] = time.perf_counter() - started
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(json.dumps(measured(sys.argv[1])))
