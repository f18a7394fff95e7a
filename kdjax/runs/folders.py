"""A run's folder: one writer, one configuration, never overwritten."""

import fcntl
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kdjax import _files, _processes

_LOCK = ".lock"
_CONFIG = "config.json"
NUMBERS = "'s numbers"  # ends the name of a digest of numbers, among those of programs
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}(\.tmp)?")  # of _files, of caches, and of the trial whether one can write
LATER = ("class_names",)  # which the records of older runs lack
RECORD_FORMAT = 1  # of config.json and results.json
# What may differ between a run and its resumption; of data and a given teacher there are digests.
FREE = (
    "seeds",
    "test_seeds",
    "out",
    "resume",
    "print_every",
    "data_dir",
    "given_teacher",
    "jax",
    _files.FORMAT,
    "chosen",
)


@contextmanager
def open_folder(out: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """Makes or finds the folder, proves that it can be written, and keeps other writers out until the block is left.

    Of several processes the first one makes and locks it; where it cannot, all of them say so.

    Args:
      out: the folder. If it already holds a run, `resume` continues it, and without `resume` it is an error; an empty
        one, or one in which a run was stopped before it wrote anything, is used.
      config: what the run is made of, as JSON can hold it; a resumption must bring the same, `FREE` excepted.
      resume: whether to go on with what is there.

    Raises:
      NotADirectoryError: if `out` is a file.
      FileExistsError: if it holds a run and `resume` is not set, or holds something else.
      PermissionError: if it cannot be written.
      RuntimeError: if another process is writing there; in the others of several processes, whatever the first one found.
      ValueError: if `config` differs from the run's, what the folder says of itself is damaged, or a link leads out of it.
    """
    folder, refusal = Path(out), None
    with ExitStack() as held:
        if _processes.is_first():
            try:
                _check_free(folder, resume)
                _check_writable(folder)
                _check_own(folder)
                _lock(held.enter_context(_lock_file(folder)), folder)
                _remove_left_overs(folder)
                _same(folder / _CONFIG, _files.as_json(config, "config"))
            except (OSError, RuntimeError, ValueError) as error:
                refusal = error
        if _processes.anywhere(refusal is not None):
            raise refusal or RuntimeError(f"out cannot be the run's folder, as the first process found: {folder}.")
        yield folder


def _check_free(folder: Path, resume: bool) -> None:
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # too long, or with a character that no path has
        raise ValueError(f"out must be a path that this system takes; got {str(folder)!r:.99}: {error}.") from None
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder; {folder} is a file.")
    found = sorted(one.name for one in folder.iterdir()) if folder.exists() else []
    if _CONFIG in found and not resume:
        raise FileExistsError(f"out is not empty: {folder}. Go on with it by --resume, or name another by --out.")
    # Another one's unfinished write of config.json begins with its name and a dot.
    others = [name for name in found if not name.startswith((_LOCK, f".{_CONFIG}."))]
    if _CONFIG not in found and others:
        raise FileExistsError(
            f"out holds no run that could be gone on with, and is not empty: {folder} has {others[0]}."
        )


def _check_own(folder: Path, name: str = "out") -> None:
    """A run writes where its folder is, and nowhere else: what a stranger's links name stays as it is."""
    root = folder.resolve()
    for where, folders, files in os.walk(folder):
        for path in (Path(where, name) for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise ValueError(f"{name} must hold its own files; {path} is a symbolic link that leads out of it.")


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"out is being written by another process: {folder}. Wait for it, or stop it.") from None


def _check_writable(folder: Path) -> None:
    """By writing: permissions alone do not tell of full disks and read-only mounts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f"{_LOCK}.{secrets.token_hex(4)}"
        trial.write_bytes(b"written")
        trial.unlink()
    except OSError as error:
        raise PermissionError(f"out cannot be written to: {folder} ({error.strerror}).") from error


def _remove_left_overs(folder: Path) -> None:
    """What writers that were killed had not finished: nobody else writes here now."""
    for path in sorted(folder.rglob(".*")):
        if _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def tidy(folder: Path) -> Iterator[None]:
    """Removes what killed writers left in a run's folder, and keeps others from that, unless somebody writes there now."""
    _check_own(folder, "run")
    with _lock_file(folder) as file:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_left_overs(folder)
        yield


def _lock_file(folder: Path) -> IO[str]:
    """Opened as it is: whatever else has its name, or is linked there, loses nothing."""
    path = folder / _LOCK
    if path.is_symlink():
        raise ValueError(f"A run's folder must hold its own files; {path} is a symbolic link.")
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644), "w")


def _same(path: Path, config: dict[str, Any]) -> None:
    if path.exists():
        before = read_object(path)
        unsaid = {key: config.get(key) for key in LATER if key not in before}
        changed = [key for key in config | before if key not in FREE and (before | unsaid).get(key) != config.get(key)]
        if changed == ["programs"] and before.get("jax", config.get("jax")) != config.get("jax"):
            changed = _of_another_jax(path, before, config)
        if changed:
            changes = ", ".join(_change(key, before.get(key), config.get(key)) for key in changed)
            raise ValueError(f"--resume needs the settings that the run in {path.parent} began with; {changes}.")
        if type(before.get("seeds", 0)) is not int:
            raise ValueError(f"{path} must hold a whole number of seeds, as the run wrote it; got {before['seeds']!r}.")
        if config.get("seeds", 0) < before.get("seeds", 0):
            raise ValueError(
                f"--resume needs at least the {before['seeds']} seeds of before; got {config['seeds']}. {path} says so."
            )
        config = config | {key: before[key] for key in ("chosen",) if key in before}
    _files.write_json(path, {_files.FORMAT: RECORD_FORMAT} | config)


def _of_another_jax(path: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Programs are compared by what JAX writes, and another JAX writes the same in other words: the numbers are left."""
    warnings.warn(
        f"The run in {path.parent} began with JAX {before['jax']} and goes on with {config['jax']}: whether networks, "
        "optimizers and losses are still the same is seen from their descriptions and numbers alone.",
        RuntimeWarning,
        stacklevel=2,
    )
    if not isinstance(before.get("programs"), dict):
        raise ValueError(
            f"{path} must hold the programs of the run, as it wrote them; got {before.get('programs')!r:.99}."
        )
    own, its = (
        {key: one for key, one in each["programs"].items() if key.endswith(NUMBERS)} for each in (before, config)
    )
    return ["programs"] if own != its else []


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        differing = [key for key in now | before if before.get(key) != now.get(key)]
        return ", ".join(_change(f"{name}[{key!r}]", before.get(key), now.get(key)) for key in differing)
    return f"{name} was {before!r} and is now {now!r}"


def chosen(folder: Path, name: str, now: str) -> str:
    """What the run in `folder` chose under that name when it began; if nothing yet, `now`, and it stays with that.

    Of several processes all call this, with the same.
    """
    config = read_object(folder / _CONFIG)
    before = config.get("chosen", {})
    if not isinstance(before, dict) or not isinstance(before.get(name, ""), str):
        raise ValueError(f"{folder / _CONFIG} must hold what the run chose, by name; got {before!r:.99}.")
    if name in before:
        return str(before[name])
    if _processes.is_first():
        _files.write_json(folder / _CONFIG, config | {"chosen": before | {name: now}})
    return now


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or the ValueError that names it."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold JSON, as the run wrote it; it is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, as the run wrote it; got a {type(found).__name__}.")
    _files.check_format(found, RECORD_FORMAT, path)
    return found
