"""What trackers are told: TensorBoard's files are read back, and a tracker that fails stops nothing."""

import io
import json
import struct
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from comparisons import lines, recipe, run
from PIL import Image
from rich.console import Console
from tensorboardX.proto import event_pb2

from kdjax import cross_entropy, on_logits, schedules, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.runs.tracking import TensorBoard, Tracked, pictures_in

STEPS = 9  # an epoch
MOVING = weighted_sum(
    labels=(0.3, cross_entropy),
    soft=(
        schedules.linear(0.1, 0.7, steps=20),
        on_logits(soft_target_kl, temperature=schedules.linear(8.0, 2.0, steps=20)),
    ),
)


def events(folder):
    """All values of the event files of a folder: (tag, step) to the protocol buffer's value."""
    found = []
    for file in sorted(Path(folder).rglob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [((value.tag, event.step), value) for value in event.summary.value]
            at += 16 + length
    return found


class Broken:
    """A service that answers once."""

    def __init__(self, name, folder):
        self.told = 0

    def scalars(self, values, step):
        self.told += 1
        if self.told > 1:
            raise ConnectionError("the service [is] away")

    def hyper_parameters(self, settings, results):
        raise AssertionError("it was to be left out")

    images = close = hyper_parameters


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("runs") / "tracked", io.StringIO()
    run(out, said, distilled=recipe("distilled", MOVING), track=[TensorBoard, Broken])
    return out, said.getvalue()


def test_tensorboard_has_every_epoch_with_its_weights_and_temperature(finished):
    out, _ = finished
    found = {key: value.simple_value for key, value in events(out / "seed-0" / "distilled")}
    for record in lines(out, "distilled"):
        step = STEPS * record["epoch"]
        for part in ("train", "test"):
            for name, value in record[part].items():
                assert found[f"{part}/{name}", step] == pytest.approx(value, rel=1e-6)
        # Means over the epoch's updates.
        updates = np.arange(step - STEPS, step)
        assert found["train/soft_temperature", step] == pytest.approx(np.mean(8.0 - 6.0 * updates / 20), rel=1e-5)
        assert found["train/soft_weight", step] == pytest.approx(np.mean(0.1 + 0.6 * updates / 20), rel=1e-5)
    assert {step for (name, step) in found if name == "train/loss"} == {STEPS, 2 * STEPS}


def test_tensorboard_has_the_settings_beside_what_they_led_to(finished):
    out, _ = finished
    values = events(out / "seed-0" / "alone")
    plugins = {key[0]: value.metadata.plugin_data.content for key, value in values}
    settings = plugins["_hparams_/session_start_info"]
    assert b"batch_size" in settings
    assert b"cross_entropy" in settings
    measured = [value.simple_value for key, value in values if key[0] == "last/accuracy"]
    assert measured == [pytest.approx(lines(out, "alone")[-1]["test"]["accuracy"])]


def test_a_tracker_that_fails_is_named_once_for_each_network_and_stops_nothing(finished):
    out, said = finished
    words = "The tracker Broken has failed and is left out from here on: ConnectionError: the service [is] away"
    assert said.count(words) == 3
    assert json.loads((out / "results.json").read_text())["seeds"][0]["distilled"]["accuracy"] > 0


@pytest.mark.parametrize("kind", ["lambda", "partial", "class"])
def test_trackers_of_one_name_are_all_told_and_closed(kind, tmp_path):
    told, text = [], io.StringIO()

    class Listed:
        def __init__(self, name, folder, *, number=2):
            self.number = number

        def scalars(self, values, step):
            told.append((self.number, "scalars"))
            if self.number == 1:
                raise ConnectionError("away")

        def close(self):
            told.append((self.number, "closed"))

    makers = {
        "lambda": [lambda name, folder, number=number: Listed(name, folder, number=number) for number in range(3)],
        "partial": [partial(Listed, number=number) for number in range(3)],
        "class": [Listed, Listed, Listed],
    }[kind]
    tracked = Tracked([*makers, TensorBoard], "seed-0/alone", tmp_path, Console(file=text, width=200))
    tracked.scalars({"loss": 1.0}, 1)
    tracked.close()
    of_all, left = ([0, 1, 2], [0, 2]) if kind != "class" else ([2, 2, 2], [2, 2, 2])
    assert told == [(number, "scalars") for number in of_all] + [(number, "closed") for number in left]
    assert events(tmp_path)[0][0] == ("loss", 1)
    called = {"lambda": "<lambda>", "partial": "partial", "class": "Listed"}[kind]
    said = f"The tracker {called} (number 2 of track) has failed and is left out from here on: ConnectionError: away\n"
    assert text.getvalue() == ("" if kind == "class" else said)


def test_a_resumed_run_writes_no_epoch_twice(tmp_path):
    out = tmp_path / "twice"
    run(out)
    # Begun without a tracker: all that was trained before is told too.
    for _ in range(2):
        run(out, resume=True, track=[TensorBoard])
        told = [key for key, _ in events(out / "seed-0" / "teacher")]
        assert [step for name, step in told if name == "test/accuracy"] == [STEPS, 2 * STEPS]


def test_pictures_are_read_back(tmp_path):
    seen = np.zeros((4, 6, 4), np.uint8)
    seen[..., 3] = 255
    seen[1, 2] = (200, 0, 0, 255)
    seen[0, 0] = (0, 0, 0, 0)  # transparent: the page is white
    Image.fromarray(seen).save(tmp_path / "curves.png")
    writer = TensorBoard("report", tmp_path)
    writer.images(pictures_in(tmp_path), 3)
    writer.close()
    (((tag, step), value),) = events(tmp_path)
    assert (tag, step) == ("curves", 3)
    again = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert again[1, 2].tolist() == [200, 0, 0]
    assert again[0, 0].tolist() == [255, 255, 255]


def test_without_tensorboardx_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    said = io.StringIO()
    run(tmp_path / "plain", said, track=[TensorBoard])
    assert "The tracker TensorBoard has failed" in said.getvalue()
    assert len(lines(tmp_path / "plain", "distilled")) == 2


def test_the_pages_writer_for_another_service(tmp_path, monkeypatch):
    """The page's own example, told what `compare` tells it; the service itself is a list."""
    page = (Path(__file__).parents[1] / "docs" / "reports.md").read_text()
    (code,) = (block.split("```")[0] for block in page.split("```py\n")[1:] if "class WeightsAndBiases" in block)
    told = []
    started = SimpleNamespace(
        log=lambda values, step: told.append((step, values)),
        config=SimpleNamespace(update=lambda values: told.append(("config", values))),
        summary=SimpleNamespace(update=lambda values: told.append(("summary", values))),
        finish=lambda: told.append(("finish", None)),
    )
    service = SimpleNamespace(init=lambda **settings: started, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", service)
    names = {}
    exec(compile(code, "reports.md", "exec"), names)
    run(tmp_path / "elsewhere", track=[names["WeightsAndBiases"]])
    assert sum(step == STEPS and "train/loss" in values for step, values in told) == 3
    assert [what for what, _ in told if isinstance(what, str)].count("finish") == 4
