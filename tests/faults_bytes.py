"""Damage on disk: each bit or byte of a file changed in turn, the file cut to each length, and the file deleted.

What is read afterwards must be bit for bit what was written, or for training states the state before with a warning, or an
error that names a file. Anything else, also a bare KeyError, is a failure.
"""

import gc
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faults_records as records
import faults_saves as saves
import numpy as np
from faults_calls import is_named
from saved import bits

from kdjax.checkpoints import save_weights
from kdjax.export import from_safetensors, open_stablehlo
from kdjax.runs import open_folder, open_results

BLOCK = 512


@dataclass(frozen=True)
class Kept:
    """Attributes:
    write: makes the folder.
    read: "right" or "state before"; raises where an error says what is wrong, and AssertionError for other data.
    bits: how many of each byte's bits are changed in turn: all 8, one, or none.
    lengths: whether a file is cut to each length, or to each block and some odd lengths.
    damaged: the file or folder that is damaged; None: everything.
    fresh: whether reading changes the folder, so that each fault gets a copy.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], str]
    bits: int = 8
    lengths: bool = True
    damaged: str | None = None
    fresh: bool = False


def write_results(folder: Path) -> None:
    entry = open_results(folder / "results.json", {"commit": "a", "config": records.CONFIG})[1]
    entry(0, "alone", lambda: {"accuracy": 0.5})


def read_results(folder: Path) -> str:
    """Where the file is gone, there are no results yet: a resumption makes them again, which costs time and nothing else."""
    seeds = open_results(folder / "results.json", {})[0]["seeds"]
    if not (folder / "results.json").exists():
        assert seeds == []
        return "none, to be made again"
    assert seeds == [{"alone": {"accuracy": 0.5}}], seeds
    return "right"


def write_config(folder: Path) -> None:
    with open_folder(folder / "run", records.CONFIG, resume=False):
        pass


def read_config(folder: Path) -> str:
    with open_folder(folder / "run", records.CONFIG, resume=True):
        pass
    assert records.config_of(folder) == "after"
    return "right"


def after(check: Callable[[Path], str]) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        assert check(folder) == "after", "not there, and no error"
        return "right"

    return read


def read_safetensors(folder: Path) -> str:
    found, _ = from_safetensors(folder / "student.safetensors", saves.weights(1))
    assert bits(found) == bits(saves.weights(1))
    return "right"


def read_stablehlo(folder: Path) -> str:
    """Opens it, which proves the bytes; a program of the same bytes is not run each time."""
    _, record = open_stablehlo(folder / "student")
    assert record["inputs"] == {"inputs": {"shape": [None, 2], "dtype": "float32"}}
    return "right"


KEPT = {
    "weights": Kept(saves.write_weights, saves.read_weights),
    "weights of 36 KB": Kept(
        lambda folder: save_weights(folder / "w", saves.large_weights()), saves.read_large, bits=0, lengths=False
    ),
    "training states": Kept(saves.two_states, saves.read_state, bits=1, damaged="state/2", fresh=True),
    "a teacher's cache": Kept(records.cached, after(records.cache_of)),
    "results.json": Kept(write_results, read_results),
    "config.json": Kept(write_config, read_config, damaged="run/config.json", fresh=True),
    "safetensors": Kept(records.safetensors, read_safetensors),
    "StableHLO": Kept(records.stablehlo, read_stablehlo, lengths=False),
}


def damages(kept: Kept, file: Path) -> Iterator[tuple[str, str, bytes | None]]:
    """(kind, where, the file's new content), None where the file is deleted."""
    content = file.read_bytes()
    size = len(content)
    for place in range(size):
        for bit in {8: range(8), 1: [place % 8], 0: []}[kept.bits]:
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            yield "changed", f"bit {bit} of byte {place}", bytes(changed)
    odd = {1, size // 3, size // 2, size - 2, size - 1}
    cuts = range(size) if kept.lengths else sorted({*range(0, size, BLOCK), *(one for one in odd if 0 < one < size)})
    for length in cuts:
        yield "cut", f"cut to {length} of {size} bytes", content[:length]
    yield "deleted", "deleted", None


def read_after(kept: Kept, folder: Path) -> tuple[str, str]:
    """The outcome, and why it is a failure."""
    try:
        return kept.read(folder), ""
    except AssertionError as error:
        return "failed", f"other data: {error!s:.200}"
    except Exception as error:
        if is_named(error, folder):
            return "named error", ""
        return "failed", f"unclear: {type(error).__name__}: {error!s:.300}"


def run(name: str, *, part: tuple[int, int] = (0, 1), share: float = 1.0, seed: int = 0) -> dict:
    """All damage of one kind of file: every `part[1]`-th from `part[0]` on; or a seeded share of it."""
    kept, counted, failures = KEPT[name], Counter(), []
    drawn = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:
        whole, copy = Path(scratch) / "whole", Path(scratch) / "copy"
        whole.mkdir()
        kept.write(whole)
        shutil.copytree(whole, copy)
        assert kept.read(copy) == "right"
        files = sorted(path for path in whole.rglob("*") if path.is_file() and path.name != ".lock")
        if kept.damaged is not None:
            files = [path for path in files if path.is_relative_to(whole / kept.damaged)]
        every = ((file, *damage) for file in files for damage in damages(kept, file))
        for index, (file, kind, where, content) in enumerate(itertools.islice(every, part[0], None, part[1])):
            if share < 1 and drawn.random() > share:
                continue
            target = copy / file.relative_to(whole)
            if kept.fresh:
                shutil.rmtree(copy)
                shutil.copytree(whole, copy)
            if content is None:
                target.unlink()
            else:
                target.write_bytes(content)
            outcome, why = read_after(kept, copy)
            counted[kind, outcome] += 1
            if why:
                failures.append(f"{name}: {file.relative_to(whole)}, {where}: {why}")
            if not kept.fresh:
                target.write_bytes(file.read_bytes())
            if index % 500 == 0:
                gc.collect()  # Orbax leaves the errors of leaves that it read side by side
        if not kept.fresh:
            assert kept.read(copy) == "right"
    return {
        "injected": sum(counted.values()),
        "outcomes": [[kind, outcome, count] for (kind, outcome), count in sorted(counted.items())],
        "failures": failures,
    }
