"""Data sets chosen by a string, as on a command line: `load` reads one whole, `open_examples` one example at a time."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kdjax import _checks
from kdjax.data.dataset import Dataset
from kdjax.data.digits import read_digits
from kdjax.data.examples import Examples, in_memory
from kdjax.data.files import read_idx_folder, read_npz
from kdjax.data.folders import open_folder, read_folder
from kdjax.data.mapped import open_archive
from kdjax.data.originals import read_originals
from kdjax.data.prepared import open_tfds, read_tfds

SPLITS = ("train", "validation", "test")


class Request(NamedTuple):
    """What was asked for: the whole source string, what stood behind its colon, and `load`'s other arguments."""

    source: str
    argument: str
    split: str
    data_dir: Path | None
    prepared_dir: Path | None
    size: tuple[int, int] | None
    channels: int | None

    @property
    def path(self) -> Path:
        return Path(self.argument).expanduser()


def _originals(request: Request) -> Dataset:
    return read_originals(request.source, request.split, data_dir=request.data_dir, prepared_dir=request.prepared_dir)


def _tfds(read: Callable) -> Callable[[Request], Any]:
    return lambda request: read(
        request.argument, request.split, data_dir=request.data_dir, prepared_dir=request.prepared_dir
    )


def _pictures(read: Callable) -> Callable[[Request], Any]:
    return lambda request: read(
        request.path, request.split, request.source, size=request.size, channels=request.channels
    )


def _file(read: Callable) -> Callable[[Request], Any]:
    return lambda request: read(request.path, request.split, request.source)


# The name that stands before the colon; what must stand behind it, if anything; who reads it.
SOURCES: dict[str, tuple[str, Callable[[Request], Dataset]]] = {
    "digits": ("", lambda request: read_digits(request.split)),
    "mnist": ("", _originals),
    "fashion_mnist": ("", _originals),
    "tfds": ("NAME", _tfds(read_tfds)),
    "idx": ("DIR", _file(read_idx_folder)),
    "npz": ("FILE", _file(read_npz)),
    "npy": ("DIR", _file(read_npz)),
    "folder": ("DIR", _pictures(read_folder)),
}
# Who reads it example by example. The other sources are small.
OPENERS: dict[str, Callable[[Request], Examples]] = {
    "tfds": _tfds(open_tfds),
    "npz": _file(open_archive),
    "npy": _file(open_archive),
    "folder": _pictures(open_folder),
}


