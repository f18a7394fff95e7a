"""MNIST and Fashion-MNIST as TFDS data sets without TensorFlow, from the four files that their authors published.

TFDS's own builders of the two need TensorFlow to unpack them. Those here read the same files, check their sha256, and leave
array_record files that `tfds.data_source` reads, in the original order.
"""

import contextlib
import hashlib
import io
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.dataset import Dataset, require_split
from kdjax.data.files import read_idx
from kdjax.data.prepared import damaged, default_prepared_dir, read_prepared

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FILES = {"train": (TRAIN_IMAGES, TRAIN_LABELS), "test": (TEST_IMAGES, TEST_LABELS)}
SHAPE = (28, 28, 1)
SECONDS_TO_ANSWER = 10


class Originals(NamedTuple):
    """Four published files: the folder of the web that holds them, and the sha256 of each."""

    address: str
    sha256: Mapping[str, str]
    class_names: tuple[str, ...]


ORIGINALS = {
    "mnist": Originals(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        tuple("0123456789"),
    ),
    "fashion_mnist": Originals(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}


def read_originals(
    name: str, split: str, *, data_dir: Path | None, prepared_dir: Path | None, originals: Originals | None = None
) -> Dataset:
    """One split of MNIST or Fashion-MNIST, prepared on first use.

    A prepared copy is looked for in `data_dir` and then in `prepared_dir`. If there is none, the four original files
    are taken from `data_dir` (from its folder `name`, called ``NAME.FILE``, or plainly there) or else fetched; they are
    checked, and prepared into `prepared_dir`. `data_dir` is only read.

    Args:
      name: ``"mnist"`` or ``"fashion_mnist"``.
      split: ``"train"`` or ``"test"``.
      data_dir: where files may lie already.
      prepared_dir: where the prepared copy is kept; TFDS's own default where None.
      originals: other files than those of `ORIGINALS`, for tests.

    Raises:
      FileNotFoundError: if files are missing and cannot be fetched.
      PermissionError: if `prepared_dir` cannot be written to.
      ValueError: if a file's sha256 is another, the prepared copy is damaged, or there is no such split.
    """
    originals = originals or ORIGINALS[name]
    require_split(name, split, list(FILES))
    home = prepared_dir or default_prepared_dir()
    for place in (data_dir, home):
        if place is not None and _folder(name, place).exists():
            return _read(name, split, originals, place)
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Fetched files live only until the copy is prepared; whatever happens, nothing half-written stays.
        with tempfile.TemporaryDirectory(prefix="fetched-", dir=home) as fetched:
            paths = _find(name, data_dir)
            _fetch(name, originals, paths, data_dir, Path(fetched))
            for file_name, path in paths.items():
                _check(name, path, originals.sha256[file_name])
            _prepare(name, originals, paths, home, Path(fetched))
    except PermissionError as refused:
        raise PermissionError(
            f"source {name!r} is prepared in {home}, and that cannot be written to ({refused}); "
            "name another folder as prepared_dir or in the environment variable TFDS_DATA_DIR."
        ) from refused
    return _read(name, split, originals, home)


def _folder(name: str, place: Path) -> Path:
    return place / f"kdjax_{name}" / "1.0.0"


def _find(name: str, data_dir: Path | None) -> dict[str, Path]:
    """Those of the four files that lie in data_dir, the most particular place first: one folder may serve both sets."""
    if data_dir is None:
        return {}
    found = {}
    for file_name in (each for pair in FILES.values() for each in pair):
        places = (data_dir / name / file_name, data_dir / f"{name}.{file_name}", data_dir / file_name)
        path = next((each for each in places if each.is_file()), None)
        if path is not None:
            found[file_name] = path
    return found


def _fetch(name: str, originals: Originals, paths: dict[str, Path], data_dir: Path | None, folder: Path) -> None:
    """Add to `paths` what is missing there, fetched by TFDS's download manager into `folder`."""
    import tensorflow_datasets as tfds

    missing = [file_name for file_name in originals.sha256 if file_name not in paths]
    if not missing:
        return
    addresses = {file_name: originals.address + file_name for file_name in missing}
    try:
        # The manager retries an address that does not answer for minutes, so ask once whether anyone is there.
        request = urllib.request.Request(addresses[missing[0]], method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER):
            pass
        with _quiet():
            fetched = tfds.download.DownloadManager(download_dir=folder).download(addresses)
    except (OSError, tfds.download.DownloadError) as failed:
        looked = f"not found in {data_dir} or {data_dir / name}" if data_dir is not None else "looked for nowhere"
        raise FileNotFoundError(
            f"source {name!r} needs the original files {', '.join(missing)}: {looked}, and not to be fetched from "
            f"{originals.address} ({failed}). Put them into a folder and name it as data_dir (--data-dir)."
        ) from failed
    paths.update({file_name: Path(path) for file_name, path in fetched.items()})


def _check(name: str, path: Path, wanted: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        raise ValueError(
            f"source {name!r}: {path} is not the file that was published: its sha256 is {found} and should be {wanted}. "
            "It may be damaged or belong to another data set; files of your own are read by the source idx:DIR."
        )


def _builder(name: str, originals: Originals, place: Path, paths: Mapping[str, Path]) -> Any:
    """A TFDS builder of the prepared copy under `place`; `paths` are read only when it prepares."""
    import tensorflow_datasets as tfds

    # Unregistered: no name of TFDS's own is taken, and a class a call is no clash.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc,call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image = tfds.features.Tensor(shape=SHAPE, dtype=np.uint8)
            label = tfds.features.ClassLabel(names=list(originals.class_names))
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label"), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(*(paths[each] for each in pair)) for split, pair in FILES.items()}

        def _generate_examples(self, images_path: Path, labels_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
            images, labels = read_idx(images_path, 3)[..., None], read_idx(labels_path, 1)
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}

    Builder.name = f"kdjax_{name}"
    return Builder(data_dir=os.fspath(place), file_format="array_record")


def _prepare(name: str, originals: Originals, paths: Mapping[str, Path], place: Path, downloads: Path) -> None:
    """TFDS writes into a folder of another name and renames it at the end, so that a copy is there whole or not at all."""
    try:
        with _quiet():
            _builder(name, originals, place, paths).download_and_prepare(download_dir=downloads)
    except BaseException as failed:
        # Another process was quicker: its copy is as good as ours, which TFDS has removed.
        if isinstance(failed, OSError) and _folder(name, place).exists():
            return
        with contextlib.suppress(OSError):  # it stays if another process writes there
            _folder(name, place).parent.rmdir()
        raise


def _read(name: str, split: str, originals: Originals, place: Path) -> Dataset:
    try:
        builder = _builder(name, originals, place, {})
        whole = builder.is_prepared()
    except Exception as broken:  # whatever the parsers of damaged JSON raise
        raise damaged(name, _folder(name, place), broken) from broken
    if not whole:
        raise damaged(name, _folder(name, place), "its description is missing")
    return read_prepared(builder, split, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints a few lines and draws bars for what takes seconds."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(enable=True)
