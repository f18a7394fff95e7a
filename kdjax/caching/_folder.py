"""Arrays kept in a folder that is made whole or not at all, and is proved to hold what is wanted."""

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _files, _trees
from kdjax._types import Tree, Weights

_RECORD = "record.json"
_FORMAT = 1
_ROWS = 1000  # read at a time for a digest, which does not depend on it
_SAID = {
    "teacher": "the teacher's weights are others",
    "inputs": "the inputs are others",
    "views": "the views are others (seed, rng, epochs, batch_size or JAX's version)",
    "program": "the teacher's program is another",
    "arrays": "other arrays are kept (features, logits, top_k, draws or dtype)",
}

Layout = Mapping[str, jax.ShapeDtypeStruct]  # of each array, whose first axis is of rows


class StaleError(ValueError):
    """The cache on disk is of another teacher, of other inputs, or holds other things than are wanted."""


def identity(teacher: Weights, inputs: str, program: Callable[..., Any], shapes: Sequence[Any], layout: Layout) -> dict:
    """What a folder must be of, as JSON.

    Args:
      teacher: its weights.
      inputs: their digest.
      program: the pure function that gives the outputs.
      shapes: what it is traced on.
      layout: of the arrays that are kept.
    """
    return {
        "teacher": _trees.digest_of_tree(teacher),
        "inputs": inputs,
        "program": _trees.digest_of_program(program, *shapes),
        "jax": jax.__version__,
        "arrays": {name: {"shape": list(one.shape), "dtype": str(one.dtype)} for name, one in layout.items()},
    }


def in_folder(
    folder: Path, identity: Mapping[str, Any], layout: Layout, fill: Callable[[Mapping[str, np.ndarray]], None]
) -> dict[str, np.memmap]:
    """The arrays that `folder` holds, if they are the wanted ones; or those that it holds from now on."""

    def opened(where: Path, mode: Any) -> dict[str, np.memmap]:
        # Plain bytes: NumPy's own format does not know bfloat16. Shapes and dtypes are in the record.
        return {name: np.memmap(_file(where, name), one.dtype, mode, shape=one.shape) for name, one in layout.items()}

    if folder.exists():
        record = _checked_record(folder, identity)
        for name, array in opened(folder, "r").items():
            if record["digests"].get(name) != digest_of_rows(array):
                raise StaleError(f"path must hold what was written; {_file(folder, name)} has changed since.")
        return opened(folder, "r")
    if folder.is_symlink():
        raise ValueError(f"path must not be a symbolic link to nothing; {folder} leads to {os.readlink(folder)}.")
    made: list[Path] = []
    with _files.naming(folder), _made_whole(folder, made) as unfinished:
        for name, one in layout.items():
            _allocate(_file(unfinished, name), math.prod(one.shape) * one.dtype.itemsize)
        written = opened(unfinished, "r+")
        fill(written)
        for array in written.values():
            array.flush()
        digests = {name: digest_of_rows(array) for name, array in written.items()}
        record = {_files.FORMAT: _FORMAT, **identity, "digests": digests}
        _files.write_json(unfinished / _RECORD, record | {"record": _files.digest_of_json(record)})
    # Another process may have been first: what it wrote is proved to be the same.
    return opened(folder, "r") if made else in_folder(folder, identity, layout, fill)


def digest_of_rows(arrays: Tree) -> str:
    """Of an array, or a pytree of arrays, piece by piece: they may be larger than memory."""
    digest = blake2b(digest_size=16)
    for path, array in jax.tree.leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        for start in range(0, len(array), _ROWS):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    return digest.hexdigest()


def _file(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.bin"


def _allocate(file: Path, size: int) -> None:
    """Room on the disk for all of it: a process that finds none while it writes into mapped memory is killed by SIGBUS."""
    with open(file, "xb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)


@contextlib.contextmanager
def _made_whole(folder: Path, made: list[Path]) -> Iterator[Path]:
    """A folder beside `folder` that becomes it when all went well, and is gone when not.

    It is gone too, and not in `made`, if another one has that name by then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            os.replace(unfinished, folder)
            made.append(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        if not made:
            shutil.rmtree(unfinished, ignore_errors=True)


def _checked_record(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / _RECORD
    if not file.is_file():
        raise FileExistsError(f"path must be free, or hold a teacher's cache; {folder} holds something else.")
    try:
        kept = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        kept = None
    own = kept.pop("record", None) if isinstance(kept, dict) else None
    # None: of an older version. A change anywhere in the record is no other teacher.
    if (
        not isinstance(kept, dict)
        or own not in (None, _files.digest_of_json(kept))
        or not isinstance(kept.get("digests"), dict)
    ):
        raise StaleError(
            f"path must hold what was written; {file} is damaged. Remove the folder, or give another path."
        )
    _files.check_format(kept, _FORMAT, file)
    # Another JAX writes the same program in other words.
    same_jax = kept.get("jax") == identity["jax"]
    changed = [
        words
        for name, words in _SAID.items()
        if kept.get(name) != identity.get(name) and (name != "program" or same_jax)
    ]
    if changed:
        raise StaleError(
            f"path must hold the outputs of this teacher for these inputs; in {folder} {', '.join(changed)}. "
            "Remove the folder, or give another path."
        )
    for name, array in identity["arrays"].items():
        wanted = math.prod(array["shape"]) * jnp.dtype(array["dtype"]).itemsize
        file = _file(folder, name)
        found = file.stat().st_size if file.exists() else 0
        if found != wanted:
            raise StaleError(f"path must hold whole arrays; {file} has {found} bytes, and {wanted} are wanted.")
    return kept
