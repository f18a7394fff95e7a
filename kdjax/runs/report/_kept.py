"""``report-data.npz``: what a report needs beyond a run's results, measured once and read as often as it is written."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kdjax import _processes
from kdjax._files import as_json, write_bytes
from kdjax._types import Weights
from kdjax.checkpoints import load_weights
from kdjax.data.files import read_archive
from kdjax.runs.recipes import Trainer, first_of, parameters
from kdjax.runs.report._collected import Network, collect

if TYPE_CHECKING:
    from kdjax.runs._seeds import Shared

FILE = "report-data.npz"
VERSION = 2


def keep(run: "Shared", trainers: Mapping[str, Trainer], given: Weights | None) -> None:
    """Measures by the first seed's saved networks, and writes the file, if the run's folder does not have it yet.

    Of several processes all must call it; the first measures and writes.
    """
    folder = run.out
    if not _processes.anywhere(_processes.is_first() and load(folder) is None):
        return
    networks = {}
    for name, trainer in trainers.items():
        weights = given if name == "teacher" else None
        if weights is None:
            like = parameters(trainer, first_of(run.data.train["inputs"]))
            weights = load_weights(folder / "seed-0" / name / "weights", like)
        networks[name] = Network(trainer.apply, jax.tree.map(_processes.on_host, weights))
    if _processes.is_first():
        recipe = trainers["distilled"].recipe
        about, arrays = collect(networks, run.given_data, run.given_preprocess, recipe, ignore_label=run.ignore_label)
        save(folder, about, arrays)


def save(folder: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes both into one file, whole or not at all."""
    content = io.BytesIO()
    entries: dict[str, Any] = {"about": np.asarray(json.dumps(as_json({**about, "version": VERSION}))), **arrays}
    np.savez_compressed(content, **entries)
    write_bytes(folder / FILE, content.getvalue())


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What `collect` returned; None where there is no such file, or one of another version or damaged."""
    try:
        arrays = read_archive(folder / FILE)
        about = json.loads(str(arrays.pop("about")))
    except (OSError, ValueError, KeyError, RecursionError):
        return None
    return (about, arrays) if isinstance(about, dict) and about.get("version") == VERSION else None
