"""Pictures in folders, DIR/train/CLASS/picture.png and DIR/test/CLASS/picture.png: a data set of one's own."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdjax._files import open_bounded
from kdjax.data.dataset import Dataset, make_dataset, require_split
from kdjax.data.examples import Examples
from kdjax.data.files import require_inside

FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow would find others by content, and hand PostScript to Ghostscript
BOOKKEEPING = {"thumbs.db", "desktop.ini"}  # hidden files, of Windows
DEPTH_OF_PNG = 24  # the place of the byte that says how many bits a channel has
GREY, COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}  # Pillow's modes of 8 bits a channel
# Pixels for each byte of a file, as deflate gives them at most; so many that no file is too small for them.
MOST_PIXELS, ALWAYS = 1032, 1 << 18
THREADS = 8  # decoders release Python's lock

Size = tuple[int, int]


def read_folder(folder: Path, split: str, name: str, *, size: Size | None, channels: int | None) -> Dataset:
    """One split of a folder of pictures, whole; see `open_folder`."""
    examples = open_folder(folder, split, name, size=size, channels=channels)
    first, _ = examples.read(0)
    inputs, labels = np.empty((len(examples), *first.shape), np.uint8), np.empty(len(examples), np.int32)

    def fill(index: int) -> None:
        inputs[index], labels[index] = examples.read(index)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for _ in pool.map(fill, range(len(examples))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the first bad picture is enough
            raise
    return make_dataset(inputs, labels, class_names=examples.class_names, name=name, split=split)


def open_folder(folder: Path, split: str, name: str, *, size: Size | None, channels: int | None) -> Examples:
    """Lists the pictures of one split; each is read, and checked, when it is asked for.

    Classes are the folders in ``train``, ``test`` and ``validation`` (or ``val``), sorted by name and the same in all of
    them. Pictures may lie in folders of their own inside a class and are sorted by path. What begins with a dot is
    skipped. Of several frames the first counts. Symbolic links are followed as long as they stay in `folder`.

    Size and channels are those of the first picture of the first split, unless they are given: what differs is refused.

    Args:
      folder: the folder that holds the splits.
      split: ``"train"``, ``"validation"`` or ``"test"``, where there is one.
      name: what the data set shall be called.
      size: height and width to bring every picture to: scaled, by Pillow's bilinear filter, until it covers them, its
        proportions kept; what juts out is cut off, equally on both sides.
      channels: 1 makes every picture grey, by luma 0.299 R + 0.587 G + 0.114 B; 3 makes every picture RGB.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if there is no such split, classes differ between splits, a class is empty, a file is no picture by its
        ending, or a link leads out of `folder` or in a circle. When a picture is read: if it is damaged, odd in size or
        kind, transparent, or of more than 8 bits.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"source {name!r}: the folder {folder} does not exist.")
    splits = {part: _split_folder(folder, names, name) for part, names in FOLDERS.items()}
    present = {part: path for part, path in splits.items() if path is not None}
    if not present:
        raise ValueError(
            f"source {name!r}: {folder} must hold the folders train and test, and in each a folder of pictures for each "
            "class; it holds neither."
        )
    require_split(name, split, list(present))
    classes = _classes({part: _class_folders(path, name) for part, path in present.items()}, name)
    files = [[str(file) for file in _pictures(present[split] / each, folder, name)] for each in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(each) for each in files])
    # The first picture of the first split rules them all, so that the splits agree although only one is read.
    reference = next(iter(_pictures(next(iter(present.values())) / classes[0], folder, name)))
    shape = _shape(str(reference), size, channels)
    read = partial(
        _read, [file for each in files for file in each], labels, shape, size is not None, channels, reference
    )
    return Examples(read, len(labels), classes, name, split)


def _split_folder(folder: Path, names: tuple[str, ...], name: str) -> Path | None:
    found = [folder / each for each in names if (folder / each).is_dir()]
    if len(found) > 1:
        raise ValueError(f"source {name!r}: {folder} holds both {' and '.join(names)}; one of them must go.")
    return found[0] if found else None


def _class_folders(folder: Path, name: str) -> set[str]:
    visible = [child for child in folder.iterdir() if not child.name.startswith(".")]
    if stray := sorted(child.name for child in visible if child.is_file() and child.suffix.lower() in ENDINGS):
        raise ValueError(
            f"source {name!r}: {folder / stray[0]} lies in no class; each class must be a folder in {folder}."
        )
    found = {child.name for child in visible if child.is_dir()}
    if not found:
        raise ValueError(f"source {name!r}: {folder} must hold a folder for each class; it holds none.")
    return found


