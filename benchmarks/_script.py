"""What every benchmark's script has: its settings, the record of the machine, and where its results go."""

import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any, ClassVar

from _work import cores
from rich.console import Console
from rich.table import Column, Table

from kdjax.runs import provenance, write_json
from kdjax.runs.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Settings:
    """What every command line has."""

    LEAST: ClassVar[dict[str, float]] = {}
    out: Path | None = None
    """JSON file for the results"""
    quick: bool = False
    """a trial in the least time: its figures mean nothing"""

    def __post_init__(self) -> None:
        for name, least in self.LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")


class Report:
    """Made before anything is measured: it records the machine, and warns where others use it."""

    def __init__(self, settings: Settings) -> None:
        self.console, self.out = Console(), settings.out
        self.found = provenance(asdict(settings))
        hardware = self.found["hardware"]
        hardware |= {"cores": cores(), "cpu": _cpu(hardware["machine"])}
        self.found["versions"]["torch"] = None if find_spec("torch") is None else version("torch")
        if (load := hardware["load"] or 0.0) > 0.3 * cores():
            busy = f"The machine is busy (load {load:.1f} on {cores()} cores): times will be too long."
            self.console.print(f"[yellow]{busy}[/yellow]")

    def finds_torch(self) -> bool:
        """Whether PyTorch is there; says so where it is not."""
        if self.found["versions"]["torch"] is None:
            missing = 'PyTorch is missing, so kdjax is measured alone; pip install -e ".[bench]"'
            self.console.print(missing, markup=False)
        return self.found["versions"]["torch"] is not None

    def table(self, title: str | None, heads: Iterable[str | Column], rows: Iterable[Iterable[str]]) -> None:
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def picture(self, figure: "Figure", path: Path) -> None:
        save_figure(figure, path, dots_per_inch=110)
        self.console.print(f"Drawn in {path}", markup=False)

    def write(self, **results: Any) -> None:
        if self.out is not None:
            write_json(self.out, self.found | results)
            self.console.print(f"Written to {self.out}", markup=False)


def gpu() -> str:
    """The first NVIDIA GPU's name, without JAX, which may be told to leave it alone."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()


def quartiles(values: Iterable[float]) -> list[float]:
    return quantiles(values, n=4, method="inclusive")


def spread(low_middle_high: list[float]) -> str:
    low, middle, high = low_middle_high
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def verdict(is_met: bool | None) -> str:
    """For a table; "" where there is no target."""
    return {True: "met", False: "missed", None: ""}[is_met]


def _cpu(otherwise: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), otherwise)
