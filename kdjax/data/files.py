"""Data sets in files of one's own: the four files of MNIST's format in a folder, or one .npz archive."""

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdjax._files import open_bounded
from kdjax.data.dataset import Dataset, make_dataset, numbered_classes, require_alike, require_split

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 8
MOST_EXPANDED = 1032  # bytes that deflate makes of one, at most
PIECE = 1 << 20
# RuntimeError: an encrypted member. NotImplementedError: a compression, or a version, that Python does not know.
UNREADABLE = (
    ValueError, OverflowError, OSError, EOFError, RuntimeError, NotImplementedError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
PARTS = {"train": "train", "test": "t10k"}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Read one file of the IDX format, gzipped or not: big-endian sizes, then unsigned bytes.

    Args:
      path: the file; whether it is gzipped is seen from its content, not from its name.
      axes: how many the array must have: 3 for images, 1 for labels.

    Returns:
      uint8, `axes` axes.

    Raises:
      ValueError: if the magic number, the number of axes or the file's length is wrong, or the compressed stream is broken.
        The length is looked at before anything is made of it.

    Reference:
      http://yann.lecun.com/exdb/mnist/ (the format, at the foot of the page)
    """
    header, magic, size = 4 + 4 * axes, bytes((0, 0, UNSIGNED_BYTE, axes)), path.stat().st_size
    with open_bounded(path) as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            begun = stream.read(header)
            if begun[:4] != magic:
                raise ValueError(
                    f"{path} is no IDX file of unsigned bytes with {axes} axes: it must begin with {magic.hex(' ')}, "
                    f"and begins with {begun[:4].hex(' ') or 'nothing'}."
                )
            if len(begun) < header:
                raise ValueError(
                    f"{path} is truncated: its header needs {header} bytes, and the file holds {len(begun)}."
                )
            shape = tuple(int(one) for one in np.frombuffer(begun, ">u4", axes, offset=4))
            wanted = header + math.prod(shape)
            # What no file of this size can hold is not asked for, and of what holds more no more is read.
            most = MOST_EXPANDED * size if zipped else size
            content = _up_to(wanted - header + 1, stream) if wanted <= most else b""
        except (EOFError, OSError, zlib.error) as broken:
            raise ValueError(f"{path} is truncated or damaged: its gzip stream cannot be read ({broken}).") from broken
    promise = f"its header promises shape {shape}, {wanted} bytes in all, and it"
    if wanted > most:
        raise ValueError(f"{path} is truncated: {promise} holds {f'{most} at most' if zipped else size}.")
    if len(content) != wanted - header:
        fault = "is truncated" if len(content) < wanted - header else "has trailing bytes"
        held = "more" if zipped and len(content) > wanted - header else str(header + len(content) if zipped else size)
        raise ValueError(f"{path} {fault}: {promise} holds {held}.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _up_to(count: int, stream: Any) -> bytes:
    """At most so many bytes; room is made for what comes, not for what was promised."""
    parts = []
    while count > 0 and (part := stream.read(min(count, PIECE))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_idx_folder(folder: Path, split: str, name: str) -> Dataset:
    """One split of four MNIST-format files; all four are read and checked, whichever split is wanted.

    The names are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, with ``.gz`` or without; a dot in place of the hyphen before ``idx`` is as good.

    Raises:
      FileNotFoundError: with all names that are missing.
      ValueError: as `read_idx` and `kdjax.data.make_dataset`, or if there is no such split.
    """
    require_split(name, split, list(PARTS))
    if not folder.is_dir():
        raise FileNotFoundError(f"source {name!r}: the folder {folder} does not exist.")
    wanted = {
        (part, kind): f"{prefix}-{kind}-idx{axes}-ubyte"
        for part, prefix in PARTS.items()
        for kind, axes in (("images", 3), ("labels", 1))
    }
    found = {key: _spelling(folder, file_name) for key, file_name in wanted.items()}
    missing = [wanted[key] for key, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(f"source {name!r}: {folder} lacks {', '.join(missing)} (each may end in .gz).")
    paths = {key: require_inside(path, folder, name) for key, path in found.items() if path is not None}
    labels = {part: read_idx(paths[part, "labels"], 1) for part in PARTS}
    images = {part: read_idx(paths[part, "images"], 3) for part in PARTS}
    return _chosen(images, labels, numbered_classes(name, labels.values()), name, split)


def _spelling(folder: Path, file_name: str) -> Path | None:
    spellings = (file_name, file_name.replace("-idx", ".idx"))
    candidates = (folder / f"{spelling}{ending}" for spelling in spellings for ending in (".gz", ""))
    return next((path for path in candidates if path.is_file()), None)


def read_npz(path: Path, split: str, name: str) -> Dataset:
    """One split of a NumPy archive, or of a folder of .npy files; all splits in it are read and checked.

    It holds ``x_train``, ``y_train``, ``x_test``, ``y_test``, and may hold ``x_validation``, ``y_validation`` and
    ``class_names`` (strings; without it the classes are called by their numbers). Nothing in it is ever unpickled.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no readable archive, arrays are missing, there is no such split, or as `kdjax.data.make_dataset`.
    """
    if not path.exists():
        raise FileNotFoundError(f"source {name!r}: {path} does not exist.")
    arrays = read_archive(path, name)
    labels, class_names = read_archive_names(path, name, list(arrays), arrays)
    require_split(name, split, list(labels))
    return _chosen({part: arrays[f"x_{part}"] for part in labels}, labels, class_names, name, split)


def read_archive_names(
    path: Path, name: str, keys: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The labels of each split and the names of the classes, of an archive that holds the arrays `keys`.

    `arrays` are all of them but, perhaps, the inputs.
    """
    optional = ["validation"] if {"x_validation", "y_validation"} & set(keys) else []
    splits = ["train", *optional, "test"]
    missing = [key for part in splits for key in (f"x_{part}", f"y_{part}") if key not in keys]
    if missing:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(keys) or 'none'}.")
    labels = {part: arrays[f"y_{part}"] for part in splits}
    if "class_names" not in arrays:
        return labels, numbered_classes(name, labels.values())
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(
            f"{path}: class_names must be a list of strings; got shape {names.shape} and dtype {names.dtype}."
        )
    try:
        return labels, tuple(str(each) for each in names)
    except (SystemError, ValueError) as odd:  # numbers that stand for no letter
        raise ValueError(f"{path}: class_names must be strings of letters; {odd}.") from odd


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is in Fortran's order, and the dtype, of an .npy file from its beginning; no number is read.

    Raises:
      ValueError: if it is none, or holds Python objects.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    # Of Python's parser: the header is an expression.
    except (RecursionError, MemoryError, SyntaxError, tokenize.TokenError) as odd:
        raise ValueError("its header is no description of an array.") from odd
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled.")
    if any(size < 0 for size in shape):
        raise ValueError(f"its header gives the shape {shape}.")
    return shape, fortran, dtype


