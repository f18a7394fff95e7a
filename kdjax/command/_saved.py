"""From the folder of a run back to its settings and its data."""

from dataclasses import replace
from pathlib import Path

from kdjax.command import _recipes
from kdjax.command._settings import Compare, settings_of
from kdjax.runs.folders import read_object


def opened(run: Path, data: str | None) -> tuple[Compare, _recipes.Data]:
    """Reads config.json, and the data that it names or that are named now."""
    file = run / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"run must be the folder of a run of kdjax compare; there is no {file}.")
    settings = settings_of(read_object(file), file, data)
    # Where training began makes no difference to what it ended in, and may be gone.
    return replace(settings, start="scratch"), _recipes.loaded(settings)