def load(
    source: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    prepared_dir: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Read one split of a data set, whole and checked.

    Args:
      source: one of

        - ``"digits"``: scikit-learn's 1,797 scans of 8 × 8; train 1,257, validation 180, test 360;
        - ``"mnist"``, ``"fashion_mnist"``: 28 × 28; train 60,000, test 10,000; from the four published files, found under
          `data_dir` or fetched, prepared once by TFDS, without TensorFlow;
        - ``"tfds:NAME"``: any TFDS data set with ``image`` and ``label``, prepared under `data_dir` or `prepared_dir`, or
          prepared now where TensorFlow is installed;
        - ``"folder:DIR"``: pictures (png, jpg, webp, bmp) as DIR/train/CLASS/any-name.png, DIR/test/CLASS/… and perhaps
          DIR/validation/CLASS/…; the classes are the folders' names, sorted;
        - ``"idx:DIR"``: a folder with four files in MNIST's format, gzipped or not;
        - ``"npz:FILE"``: a NumPy archive with x_train, y_train, x_test, y_test, and perhaps x_validation, y_validation,
          class_names; ``"npy:DIR"``: the same arrays as files in a folder, x_train.npy and so on.
      split: ``"train"``, ``"validation"`` or ``"test"``, where the source has it.
      data_dir: a folder in which original or prepared data may lie; it is never written to.
      prepared_dir: the folder in which TFDS keeps what it prepares; $TFDS_DATA_DIR or ``~/tensorflow_datasets`` where None.
      size: for ``folder:`` only: height and width, or one number for both, that every picture is scaled to cover, its
        proportions kept, and cut to. Without it all pictures must have the size of the first.
      channels: for ``folder:`` only: 1 makes all pictures grey (by luma), 3 makes them RGB. Without it all must be of the
        first one's kind.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: for an unknown source or split, and for data that is damaged or makes no sense.
      FileNotFoundError: for what is not there.
      PermissionError: if `prepared_dir` cannot be written to, and must be.

    Example:
      >>> from kdjax.data import load
      >>> train = load("digits", "train")
      >>> train.inputs.shape, str(train.inputs.dtype), len(train.class_names)
      ((1257, 8, 8, 1), 'uint8', 10)
    """
    kind, request = _requested(source, split, data_dir, prepared_dir, size, channels)
    return SOURCES[kind][1](request)


def open_examples(
    source: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    prepared_dir: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> Examples:
    """Open one split of a data set to be read one example at a time, by `open_stream`.

    ``folder:`` lists its files, ``tfds:`` opens its array_record files, and ``npz:`` (uncompressed) and ``npy:`` map theirs
    into memory; **each example is checked when it is read, not before**, and of ``npz:`` and ``npy:`` the values never. The
    other sources are read whole, as by `load`.

    Args:
      source: as for `load`, and likewise the rest.
      split: ``"train"``, ``"validation"`` or ``"test"``.
      data_dir: a folder in which data may lie.
      prepared_dir: the folder in which TFDS keeps what it prepares.
      size: for ``folder:`` only, height and width.
      channels: for ``folder:`` only, 1 or 3.

    Returns:
      `Examples`, a sequence of ``{"inputs": array, "labels": int32}``.

    Raises:
      ValueError, FileNotFoundError, PermissionError: as `load`, and for a compressed npz file.

    Example:
      >>> from kdjax.data import open_examples
      >>> test = open_examples("digits", "test")
      >>> len(test), test[0]["inputs"].shape, int(test[0]["labels"])
      (360, (8, 8, 1), 2)
    """
    kind, request = _requested(source, split, data_dir, prepared_dir, size, channels)
    return OPENERS[kind](request) if kind in OPENERS else in_memory(SOURCES[kind][1](request))


def _requested(
    source: str,
    split: str,
    data_dir: str | Path | None,
    prepared_dir: str | Path | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
) -> tuple[str, Request]:
    if not isinstance(source, str):
        raise ValueError(f"source must be a string, such as 'mnist' or 'npz:FILE'; got {source!r:.99}.")
    for name, folder in (("data_dir", data_dir), ("prepared_dir", prepared_dir)):
        if not isinstance(folder, str | os.PathLike | None):
            raise ValueError(f"{name} must be a folder's path, or None; got {folder!r:.99}.")
    kind, colon, argument = source.partition(":")
    _checks.one_of("source", kind, list(SOURCES))
    _checks.one_of("split", split, SPLITS)
    placeholder, _ = SOURCES[kind]
    if bool(argument) != bool(placeholder) or (colon and not placeholder):
        form = f"{kind}:{placeholder}" if placeholder else kind
        raise ValueError(f"source must be written {form}; got {source!r}.")
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"data_dir must be a folder; {str(data_dir)!r} is none.")
    if kind != "folder" and (size, channels) != (None, None):
        raise ValueError(f"size and channels are settings of the source folder:DIR; got them with {source!r}.")
    if channels is not None and (type(channels) is not int or channels not in (1, 3)):
        raise ValueError(f"channels must be 1 for grey or 3 for RGB; got {channels!r}.")
    pair = size if size is None or isinstance(size, tuple | list) else (size, size)
    if pair is not None and (len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair)):
        raise ValueError(f"size must be height and width in pixels, or one number for both; got {size!r}.")
    return kind, Request(source, argument, split, _path(data_dir), _path(prepared_dir), pair, channels)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser()
