"""Data sets in files of one's own: the four files of MNIST's format in a folder, or one .npz archive."""

import gzip
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdjax.data.dataset import Dataset, make_dataset, numbered_classes, require_alike, require_split

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 8
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

    Reference:
      http://yann.lecun.com/exdb/mnist/ (the format, at the foot of the page)
    """
    content = path.read_bytes()
    if content[:2] == GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as broken:
            raise ValueError(f"{path} is truncated or damaged: its gzip stream cannot be read ({broken}).") from broken
    header = 4 + 4 * axes
    magic = bytes((0, 0, UNSIGNED_BYTE, axes))
    if content[:4] != magic:
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes with {axes} axes: it must begin with {magic.hex(' ')}, "
            f"and begins with {content[:4].hex(' ') or 'nothing'}."
        )
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header needs {header} bytes, and the file holds {len(content)}.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, offset=4))
    wanted = header + int(np.prod(shape, dtype=object))
    if len(content) != wanted:
        fault = "is truncated" if len(content) < wanted else "has trailing bytes"
        raise ValueError(
            f"{path} {fault}: its header promises shape {shape}, {wanted} bytes in all, and it holds {len(content)}."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


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
    paths = {key: path for key, path in found.items() if path is not None}
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
    arrays = _archive(path)
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
    return labels, tuple(str(each) for each in names)


def _archive(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        # Opened here, for np.load leaves a broken file open. Its arrays are read to the end, where zip keeps the checksum.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as opened:
            return {key: opened[key] for key in opened.files}
    # A plain .npy file gives an array, which is no context manager: AttributeError or TypeError by Python's version.
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as broken:
        raise ValueError(f"{path} cannot be read as an .npz archive of plain arrays: {broken}") from broken


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
