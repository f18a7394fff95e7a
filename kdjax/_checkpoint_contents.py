"""What one checkpoint holds: its arrays and its record, made, written and read by Orbax, and proved by their digests."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from kdjax import _checkpoint_folders as folders
from kdjax import _processes, _trees
from kdjax._checkpoint_folders import DamagedError
from kdjax._files import FORMAT, as_json, check_format, digest_of_json, naming
from kdjax._types import Tree

_FORMAT = 1  # of a checkpoint's record


@contextmanager
def named(folder: os.PathLike[str]) -> Iterator[None]:
    """Whatever Orbax and tensorstore say of a write that failed, as an OSError that names the folder."""
    try:
        with naming(folder):
            yield
    except (ValueError, RuntimeError) as error:
        raise OSError(f"The checkpoint {os.fspath(folder)} cannot be written: {error}") from error


def to_write(tree: Tree, entries: Mapping[str, Any]) -> ocp.args.Composite:
    arrays: dict[str, np.ndarray] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, leaf in _trees.by_path(tree).items():
        host = _trees.on_host(leaf)
        table[name] = _trees.signature(leaf) | {"key": _trees.key_kind(leaf), "blake2b": _trees.digest(host)}
        if host.size:  # Orbax refuses arrays without numbers; their signature says all there is to say
            arrays[name] = host
    if not arrays:
        raise ValueError("A checkpoint must have at least one array that is not empty; got none.")
    if different := _processes.differing({name: saved["blake2b"] for name, saved in table.items()}):
        raise ValueError(f"What is saved must be the same in every process; different are {_trees.listed(different)}.")
    record = {FORMAT: _FORMAT, "entries": as_json(entries, "record"), "leaves": table}
    record["blake2b"] = _record_digest(record)
    return ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))


def record_of(source: Path) -> dict[str, Any]:
    """What the checkpoint says of itself, proved by its digest."""
    record = _restored(source, record=ocp.args.JsonRestore())["record"]
    if not isinstance(record, dict) or record.get("blake2b") != _record_digest(record):
        raise DamagedError(f"The checkpoint {source} is damaged: its record is not what was written.")
    check_format(record, _FORMAT, f"The checkpoint {source}")
    folders.check_record(source, record)
    return record


def arrays_of(source: Path, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays of a record, each of the bytes that it was saved with."""
    folders.check_arrays(source, leaves)
    with _as_damage(source):
        stored = ocp.StandardCheckpointHandler().metadata(source / "arrays").tree
    folders.check_shapes(source, leaves, stored)
    arrays: dict[str, np.ndarray] = _restored(source, arrays=ocp.args.StandardRestore())["arrays"]
    changed = []
    for name, saved in leaves.items():
        if 0 in saved["shape"]:
            arrays[name] = np.zeros(saved["shape"], jnp.dtype(saved["dtype"]))
        if name not in arrays or _trees.digest(np.asarray(arrays[name])) != saved["blake2b"]:
            changed.append(name)
    if changed:
        raise DamagedError(f"The checkpoint {source} is damaged: the bytes have changed of {_trees.listed(changed)}.")
    return arrays


def _restored(source: Path, **items: Any) -> Any:
    """Items that Orbax reads, each process for itself: one that fails leaves none waiting."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with _as_damage(source), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        return checkpointer.restore(source, args=ocp.args.Composite(**items))


@contextmanager
def _as_damage(source: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, MemoryError):  # these say nothing of the files
        raise
    except Exception as error:  # whatever a damaged file makes json, Orbax or tensorstore say
        raise DamagedError(f"The checkpoint {source} cannot be read: {error}") from error


def rebuilt(arrays: Mapping[str, np.ndarray], table: Mapping[str, Any], like: Tree) -> Any:
    return _trees.rebuilt(arrays, {name: saved["key"] for name, saved in table.items()}, like)


def _record_digest(record: Mapping[str, Any]) -> str:
    return digest_of_json({key: entry for key, entry in record.items() if key != "blake2b"})
