"""Arrays that stay in their files, .npz or .npy, and are read row by row."""

import math
import struct
import zipfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax._files import open_bounded
from kdjax.data.dataset import checked_labels, require_split
from kdjax.data.examples import Examples
from kdjax.data.files import UNREADABLE, read_archive_names, read_header, require_inside

LOCAL_HEADER = 30  # bytes before a zip member's name; their last four are the lengths of the name and of an extra field


class Mapped(NamedTuple):
    """Where an array lies in a file. A `numpy.memmap` is pickled with all its numbers, this only as it stands."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    order: str


def open_archive(path: Path, split: str, name: str) -> Examples:
    """One split of an uncompressed .npz archive, or of a folder of .npy files called as the archive's arrays are.

    The labels of all splits are read and checked. **The inputs are not**: neither zip's checksums nor finite values.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if an array cannot be mapped, is compressed or missing, shapes do not fit, or as `read_npz`.
    """
    if not path.exists():
        raise FileNotFoundError(f"source {name!r}: {path} does not exist.")
    mapped.cache_clear()  # the file may be another than the one that was opened under this name before
    try:
        arrays = _in_folder(path, name) if path.is_dir() else _in_zip(path)
        for array in arrays.values():
            mapped(array)  # finds files that are shorter than they say
        read = {key: np.array(mapped(array)) for key, array in arrays.items() if not key.startswith("x_")}
    except UNREADABLE as broken:
        raise ValueError(f"{path} cannot be read row by row: {broken}") from broken
    labels, class_names = read_archive_names(path, name, list(arrays), read)
    require_split(name, split, list(labels))
    shapes = {part: (arrays[f"x_{part}"].shape[1:], arrays[f"x_{part}"].dtype) for part in labels}
    if len(set(shapes.values())) != 1 or len(shapes[split][0]) not in (1, 2, 3):
        found = ", ".join(f"{shape} {np.dtype(dtype)} in {part}" for part, (shape, dtype) in shapes.items())
        raise ValueError(
            f"{name}: the examples of all splits must have one dtype and one shape, [height, width, channels], "
            f"[height, width] or [values]; got {found}."
        )
    inputs = arrays[f"x_{split}"]
    if inputs.dtype != "|u1" and not np.issubdtype(np.dtype(inputs.dtype), np.floating):
        raise ValueError(f"{name}: inputs must be uint8 or floating-point; got dtype {np.dtype(inputs.dtype)}.")
    checked = checked_labels(f"{name} ({split})", labels[split], inputs.shape[0], len(class_names))
    return Examples(partial(_row, inputs, checked), len(checked), class_names, name, split)


@lru_cache(maxsize=8)
def mapped(array: Mapped) -> np.ndarray:
    """Opens the file, once in each process, and reads none of it."""
    return np.memmap(array.path, array.dtype, "r", array.offset, array.shape, array.order)  # type: ignore[call-overload]


def _row(inputs: Mapped, labels: np.ndarray, index: int) -> tuple[np.ndarray, int]:
    row = np.array(mapped(inputs)[index])
    if row.dtype != np.uint8:
        row = row.astype(np.float32)
    return (row[..., None] if row.ndim == 2 else row), int(labels[index])


def _in_folder(folder: Path, name: str) -> dict[str, Mapped]:
    found = {}
    for path in sorted(folder.glob("*.npy")):
        with open_bounded(path) as stream:
            found[path.stem] = _header(require_inside(path, folder, name), stream)
    return found


def _in_zip(path: Path) -> dict[str, Mapped]:
    found = {}
    with open_bounded(path) as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, so that only `load` reads it; write it by numpy.savez instead.")
            stream.seek(member.header_offset)
            lengths = struct.unpack("<HH", stream.read(LOCAL_HEADER)[-4:])
            stream.seek(member.header_offset + LOCAL_HEADER + sum(lengths))
            found[member.filename.removesuffix(".npy")] = _header(path, stream)
    return found


def _header(path: Path, stream: Any) -> Mapped:
    shape, fortran, dtype = read_header(stream)
    promised, left = math.prod(shape) * dtype.itemsize, path.stat().st_size - stream.tell()
    if promised > left:
        raise ValueError(f"a header promises shape {shape} of {dtype}, {promised} bytes, and the file has {left} left.")
    return Mapped(str(path.absolute()), stream.tell(), shape, dtype.str, "F" if fortran else "C")