def _classes(found: dict[str, set[str]], name: str) -> tuple[str, ...]:
    every = set().union(*found.values())
    lacking = [
        f"{part} lacks {', '.join(sorted(every - classes))}" for part, classes in found.items() if every - classes
    ]
    if lacking:
        raise ValueError(f"source {name!r}: the classes of all splits must be the same; {'; '.join(lacking)}.")
    return tuple(sorted(every))


def _pictures(folder: Path, root: Path, name: str) -> list[Path]:
    files = sorted(_visible_files(require_inside(folder.parent, root, name) / folder.name, root, name))
    if odd := [file for file in files if file.suffix.lower() not in ENDINGS]:
        raise ValueError(
            f"source {name!r}: files must end in {', '.join(ENDINGS)}; {odd[0]} does not, one of {len(odd)} in {folder}."
        )
    if not files:
        raise ValueError(f"source {name!r}: the class {folder} is empty.")
    return files


def _visible_files(folder: Path, root: Path, name: str, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder, links among them as long as they stay in the data's folder and make no circle."""
    here = os.path.realpath(require_inside(folder, root, name))
    if here in above:
        raise ValueError(f"source {name!r}: {folder} is a symbolic link that leads in a circle.")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
                yield from _visible_files(path, root, name, (*above, here))
            elif entry.name.lower() not in BOOKKEEPING:
                own = require_inside(path, root, name) if entry.is_symlink() else path
                if own.exists() and not own.is_file():  # a pipe would be waited for
                    raise ValueError(f"source {name!r}: {path} is neither a file nor a folder.")
                yield own


def _shape(file: str, size: Size | None, channels: int | None) -> tuple[int, int, int]:
    picture = _decoded(file, channels)
    height, width = size or (picture.height, picture.width)
    return height, width, 1 if picture.mode == "L" else 3


def _read(
    files: list[str], labels: np.ndarray, shape: tuple[int, int, int], resize: bool, channels: int | None,
    reference: Path, index: int,
) -> tuple[np.ndarray, int]:  # fmt: skip
    from PIL import Image, ImageOps

    file, (height, width, depth) = files[index], shape
    picture = _decoded(file, channels)
    if resize and picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    if picture.size != (width, height):
        raise ValueError(
            f"{file}: all pictures must have one size; it is {picture.height} × {picture.width}, and {reference} is "
            f"{height} × {width} (height × width). Give a size to bring them all to."
        )
    pixels = np.asarray(picture).reshape(height, width, -1)
    if pixels.shape[2] != depth:
        kinds = {1: "grey", 3: "in colour"}
        raise ValueError(
            f"{file}: all pictures must be of one kind; it is {kinds[pixels.shape[2]]}, and {reference} is {kinds[depth]}. "
            "Give channels, 1 or 3, to bring them all to."
        )
    return pixels, int(labels[index])


def _decoded(file: str, channels: int | None) -> Any:
    """A Pillow image of mode L or RGB, the right way up."""
    from PIL import Image, ImageOps

    try:
        with open(file, "rb") as head:
            start = head.read(DEPTH_OF_PNG + 1)
        with open_bounded(file) as content, Image.open(content, formats=FORMATS) as opened:
            if opened.width * opened.height > max(MOST_PIXELS * os.path.getsize(file), ALWAYS):
                raise ValueError(
                    f"it promises {opened.height} × {opened.width} pixels, more than such a file can hold."
                )
            picture = ImageOps.exif_transpose(opened)  # reads the pixels too
            picture.load()
    except Exception as broken:  # whatever Pillow's decoders raise, SyntaxError among it
        raise ValueError(f"{file} cannot be read as a picture; it may be damaged: {broken}") from broken
    deep = start.startswith(b"\x89PNG") and start[DEPTH_OF_PNG] == 16  # of such colours Pillow drops the low bytes
    if deep or picture.mode not in GREY | COLOUR:
        found = "it has 16" if deep else f"its mode, in Pillow's words, is {picture.mode}"
        raise ValueError(f"{file}: pictures must have 8 bits a channel, grey or RGB; {found}.")
    grey = picture.mode in GREY
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError(f"{file}: pictures must be opaque, and it has transparent pixels; give it a background.")
    picture = picture.convert("L" if grey else "RGB")
    return picture if channels is None else picture.convert({1: "L", 3: "RGB"}[channels])
