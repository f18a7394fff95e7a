"""Weights as one safetensors file, which other frameworks read, with the checksums that the format lacks."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _trees
from kdjax._files import FORMAT, as_json, check_format, write_bytes
from kdjax._types import Weights
from kdjax.export import _student
from kdjax.export._student import RECORD_FORMAT

_OURS = "kdjax"


def to_safetensors(
    path: str | os.PathLike[str], weights: Weights, *, description: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes a network's arrays under names such as ``params/stage1/kernel``.

    Checksums stand in the file's own metadata, under ``"kdjax"``, where other readers pass them over.

    Args:
      path: of the new file, such as ``"student.safetensors"``; folders missing above it are made.
      weights: arrays of any dtype of NumPy's, or bfloat16.
      description: what to say of them, such as class names and the range of the inputs.

    Returns:
      The record: ``"kdjax_format"``, ``"description"``, ``"leaves"`` by name (shape, dtype, blake2b), ``"bytes"``.

    Raises:
      FileExistsError: if something is at `path`; it stays as it was.
      ImportError: if ``safetensors`` is missing.
      ValueError: if there is no array, one that is not finite, or one of a kind that safetensors cannot hold.

    Example:
      >>> import tempfile
      >>> weights = Weights({"kernel": jnp.ones((2, 3))}, {})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     record = to_safetensors(f"{folder}/student.safetensors", weights, description={"class_names": ["no", "yes"]})
      ...     again, description = from_safetensors(f"{folder}/student.safetensors", weights)
      >>> description, again.params["kernel"].shape
      ({'class_names': ['no', 'yes']}, (2, 3))
    """
    from safetensors.numpy import save

    target = _student.free(path)
    arrays = {}
    for name, leaf in _trees.by_path(weights).items():
        if _trees.key_kind(leaf) is not None:
            raise ValueError(f"weights must be arrays of numbers; {name} is a key.")
        arrays[name] = np.asarray(leaf, order="C")
    if not arrays:
        raise ValueError("weights must have at least one array; got none.")
    _student.check_finite(weights)
    leaves = {name: _trees.signature(array) | {"blake2b": _trees.digest(array)} for name, array in arrays.items()}
    record: dict[str, Any] = {
        FORMAT: RECORD_FORMAT,
        "description": as_json(description or {}, "description"),
        "leaves": leaves,
    }
    metadata = {_OURS: json.dumps(record | {"sha256": _student.digest_of_record(record)})}
    try:
        data = save(arrays, metadata=metadata)
    except Exception as error:  # its own class, which is not public
        raise ValueError(f"weights must be of dtypes that safetensors can hold: {error}") from error
    write_bytes(target, data)
    return record | {"bytes": len(data)}


def from_safetensors(path: str | os.PathLike[str], like: Weights) -> tuple[Weights, dict[str, Any]]:
    """Reads what `to_safetensors` wrote, and proves it to be the same bits in the architecture that is wanted.

    Weights that others wrote are read by `kdjax.networks.weights_from`.

    Args:
      path: of the file.
      like: the wanted tree, of arrays or of `jax.ShapeDtypeStruct`, as `jax.eval_shape` gives it.

    Returns:
      Weights in the structure of `like`, and the description.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, naming the leaves whose bytes have changed, was not written by kdjax, or has other
        leaves than `like`.
    """
    from safetensors import deserialize

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path must be a file of to_safetensors; {source} does not exist.")
    data = source.read_bytes()
    try:
        raw = dict(deserialize(data))
        length = int.from_bytes(data[:8], "little")
        record = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_OURS, "null"))
    except Exception as error:  # whatever a damaged header makes safetensors or json say
        raise ValueError(f"The weights {source} are damaged or no safetensors file: {error}") from error
    if record is None:
        raise ValueError(f"path must be a file of to_safetensors; {source} has no record of kdjax in its metadata.")
    if not isinstance(record, dict) or record.pop("sha256", None) != _student.digest_of_record(record):
        raise ValueError(f"The weights {source} are damaged: their record is not what was written.")
    check_format(record, RECORD_FORMAT, f"The record in {source}")
    arrays, changed = {}, []
    for name, saved in record["leaves"].items():
        shape, dtype = tuple(saved["shape"]), jnp.dtype(saved["dtype"])
        found = raw.get(name)
        if (
            found is None
            or tuple(found["shape"]) != shape
            or len(found["data"]) != dtype.itemsize * int(np.prod(shape))
        ):
            changed.append(name)
            continue
        arrays[name] = np.frombuffer(found["data"], dtype).reshape(shape)
        if _trees.digest(arrays[name]) != saved["blake2b"]:
            changed.append(name)
    changed += [name for name in raw if name not in record["leaves"]]
    if changed:
        raise ValueError(f"The weights {source} are damaged: the bytes have changed of {_trees.listed(changed)}.")
    if lines := _trees.differences(record["leaves"], like):
        raise ValueError(
            f"like must have the architecture of {source}; these leaves differ: {_trees.listed(lines, separator='; ')}."
        )
    weights: Weights = _trees.rebuilt(arrays, dict.fromkeys(arrays), like)
    # NumPy's own arrays, where it is theirs: those over the file's bytes cannot be written to.
    own = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, weights)
    return own, record["description"]
