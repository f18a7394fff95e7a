"""Where the numbers of a run go besides its own files: TensorBoard, or whatever writes four kinds of things."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console


class Writer(Protocol):
    """What a tracker writes. Each network of a run has one of its own, and so have the figures of the report.

    A run that is resumed writes all epochs of a network anew, from the first: a writer begins with nothing.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, such as ``"train/loss"``, after `step` updates."""

    def hyper_parameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Once, after the last epoch: what the network was trained with, and what it measured."""

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Pictures by name, uint8 [height, width, 3]."""

    def close(self) -> None:
        """Everything is written."""


Track = Callable[[str, Path], Writer]
"""Makes a writer, from a name such as ``"seed-0/distilled"`` and the folder of what is written about it."""


class TensorBoard:
    """A `Writer` of TensorBoard's event files, in the folder ``tensorboard`` of each network; by tensorboardX.

    ``compare(…, track=[TensorBoard])``, then ``tensorboard --logdir RUN``. What an earlier one wrote there is deleted.

    Args:
      name: of what is tracked; TensorBoard shows the folder's.
      folder: of the network.

    Raises:
      ModuleNotFoundError: if tensorboardX is missing, which the extra ``runs`` brings.
    """

    def __init__(self, name: str, folder: Path):
        from tensorboardX import SummaryWriter

        del name
        self._folder = folder / "tensorboard"
        for old in sorted(self._folder.rglob("events.out.tfevents.*")):
            old.unlink()
        self._writer = SummaryWriter(str(self._folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name.replace(" ", "_"), value, step)
        self._writer.flush()

    def hyper_parameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        plain = {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}
        self._writer.add_hparams(plain, dict(results), name="hparams")

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Tracked:
    """Several writers as one, of which none can stop the training: one that fails is named, and left out from there on."""

    def __init__(self, tracks: Sequence[Track], name: str, folder: Path, console: "Console"):
        self._console = console
        self._writers: dict[str, Writer] = {}  # by what a message calls them, each another
        names = [getattr(track, "__name__", type(track).__name__) for track in tracks]
        for place, (track, called) in enumerate(zip(tracks, names, strict=True)):
            if names.count(called) > 1:  # as of two lambdas
                called = f"{called} (number {place + 1} of track)"
            self._try(called, partial(self._begin, track, called, name, folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._all(lambda writer: writer.scalars(values, step))

    def hyper_parameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        self._all(lambda writer: writer.hyper_parameters(settings, results))

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        self._all(lambda writer: writer.images(pictures, step))

    def close(self) -> None:
        self._all(lambda writer: writer.close())

    def _begin(self, track: Track, called: str, name: str, folder: Path) -> None:
        self._writers[called] = track(name, folder)

    def _all(self, call: Callable[[Writer], None]) -> None:
        for name, writer in tuple(self._writers.items()):
            self._try(name, partial(call, writer))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of a service that may be away, a disk that may be full, a class of the user's own
            self._writers.pop(name, None)
            said = f"The tracker {name} has failed and is left out from here on: {type(error).__name__}: {error}"
            self._console.print(said, soft_wrap=True, markup=False, highlight=False)


def scalars_of(record: Mapping[str, Any], numbers: Mapping[str, float], examples: int) -> dict[str, float]:
    """One epoch's record as flat names: means of the training and of the test data, weights, T, and the speed."""
    found = {f"{part}/{name}": value for part in ("train", "test") for name, value in record[part].items()}
    # Of what a schedule moves the means have the epoch's own.
    flat = {f"train/{name.replace(' ', '_')}": value for name, value in numbers.items()}
    found = flat | found
    found |= {"examples_per_second": examples / max(record["seconds"], 1e-9)}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def pictures_in(folder: Path) -> dict[str, np.ndarray]:
    """The PNG files of a folder as arrays, on a white page, by name."""
    files = sorted(folder.glob("*.png"))
    if not files:
        return {}
    from matplotlib.image import imread

    found = {}
    for file in files:
        drawn = imread(file, format="png")
        shown = drawn[..., :3] if drawn.shape[-1] == 3 else drawn[..., :3] * drawn[..., 3:] + 1 - drawn[..., 3:]
        found[file.stem] = np.round(255 * shown).astype(np.uint8)
    return found
