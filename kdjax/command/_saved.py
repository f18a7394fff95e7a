"""From the folder of a run back to its settings and its data."""

from dataclasses import replace
from pathlib import Path

from kdjax.command import _recipes
from kdjax.command._settings import Compare, settings_of
from kdjax.runs.folders import read_object


def opened(run: Path, data: str | None, *, imports: bool) -> tuple[Compare, _recipes.Data]:
    """Reads config.json, and the data that it names or that are named now.

    Raises:
      ValueError: if it names networks by module and function, whose code would run, and `imports` is not set.
    """
    file = run / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"run must be the folder of a run of kdjax compare; there is no {file}.")
    settings = settings_of(read_object(file), file, data)
    own = [name for name in (*settings.teacher, settings.student) if ":" in name]
    if own and not imports:
        raise ValueError(
            f"{file} names networks whose modules would be imported, so that their code runs: {', '.join(own)}. Where the "
            "run is your own, say --import-networks."
        )
    # Where training began makes no difference to what it ended in, and may be gone.
    return replace(settings, start="scratch"), _recipes.loaded(settings)
