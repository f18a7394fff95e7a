"""Puts the benchmarks' figures beside their page, whose text names them as seen from `benchmarks/`."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FIGURES = Path(__file__).parents[2] / "benchmarks" / "figures"


def on_files(files: Files, *, config: Any) -> Files:
    """Called by mkdocs with all that it has found."""
    for path in sorted(FIGURES.glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files
