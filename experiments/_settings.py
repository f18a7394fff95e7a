"""What every script's command line has, and how its settings become a run of `kdjax.runs.compare`."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from experiments._networks import make_model
from experiments._stopping import stoppable
from kdjax.command._main import EXPECTED
from kdjax.data import Dataset, load
from kdjax.networks import from_linen
from kdjax.runs import (
    StoppedError,
    compare,
    digest,
    open_folder,
    open_results,
    provenance,
    stopped_by_signals,
)
from kdjax.runs.recipes import Diverged
from kdjax.runs.stopping import STOPPED
from kdjax.training import jit_init

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"


@dataclass(frozen=True)
class Data:
    """Where the examples come from."""

    data: str = "mnist"
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"""
    data_dir: Path | None = None
    """folder with the original files of mnist or fashion_mnist, or with prepared TFDS data sets"""
    size: int | None = None
    """height and width in pixels to which the pictures of folder:DIR are brought"""

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if values == ():
                raise ValueError(f"{name} must hold one number at least; got none.")
            for value in values if isinstance(values, tuple) else (values,):
                if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"{name} must be a finite number, 0 or greater; got {value!r}.")
                if value == 0 and name in ("learning_rate", "temperature", "temperatures"):
                    raise ValueError(f"{name} must be a finite number greater than 0; got {value!r}.")
                if name in ("alpha", "alphas") and value > 1:
                    raise ValueError(
                        f"{name} must lie between 0 and 1, since the soft targets weigh 1 − alpha; got {value!r}."
                    )
                least = 0 if name == "print_every" else 1
                if type(value) is int and value < least:
                    raise ValueError(f"{name} must be a whole number, {least} or greater; got {value!r}.")

    def load(self, *splits: str) -> list[Dataset]:
        """The data's splits, by default those to train on and to test on."""
        keywords = {} if self.size is None else {"size": self.size}
        return [load(self.data, split, data_dir=self.data_dir, **keywords) for split in splits or ("train", "test")]

    def recorded(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Run(Data):
    """What every script that writes has."""

    out: Path | None = None
    """folder for everything that the run writes; default checkpoints/runs/NAME-DATA"""
    resume: bool = False
    """go on with the run in --out, from where it was stopped"""

    def folder(self, name: str) -> Path:
        """Where the run goes: --out, or a place of its own."""
        found = self.out or ROOT / "checkpoints" / "runs" / f"{name}-{self.data.replace(':', '-').replace('/', '-')}"
        if self.resume and not found.exists():
            raise ValueError(f"--resume needs a run to go on with; there is no folder {found}.")
        return found


@dataclass(frozen=True)
class Settings(Run):
    """What every comparison's command line has."""

    seeds: int = 3
    """how often the whole comparison is repeated, with seeds 0, 1, 2, …"""
    teacher: Path | None = None
    """use this saved teacher for every seed, such as OUT/seed-0/teacher/weights, and train none"""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """run the teacher once over the training data and keep its logits: in memory, or on disk in --out; off: run it every
    step; auto: memory if they take up to a quarter of what is free there, else disk up to a half, else off"""
    devices: Literal["one", "all"] = "one"
    """split each batch over one device, or over all"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what the networks compute in; weights and losses are float32"""
    diverged: Diverged = "stop"
    """what is done where training diverges; skip: updates that are not finite are left out; lower_rate: the epoch is begun
    anew with a tenth of the learning rate, three times at most"""
    print_every: int = 1
    """print a line each so many epochs; 0: only after the last"""


def network(model: str, data: list[Dataset]) -> tuple[Any, Any]:
    """A network of `kdjax.models` for the data's classes, as (init, apply)."""
    init, apply = from_linen(make_model(model, classes=len(data[0].class_names)))
    return jit_init(init), apply


def keep_programs() -> None:
    """What was compiled once is read from disk by the next run, unless JAX was told of another place for that."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(ROOT / "checkpoints" / "compilation-cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(name: str, settings: Settings, data: Sequence[Any], *, part: str | None = None, **recipes: Any) -> Path:
    """`kdjax.runs.compare` by a command line's settings, and what else it is given; returns the comparison's folder.

    Where a script makes several comparisons each is a `part`, in a folder of that name; a resumption begins those that
    the stop came before.
    """
    keep_programs()
    whole = settings.folder(name)
    out = whole if part is None else whole / part
    with _stoppable(whole), stopped_by_signals() as stop:
        compare(
            out,
            data=data,
            seeds=settings.seeds,
            resume=settings.resume and out.exists(),
            given_teacher=settings.teacher,
            cache=settings.cache,
            devices="all" if settings.devices == "all" else 1,
            dtype=settings.dtype,
            diverged=settings.diverged,
            config=settings.recorded(),
            title=name if part is None else f"{name}-{part}",
            print_every=settings.print_every,
            stop=stop,
            **recipes,
        )
    return out


@contextmanager
def recorded(name: str, settings: Run, data: list[Dataset]) -> Iterator[tuple[dict[str, Any], Any, Path]]:
    """The results of a run that trains by itself, `kdjax.runs.open_results` in its own folder, and their file."""
    keep_programs()
    out = settings.folder(name)
    digests = {one.split: digest(one.inputs, one.labels) for one in data}
    about = settings.recorded() | {"data_digests": digests}
    # What these scripts have trained is saved entry by entry.
    with _stoppable(out), stoppable(), open_folder(out, about, resume=settings.resume) as folder:
        file = folder / "results.json"
        yield *open_results(file, provenance(about, data=digests)), file


def in_order(labels: np.ndarray) -> bool:
    """Whether examples lie class by class, as a folder's pictures do: the first of them are then of one class."""
    return bool((np.diff(labels) >= 0).all())


def spread(labels: np.ndarray, count: int | None) -> np.ndarray:
    """The rows of `count` examples: the first; where they lie class by class, every so many. None: all."""
    rows = np.arange(len(labels))[:count]
    return rows * len(labels) // len(rows) if in_order(labels) else rows


def start(main: Callable[[Any], Any], settings: type, description: str | None) -> None:
    """Runs a script by its command line; what people can mend is one line and exit code 1. ``python -X dev`` shows more."""
    try:
        main(tyro.cli(settings, description=description))
    except EXPECTED as error:
        if sys.flags.dev_mode:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, StoppedError) as stopped:
        said = f"{str(stopped)[:1].upper()}{str(stopped)[1:]}" or "Stopped."
        print(f"{said} The same command with --resume --out {out} goes on from where it was.")
        raise SystemExit(getattr(stopped, "code", STOPPED)) from None
