"""``kdjax export``: a run's student alone, in a format that others open."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from kdjax import _checks
from kdjax.command._settings import Common

EXAMPLES = 100  # on which the exported program is compared with the network


@dataclass(frozen=True, kw_only=True)
class Export(Common):
    """Write a network of a run of kdjax compare as one file: the student with the teacher, if not told otherwise."""

    run: Positional[Path]
    """the run's folder"""
    format: Literal["stablehlo", "safetensors", "onnx"] = "stablehlo"
    """stablehlo and onnx are programs that take the data's raw pictures; safetensors is weights alone"""
    to: Path | None = None
    """the new file; default RUN/NETWORK-SEED.FORMAT"""
    network: Literal["distilled", "alone", "teacher"] = "distilled"
    """which of the run's networks"""
    seed: int = 0
    """of which seed"""
    data: str | None = None
    """where the run's data are now, if they have moved: a program is tried on them before it is written"""
    import_networks: bool = False
    """import the modules of the networks that the run names as MODULE:FUNCTION: their code runs"""


def export(settings: Export) -> int:
    """Writes the file, and says what is in it."""
    from kdjax import export as formats
    from kdjax.checkpoints import load_weights
    from kdjax.command import _recipes, _saved
    from kdjax.runs._data import check_of_run
    from kdjax.runs.folders import read_object

    _checks.whole("--seed", settings.seed, 0)
    made, data = _saved.opened(settings.run, settings.data, imports=settings.import_networks)
    # The program takes their range and their words for the logits.
    check_of_run(data, read_object(settings.run / "config.json"), settings.run)
    if settings.network == "teacher" and made.given_teacher:
        raise ValueError("--network teacher is of runs that trained one; this run was given its teacher.")
    init, apply = _recipes.recipes(made, data)[settings.network].network
    place = settings.run / f"seed-{settings.seed}" / settings.network / "weights"
    weights = load_weights(place, _recipes.shapes(init, data))
    target = settings.to or settings.run / f"{settings.network}-{settings.seed}.{settings.format}"
    preprocess, names = _recipes.preprocess_of(data), data[0].class_names
    if settings.format == "safetensors":
        network = made.student if settings.network != "teacher" else "+".join(made.teachers)
        said = {"class_names": names, "preprocess": preprocess.__name__, "network": network}
        record = formats.to_safetensors(target, weights, description=said)
        print(f"{target}: {record['bytes']:,} bytes, {len(record['leaves'])} arrays.")
        return 0
    write: Any = formats.to_onnx if settings.format == "onnx" else formats.to_stablehlo
    record = write(target, apply, weights, data[0].inputs[:EXAMPLES], preprocess=preprocess, class_names=names)
    shape = ", ".join(f"{name} {one['dtype']} {one['shape']}" for name, one in record["inputs"].items())
    print(
        f"{target}: {record['bytes']:,} bytes; takes {shape}; its logits are the network's within "
        f"{record['largest_difference']:.1g}."
    )
    if made.dtype != "float32":
        print(f"It computes in float32; the run measured the network in {made.dtype}.")
    return 0
