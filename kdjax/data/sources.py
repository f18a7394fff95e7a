"""Data sets chosen by a string, as on a command line."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kdjax import _checks
from kdjax.data.dataset import Dataset
from kdjax.data.digits import read_digits
from kdjax.data.files import read_idx_folder, read_npz
from kdjax.data.originals import read_originals
from kdjax.data.prepared import read_tfds

SPLITS = ("train", "validation", "test")


class Request(NamedTuple):
    """What was asked for: the whole source string, what stood behind its colon, the split, and the folders."""

    source: str
    argument: str
    split: str
    data_dir: Path | None
    prepared_dir: Path | None


def _originals(request: Request) -> Dataset:
    return read_originals(request.source, request.split, data_dir=request.data_dir, prepared_dir=request.prepared_dir)


# The name that stands before the colon; what must stand behind it, if anything; who reads it.
SOURCES: dict[str, tuple[str, Callable[[Request], Dataset]]] = {
    "digits": ("", lambda request: read_digits(request.split)),
    "mnist": ("", _originals),
    "fashion_mnist": ("", _originals),
    "tfds": (
        "NAME",
        lambda request: read_tfds(
            request.argument, request.split, data_dir=request.data_dir, prepared_dir=request.prepared_dir
        ),
    ),
    "idx": ("DIR", lambda request: read_idx_folder(Path(request.argument).expanduser(), request.split, request.source)),
    "npz": ("FILE", lambda request: read_npz(Path(request.argument).expanduser(), request.split, request.source)),
}


def load(
    source: str, split: str, *, data_dir: str | Path | None = None, prepared_dir: str | Path | None = None
) -> Dataset:
    """Read one split of a data set, whole and checked.

    Args:
      source: one of

        - ``"digits"``: scikit-learn's 1,797 scans of 8 × 8; train 1,257, validation 180, test 360;
        - ``"mnist"``, ``"fashion_mnist"``: 28 × 28; train 60,000, test 10,000; from the four published files, found under
          `data_dir` or fetched, prepared once by TFDS, without TensorFlow;
        - ``"tfds:NAME"``: any TFDS data set with ``image`` and ``label``, prepared under `data_dir` or `prepared_dir`, or
          prepared now where TensorFlow is installed;
        - ``"idx:DIR"``: a folder with four files in MNIST's format, gzipped or not;
        - ``"npz:FILE"``: a NumPy archive with x_train, y_train, x_test, y_test, and perhaps x_validation, y_validation,
          class_names.
      split: ``"train"``, ``"validation"`` or ``"test"``, where the source has it.
      data_dir: a folder in which original or prepared data may lie; it is never written to.
      prepared_dir: the folder in which TFDS keeps what it prepares; $TFDS_DATA_DIR or ``~/tensorflow_datasets`` where None.

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
    kind, colon, argument = source.partition(":")
    _checks.one_of("source", kind, list(SOURCES))
    _checks.one_of("split", split, SPLITS)
    placeholder, read = SOURCES[kind]
    if bool(argument) != bool(placeholder) or (colon and not placeholder):
        form = f"{kind}:{placeholder}" if placeholder else kind
        raise ValueError(f"source must be written {form}; got {source!r}.")
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"data_dir must be a folder; {str(data_dir)!r} is none.")
    return read(Request(source, argument, split, _path(data_dir), _path(prepared_dir)))


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser()
