"""The compiler options of a run's networks: those that it began with. Others would round otherwise."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdjax import _processes
from kdjax.runs.folders import chosen
from kdjax.runs.recipes import Trainer
from kdjax.training.compiler import is_known

ByNetwork = dict[str, dict[str, Any]]


def options_of(trainers: Mapping[str, Trainer]) -> ByNetwork:
    """By the network's name."""
    return {name: dict(trainer.options) for name, trainer in trainers.items()}


def begun_with(out: Path, now: ByNetwork, say: Callable[[str], None]) -> ByNetwork:
    """Those of the run in `out`, as far as this jaxlib knows them; `now` for one that begins, which are written down.

    Of several processes all call this, with the same. What is not known is said.
    """
    # A run of before there were options has written none, and had none.
    began = _processes.anywhere((out / "seed-0").exists())
    text = chosen(out, "compiler_options", json.dumps({} if began else now))
    found: Any = text
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    options = kept(found, now, out / "config.json")
    for name, its in options.items():
        if its != found.get(name, {}):
            say(
                f"Beware: the {name} network began with compiler options {found[name]}, which are not known here; from here "
                f"on it is {its or 'none'}, and numbers may differ by rounding."
            )
    return options


def kept(found: Any, now: ByNetwork, where: Path) -> ByNetwork:
    """What a run has written of its options, none of a network that it says nothing of; `now` where they are unknown here.

    Raises:
      ValueError: if it is not what a run writes, naming the file or folder.
    """
    if not (isinstance(found, dict) and all(isinstance(one, dict) for one in found.values())):
        raise ValueError(f"{where} must hold compiler options by network, as the run wrote them; got {found!r:.99}.")
    its: ByNetwork = {name: found.get(name, {}) for name in now}
    return {name: options if is_known(options) else now[name] for name, options in its.items()}
