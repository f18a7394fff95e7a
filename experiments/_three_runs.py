"""Every article's plan: the teacher, the student alone, the student with the teacher; over seeds, then one table.

Alone and distilled start from the same weights and see the same batches in the same order: for each seed their difference
is what the teacher changed, and nothing else.
"""

import fcntl
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from experiments._loop import EVALUATION_BATCH, Arrays, Network, Recipe, fit, prepare

import jax
import jax.numpy as jnp
from rich.console import Console

from kdjax import Weights
from kdjax._files import write_json
from kdjax.caching import cache_teacher, choose_place, free_memory
from kdjax.checkpoints import load_weights, read_description, save_weights
from kdjax.data import load, on_device
from kdjax.metrics import parameter_count
from kdjax.runs.report import comparison

PHASES = ("teacher", "alone", "distilled")
LOCK = ".lock"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """What every experiment's command line has."""

    data: str = "mnist"
    """where the examples come from: digits, mnist, fashion_mnist, tfds:NAME, idx:DIR or npz:FILE"""
    data_dir: Path | None = None
    """folder with the original files of mnist or fashion_mnist, or with prepared TFDS data sets"""
    out: Path | None = None
    """folder for everything that the run writes; default checkpoints/runs/NAME-DATA"""
    resume: bool = False
    """go on with the run in --out, from the last saved epoch of each network"""
    seeds: int = 3
    """how often the whole comparison is repeated, with seeds 0, 1, 2, …"""
    teacher: Path | None = None
    """use this saved teacher for every seed, such as OUT/seed-0/teacher/weights, and train none"""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """run the teacher once over the training data and keep its logits: in memory, or on disk in --out; off: run it every
    step; auto: memory if they take up to a quarter of what is free there, else disk up to a half, else off"""
    print_every: int = 1
    """print a line each so many epochs; 0: only after the last"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or greater; got {value!r}.")
            if name == "alpha" and value > 1:
                raise ValueError(
                    f"alpha must lie between 0 and 1, since the soft targets weigh 1 − alpha; got {value!r}."
                )
            least = 0 if name == "print_every" else 1
            if type(value) is int and value < least:
                raise ValueError(f"{name} must be a whole number, {least} or greater; got {value!r}.")


def run(
    name: str,
    settings: Settings,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    teacher: Recipe,
    alone: Recipe,
    distilled: Recipe,
) -> Path:
    """Runs the three over all seeds, prints the table, writes ``results.json``, and returns the folder of it all."""
    console = Console()
    jax.config.update("jax_compilation_cache_dir", str(ROOT / "checkpoints" / "compilation-cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    data = [load(settings.data, split, data_dir=settings.data_dir) for split in ("train", "test")]
    classes = len(data[0].class_names)
    train, test = (on_device(part, preprocess) for part in data)
    for recipe in (teacher, alone, distilled):
        if recipe.batch_size > len(train["labels"]):
            raise ValueError(
                f"batch_size must be at most the {len(train['labels'])} examples; got {recipe.batch_size}."
            )
    sizes = {"examples": len(train["labels"]), "classes": classes}
    networks = {"teacher": prepare(teacher, **sizes), "alone": prepare(alone, **sizes)}
    networks["distilled"] = prepare(distilled, **sizes, teacher_apply=networks["teacher"].apply)
    parameters = {phase: _parameters(network, train) for phase, network in networks.items()}
    about = {"data": settings.data, "preprocess": preprocess.__name__}
    given = None if settings.teacher is None else _given_teacher(settings.teacher, networks["teacher"], train, about)
    out = _open_folder(name, settings)
    console.print(
        f"{name}: {len(train['labels']):,} training and {len(test['labels']):,} test examples of {settings.data}, "
        f"{jax.devices()[0].platform}; results go to {out}",
        soft_wrap=True,
    )
    cache = _place_of_cache(settings, out, len(train["labels"]) * classes * 4, console)
    for batch_size in sorted({recipe.batch_size for recipe in (teacher, alone, distilled)}):
        if left_over := len(train["labels"]) % batch_size:
            console.print(
                f"{left_over} examples fill no batch of {batch_size} and sit an epoch out, other ones each epoch.",
                soft_wrap=True,
            )
    with _only_writer(out):
        _same_config(out / "config.json", {"experiment": name} | _plain(settings))
        try:
            seeds = [
                _one_seed(seed, networks, train, test, given, about, out, settings, cache, console)
                for seed in range(settings.seeds)
            ]
        except KeyboardInterrupt:
            console.print(f"Stopped. The same command with --resume --out {out} goes on from the last saved epoch.")
            raise SystemExit(130) from None
        results = {
            "experiment": name,
            "command": shlex.join(["python", *sys.argv]),
            "config": _plain(settings),
            "versions": {
                package: version(package) for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
            },
            "hardware": {
                "device": jax.devices()[0].device_kind,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
            },
            "parameters": parameters,
            "seeds": seeds,
        }
        write_json(out / "results.json", results)
    comparison(results, console)
    return out


def _one_seed(
    seed: int,
    networks: dict[str, Network],
    train: Arrays,
    test: Arrays,
    given: Weights | None,
    about: dict[str, str],
    out: Path,
    settings: Settings,
    cache: str,
    console: Console,
) -> dict[str, Any]:
    record: dict[str, Any] = {"seed": seed}
    on_disk: Arrays | None = None
    teacher = given
    for number, phase in enumerate(PHASES):
        network, folder = networks[phase], out / f"seed-{seed}" / phase
        if phase == "teacher" and given is not None:
            history = [{"test": network.evaluate(given, test), "seconds": 0.0}]
        else:
            # One key for both students, another for the teacher.
            init_key = jax.random.fold_in(jax.random.key(seed), min(number, 1))
            weights = network.init(init_key, train["inputs"][:1])
            weights, history = fit(
                network,
                weights=weights,
                train=train,
                test=test,
                seed=seed,
                folder=folder,
                teacher=teacher if phase == "distilled" and cache == "off" else None,
                on_disk=on_disk,
                console=console,
                label=f"seed {seed} {phase}",
                print_every=settings.print_every,
            )
            if not (folder / "weights").exists():
                description = about | {"model": network.recipe.model, "seed": seed, "test": history[-1]["test"]}
                save_weights(folder / "weights", weights, description=description)
        record[phase] = history[-1]["test"] | {"seconds": sum(epoch["seconds"] for epoch in history)}
        if phase == "teacher":
            teacher = given if given is not None else weights
            test = test | _said(network, teacher, test)
        if phase == "alone" and cache != "off":
            started = time.monotonic()
            if cache == "disk":
                on_disk = _said(networks["teacher"], teacher, train, out / f"seed-{seed}" / "teacher-outputs")
            else:
                train = train | jax.block_until_ready(_said(networks["teacher"], teacher, train))
            cache_seconds = time.monotonic() - started
    if cache != "off":
        record["distilled"]["seconds"] += cache_seconds
    return record


def _said(network: Network, teacher: Weights, arrays: Arrays, path: Path | None = None) -> Arrays:
    """The teacher's logits for all examples; what `path` holds from before a resumption is checked, and used."""
    return cache_teacher(network.apply, teacher, arrays["inputs"], batch_size=EVALUATION_BATCH, path=path)


