"""What a checkpoint's folder must be before Orbax may read it, whoever wrote it.

Orbax takes names of arrays out of the folder for places on disk where they are not in one database: an absolute one is
read wherever it lies. It follows links, waits for pipes, and makes room for the shapes that are written there.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax import _trees
from kdjax._types import Tree

DATABASE = "manifest.ocdbt"
KEY_WORDS = 4  # uint32, that a random key has at most


class DamagedError(ValueError):
    """What is on disk is not what was saved."""


def existing(path: str | os.PathLike[str]) -> Path:
    """The folder, if it has a checkpoint's two parts and nothing but plain files.

    Raises:
      FileNotFoundError: if it has not.
      ValueError: if anything in it is a link, a pipe or the like.
    """
    source = Path(path).absolute()
    if not (source / "arrays").is_dir() or not (source / "record").is_dir():
        why = "it is not a checkpoint of kdjax" if source.exists() else "there is no such folder"
        raise FileNotFoundError(f"path must be a folder that save_weights made; got {source}: {why}.")
    check_plain(source)
    return source


def check_plain(folder: Path) -> None:
    """That a folder holds files and folders, and nothing that leads out of it or that one could wait for."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                mode = (found := Path(where, name)).lstat().st_mode
            except FileNotFoundError:  # another process has just finished with it
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
                raise ValueError(
                    f"A checkpoint must be of plain files, which are in it; {found} is {kind}, and is not read."
                )


def check_record(source: Path, record: Mapping[str, Any]) -> None:
    """That a record has the form of one: its digest may be right, and a stranger's."""
    leaves: Any = record.get("leaves")
    good = isinstance(record.get("entries"), dict) and isinstance(leaves, dict)
    for saved in leaves.values() if good else ():
        good = good and isinstance(saved, dict) and saved.keys() >= {"shape", "dtype", "key", "blake2b"}
        good = (
            good
            and isinstance(saved["shape"], list)
            and all(type(size) is int and size >= 0 for size in saved["shape"])
        )
    if not good:
        raise DamagedError(f"The checkpoint {source} is damaged: its record is none of kdjax.")


def differences(source: Path, leaves: Mapping[str, Mapping[str, Any]], like: Tree) -> str:
    """In what the record's arrays differ from the wanted ones, as an error's words; empty where in nothing."""
    if not (lines := _trees.differences(leaves, like)):
        return ""
    return (
        f"like must have the architecture of the checkpoint {source}; these leaves differ: "
        f"{_trees.listed(lines, separator='; ')}."
    )


def check_arrays(source: Path, leaves: Mapping[str, Mapping[str, Any]]) -> None:
    """That Orbax will look for the record's arrays, for these alone, and in their database.

    Raises:
      DamagedError: if not.
    """
    wanted = {name for name, saved in leaves.items() if 0 not in saved["shape"]}
    try:
        said = json.loads((source / "arrays" / "_METADATA").read_bytes())
        entries = said["tree_metadata"].values()
        found = ["/".join(str(one["key"]) for one in entry["key_metadata"]) for entry in entries]
        kinds = {entry["value_metadata"]["value_type"] for entry in entries}
        database = said["use_ocdbt"] is True and (source / "arrays" / DATABASE).is_file()
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"The checkpoint {source} is damaged: its list of arrays cannot be read: {error!r}."
        ) from error
    if not database or set(found) != wanted or len(found) != len(wanted) or kinds != {"np.ndarray"}:
        raise DamagedError(f"The checkpoint {source} is damaged: its list of arrays is not that of its record.")


def check_shapes(source: Path, leaves: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any]) -> None:
    """That what is stored, by Orbax's metadata, has the record's shapes and dtypes, in pieces that are no larger."""
    for name, saved in leaves.items():
        if 0 in saved["shape"]:
            continue
        shape, dtype, one = tuple(saved["shape"]), saved["dtype"], stored[name]
        if saved["key"] is not None and len(one.shape) == len(shape) + 1 and one.shape[-1] <= KEY_WORDS:
            shape, dtype = (*shape, one.shape[-1]), "uint32"
        pieces = one.storage.chunk_shape if one.storage else None
        if tuple(one.shape) != shape or str(one.dtype) != dtype or not _within(pieces, shape):
            raise DamagedError(
                f"The checkpoint {source} is damaged: {name} must be {saved['dtype']} {list(shape)}, as its record says; "
                f"{one.dtype} {list(one.shape)} in pieces of {pieces} is stored."
            )


def check_name(folder: Path) -> None:
    """Orbax takes the path for a pattern when it gathers what it has written, finds nothing, and only logs it."""
    if re.search(r"\[.*\]", str(folder)):
        raise ValueError(
            f"A checkpoint's path must have no brackets, in which Orbax loses what it writes; got {folder}."
        )


def _within(pieces: Any, shape: tuple[int, ...]) -> bool:
    if pieces is None or len(pieces) != len(shape):
        return False
    return all(piece <= size for piece, size in zip(pieces, shape, strict=True))
