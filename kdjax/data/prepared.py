"""TFDS data sets that lie prepared on disk, read without TensorFlow."""

import contextlib
import importlib.util
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.dataset import Dataset, make_dataset, require_split
from kdjax.data.examples import Examples

CHUNK = 2048  # examples decoded at a time: their dicts of small arrays cost more memory than the images themselves


def default_prepared_dir() -> Path:
    """TFDS's own choice: $TFDS_DATA_DIR, or ``~/tensorflow_datasets``."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def read_prepared(builder: Any, split: str, name: str) -> Dataset:
    """Read one split of a prepared TFDS builder into arrays.

    The files carry checksums of their own (array_record's), so that a flipped bit is an error and not another pixel.

    Args:
      builder: a `tfds.core.DatasetBuilder` with the features ``"image"`` and ``"label"``, the label a ClassLabel.
      split: one of the builder's own.
      name: what the data set shall be called.

    Raises:
      ValueError: if features, split or file format are not as above, the images differ in shape, or the copy is damaged.
    """
    source = _data_source(builder, split, name)
    wanted = len(source)
    images: np.ndarray | None = None
    labels = np.empty(wanted, np.int64)
    try:
        for start in range(0, wanted, CHUNK):
            rows = range(start, min(start + CHUNK, wanted))
            for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
                image = example["image"]
                if images is None:
                    images = np.empty((wanted, *image.shape), image.dtype)
                if image.shape != images.shape[1:]:
                    raise _DifferentShapes(f"{images.shape[1:]} and {image.shape}")
                images[row], labels[row] = image, example["label"]
    except _DifferentShapes as shapes:
        raise ValueError(f"source {name!r}: all images must have one shape; got {shapes}.") from None
    except Exception as broken:  # array_record raises RuntimeError, protobuf and the image decoders their own
        raise damaged(name, builder.data_dir, broken) from broken
    empty = np.empty((0, 1, 1, 1), np.uint8)
    names = builder.info.features["label"].names
    return make_dataset(empty if images is None else images, labels, class_names=names, name=name, split=split)


def _data_source(builder: Any, split: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not {"image", "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in sorted(features.items()))
        raise ValueError(f"source {name!r} must have the features 'image' and 'label' (a ClassLabel); it has {found}.")
    require_split(name, split, sorted(builder.info.splits))
    try:
        return builder.as_data_source(split)
    except NotImplementedError as unsupported:
        raise ValueError(
            f"source {name!r} lies in {builder.data_dir} as {builder.info.file_format.value}, which only TensorFlow reads; "
            "prepare it again with file_format='array_record'."
        ) from unsupported


class _DifferentShapes(Exception):
    """Tells images of several sizes, which is no damage, from a copy that cannot be read."""


def damaged(name: str, folder: str | os.PathLike, cause: object) -> ValueError:
    """The error for a prepared copy that cannot be read."""
    return ValueError(
        f"source {name!r}: the prepared copy in {os.fspath(folder)} is damaged ({cause}); "
        "delete that folder, and the next run prepares it again."
    )


def read_tfds(dataset: str, split: str, *, data_dir: Path | None, prepared_dir: Path | None) -> Dataset:
    """One split of any TFDS data set that is prepared, or that TFDS can prepare here because TensorFlow is installed.

    Args:
      dataset: TFDS's own name, ``"cifar10"``, ``"emnist/letters"`` or, with a version, ``"mnist:3.*.*"``.
      split: one of the data set's.
      data_dir: looked in first, never written to.
      prepared_dir: looked in next, and prepared into; TFDS's own default where None.

    Raises:
      FileNotFoundError: if it is prepared nowhere and TensorFlow is not installed.
      ValueError: if the name is none, TFDS does not know it, or as `read_prepared`.
    """
    return read_prepared(_builder(dataset, data_dir, prepared_dir), split, f"tfds:{dataset}")


def open_tfds(dataset: str, split: str, *, data_dir: Path | None, prepared_dir: Path | None) -> Examples:
    """The same, read one example at a time.

    Raises:
      FileNotFoundError, ValueError: as `read_tfds`; an example's damage or odd shape when that example is read.
    """
    name, builder = f"tfds:{dataset}", _builder(dataset, data_dir, prepared_dir)
    source = _data_source(builder, split, name)
    class_names = tuple(builder.info.features["label"].names)
    return Examples(partial(_example, source, name, str(builder.data_dir)), len(source), class_names, name, split)


def _example(source: Any, name: str, folder: str, index: int) -> tuple[np.ndarray, int]:
    try:
        example = source[index]
    except Exception as broken:  # as in read_prepared
        raise damaged(name, folder, broken) from broken
    return example["image"], int(example["label"])


def _builder(dataset: str, data_dir: Path | None, prepared_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    name = f"tfds:{dataset}"
    home = prepared_dir or default_prepared_dir()
    places = [place for place in (data_dir, home) if place is not None]
    try:
        tfds.core.naming.parse_builder_name_kwargs(dataset)
    except ValueError as unreadable:
        raise ValueError(
            f"source must be written tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3 (or 1.*.*); got {name!r}."
        ) from unreadable
    try:
        for place in places:
            _refuse_foreign_classes(place / dataset.split("/")[0].split(":")[0], name)
            with contextlib.suppress(tfds.core.DatasetNotFoundError):
                return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=os.fspath(place))
        if importlib.util.find_spec("tensorflow") is not None:
            builder = tfds.builder(dataset, data_dir=os.fspath(home), file_format="array_record")
            builder.download_and_prepare()
            return builder
    except tfds.core.DatasetNotFoundError as unknown:
        raise ValueError(f"source {name!r}: TFDS knows no such data set. {unknown}") from unknown
    raise FileNotFoundError(
        f"source {name!r} is not prepared in {' or '.join(map(str, places))}, and preparing it here needs "
        "TensorFlow, which is not installed. Install tensorflow, or prepare it elsewhere as array_record "
        "and name that folder as data_dir."
    )


def _refuse_foreign_classes(folder: Path, name: str) -> None:
    """TFDS imports, and so runs, whatever module a prepared copy names: only its own may be named."""
    for pattern in ("features.json", "*/features.json", "*/*/features.json"):
        for file in folder.glob(pattern):
            try:
                named = _classes_in(json.loads(file.read_bytes()))
                foreign = sorted(one for one in named if not one.startswith("tensorflow_datasets."))
            except (ValueError, RecursionError) as broken:
                raise damaged(name, file.parent, broken) from broken
            if foreign:
                raise ValueError(
                    f"source {name!r}: {file} names the class {foreign[0]!r}, whose module TFDS would import and run; only "
                    "TFDS's own feature classes are read."
                )


def _classes_in(value: Any) -> set[str]:
    """The Python classes that a feature's description names, also in JSON that it holds as text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return _classes_in(json.loads(value))
    if isinstance(value, list):
        return set().union(*map(_classes_in, value))
    if not isinstance(value, dict):
        return set()
    own = {str(value[key]) for key in ("pythonClassName", "python_class_name", "type") if "." in str(value.get(key))}
    return own.union(*map(_classes_in, value.values()))