def _place_of_cache(settings: Settings, out: Path, size: int, console: Console) -> str:
    """Where the teacher's logits for the training data are kept, in one line too."""
    memory, disk = free_memory(), shutil.disk_usage(out).free
    place = choose_place(size, memory=memory, disk=disk) if settings.cache == "auto" else settings.cache
    where = {"memory": "are kept in memory", "disk": f"are kept in {out}", "off": "are computed anew in every step"}
    chosen = f", as {memory / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk are free"
    console.print(
        f"The teacher's logits for the training data, {size / 1e6:.2f} MB, {where[place]}"
        f"{chosen if settings.cache == 'auto' else ''}.",
        soft_wrap=True,
    )
    return place


def _given_teacher(path: Path, network: Network, train: Arrays, about: dict[str, str]) -> Weights:
    """A saved teacher, if it is of this model and was trained on these data; one that does not say is believed."""
    saved = read_description(path)
    for key, wanted in (about | {"model": network.recipe.model}).items():
        if saved.get(key, wanted) != wanted:
            raise ValueError(f"teacher must have been trained with {key} {wanted!r}; {path} says {saved[key]!r}.")
    like = jax.eval_shape(network.init, jax.random.key(0), train["inputs"][:1])
    weights = load_weights(path, like)
    for name, leaf in jax.tree.leaves_with_path(weights):
        if not jnp.isfinite(leaf).all():
            raise ValueError(
                f"teacher must hold finite numbers; {path} has NaN or infinity in {jax.tree_util.keystr(name)}."
            )
    return weights


def _open_folder(name: str, settings: Settings) -> Path:
    """The run's folder, made or found. A run that is there is never overwritten."""
    source = settings.data.replace(":", "-").replace("/", "-")
    out = settings.out or ROOT / "checkpoints" / "runs" / f"{name}-{source}"
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out must be a folder; {out} is a file.")
    if out.exists() and any(out.iterdir()):
        if not settings.resume:
            raise FileExistsError(f"out is not empty: {out}. Go on with it by --resume, or name another by --out.")
        if not (out / "config.json").exists():
            raise FileExistsError(f"out holds no run that --resume could go on with, and is not empty: {out}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
    except OSError as error:
        raise PermissionError(f"out cannot be written to: {out} ({error.strerror}).") from error
    return out


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Two runs in one folder would overwrite each other's states; the second is refused."""
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"out is being written by another process: {out}. Wait for it, or stop it.") from None
        yield


def _same_config(path: Path, config: dict[str, Any]) -> None:
    free = ("seeds", "out", "resume", "print_every", "data_dir")  # what may change between a run and its resumption
    if path.exists():
        before = json.loads(path.read_text())
        changed = [key for key in config if key not in free and before.get(key) != config[key]]
        if changed:
            changes = ", ".join(f"{key} was {before.get(key)!r} and is now {config[key]!r}" for key in changed)
            raise ValueError(f"--resume needs the settings that the run in {path.parent} began with; {changes}.")
        if config["seeds"] < before["seeds"]:
            raise ValueError(f"--resume needs at least the {before['seeds']} seeds of before; got {config['seeds']}.")
    write_json(path, config)


def _plain(settings: Settings) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}


def _parameters(network: Network, train: Arrays) -> int:
    return parameter_count(jax.eval_shape(network.init, jax.random.key(0), train["inputs"][:1]).params)
