"""From the folder of a run back to its settings, its data and its recipes."""

from pathlib import Path
from typing import Any, NamedTuple

from kdjax.command import _recipes
from kdjax.command._settings import Compare, settings_of
from kdjax.runs.folders import read_object


class Saved(NamedTuple):
    """A run of `kdjax compare` as it was begun: what was asked for, and what that makes."""

    settings: Compare
    data: _recipes.Data
    config: dict[str, Any]


def opened(run: Path, data: str | None) -> Saved:
    """Reads config.json, and the data that it names or that are named now."""
    config = read_object(run / "config.json")
    settings = settings_of(config, run / "config.json", data)
    return Saved(settings, _recipes.loaded(settings), config)
