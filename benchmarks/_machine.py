"""On what a benchmark ran: without that its times say nothing."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(console: Console) -> dict[str, Any]:
    """What belongs into the results; warns where others use the machine."""
    load = os.getloadavg()[0]
    if load > 0.3 * cores():
        console.print(
            f"[yellow]The machine is busy (load {load:.1f} on {cores()} cores): times will be too long.[/yellow]"
        )
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    return {"command": command, "cores": cores(), "load_before": load, "cpu": _cpu(), "versions": _versions()}


def gpu() -> str:
    """The first NVIDIA GPU's name."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()


def spread(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