def require_inside(path: Path, folder: Path, name: str) -> Path:
    """The path, if it is no symbolic link that leads out of the data's folder."""
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(
            f"source {name!r}: {path} is a symbolic link that leads out of {folder}, and is not followed; put the data "
            "themselves there, or name the folder in which they are."
        )
    return path


def read_archive(path: Path, name: str = "") -> dict[str, np.ndarray]:
    """All arrays of an .npz file, or of a folder of .npy files, none larger than what the file can hold, none unpickled."""
    try:
        if path.is_dir():
            files = [require_inside(file, path, name) for file in sorted(path.glob("*.npy"))]
            return {file.stem: _array(file.stat().st_size, partial(open_bounded, file)) for file in files}
        with open_bounded(path) as file, zipfile.ZipFile(file) as archive:
            most = path.stat().st_size
            return {
                member.filename.removesuffix(".npy"): _array(_size(member, most), partial(archive.open, member))
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
    except UNREADABLE as broken:
        raise ValueError(f"{path} cannot be read as an .npz archive of plain arrays: {broken}") from broken


def _size(member: zipfile.ZipInfo, most: int) -> int:
    """How many bytes a member has when it is unpacked, if its archive of `most` bytes can hold them."""
    expanded = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MOST_EXPANDED}.get(member.compress_type)
    if expanded is None:
        raise ValueError(f"{member.filename} is compressed in another way than numpy.savez_compressed does it.")
    if member.file_size > expanded * min(member.compress_size, most):
        raise ValueError(f"{member.filename} promises {member.file_size} bytes, more than the archive can hold.")
    return member.file_size


def _array(size: int, open_stream: Callable[[], Any]) -> np.ndarray:
    """An array out of an .npy file of `size` bytes, which must be what its header promises."""
    with open_stream() as stream:
        shape, _, dtype = read_header(stream)
        promised = math.prod(shape) * dtype.itemsize
        if promised != size - stream.tell():
            raise ValueError(
                f"a header promises shape {shape} of {dtype}, {promised} bytes, and {size - stream.tell()} follow it."
            )
    # Read to the end, where zip keeps the checksum.
    with open_stream() as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _chosen(
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
    name: str,
    split: str,
) -> Dataset:
    datasets = {
        part: make_dataset(images[part], labels[part], class_names=class_names, name=name, split=part)
        for part in images
    }
    require_alike(list(datasets.values()))
    return datasets[split]
