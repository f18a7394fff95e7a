"""``kdjax verify``: whether a run's results are what its saved networks give."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from kdjax.command._settings import Common


@dataclass(frozen=True, kw_only=True)
class Verify(Common):
    """Measure the saved networks of a run of kdjax compare again, and confirm its results.json."""

    run: Positional[Path]
    """the run's folder"""
    data: str | None = None
    """where the run's data are now, if they have moved; they must be the same"""
    import_networks: bool = False
    """import the modules of the networks that the run names as MODULE:FUNCTION: their code runs"""
    devices: int | Literal["all"] = 1
    """over how many devices each batch is split"""
    tolerance: float = 1e-5
    """by how much a measure may differ, in parts of it where it is over 1: other devices sum in another order"""


def verify(settings: Verify) -> int:
    """Prints what was confirmed, or what was not; 1 where anything was not."""
    from kdjax.command import _recipes, _saved
    from kdjax.runs import remeasure

    made, data = _saved.opened(settings.run, settings.data, imports=settings.import_networks)
    found = remeasure(
        settings.run,
        data=data,
        preprocess=_recipes.preprocess_of(data),
        given_teacher=_recipes.given_weights(made, data),
        **_recipes.recipes(made, data),
        devices=settings.devices,
        dtype=made.dtype,
        tolerance=settings.tolerance,
    )
    wrong = [one for one in found if one.problem]
    for one in wrong:
        numbers = "" if one.measure == "weights" else f": recorded {one.recorded}, measured now {one.found}"
        print(f"seed {one.seed} {one.network}, {one.measure}{numbers}. {one.problem}")
    short = made.seeds - len({one.seed for one in found})
    if short:
        print(f"results.json lacks {short} of the {made.seeds} seeds that config.json names.")
    networks = len({(one.seed, one.network) for one in found})
    if wrong or short:
        print(f"Not confirmed: {len(wrong)} of {len(found)} measures of {networks} networks in {settings.run}.")
        return 1
    print(
        f"Confirmed: {len(found)} measures of {networks} saved networks are those of {settings.run / 'results.json'}."
    )
    return 0
