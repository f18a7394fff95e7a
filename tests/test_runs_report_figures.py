"""Single figures of a report, of data made for them: what they count, what their colours mean, what they leave out."""

import base64
import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdjax import Weights, cross_entropy, weighted_sum
from kdjax._files import write_json
from kdjax.data import Dataset
from kdjax.runs import Recipe, write_report
from kdjax.runs.report import _examples, _kept, _maps, _style, _write
from kdjax.runs.report._collected import Network, collect

NAMES = ("teacher", "alone", "distilled")
GREY = (128, 128, 128)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("classes", [17, 120])
def test_labels_of_any_integers_are_counted_as_their_own_class(dtype, classes):
    """A cell's number is beyond 255 from 17 classes on, and so is what labels of 8 bits can hold."""
    labels = np.arange(classes).astype(dtype)
    counts = _maps.confusion(labels, np.arange(classes).astype(np.int32), classes)
    np.testing.assert_array_equal(counts, np.eye(classes, classes + 1))


@pytest.mark.parametrize("positions", [(), (4, 4)])
def test_labels_are_kept_as_wide_numbers_with_their_values(positions):
    def spread(params, model_state, inputs, *, train, rng=None):
        return jnp.broadcast_to(params, (len(inputs), *positions, 20)), model_state

    labels = np.resize(np.arange(20), (24, *positions)).astype(np.uint8)
    pictures = np.zeros((24, 4, 4, 1), np.uint8)
    networks = {name: Network(spread, Weights(np.zeros(20, np.float32), {})) for name in NAMES}
    objective = weighted_sum(labels=(1.0, cross_entropy))
    recipe = Recipe((lambda rng, inputs: None, spread), objective, lambda updates: None, epochs=1, batch_size=8)
    part = {"inputs": pictures, "labels": labels}
    _, arrays = collect(networks, [part, part], None, recipe, ignore_label=None)
    kept = [name for name in arrays if "labels" in name]
    assert kept == (["labels"] if positions else ["labels", "train_labels"])
    for name in kept:
        assert arrays[name].dtype == np.int64
        np.testing.assert_array_equal(arrays[name], labels[: len(arrays[name])])


def test_class_names_that_were_no_strings_are_words_in_a_report(tmp_path):
    def flat(params, model_state, inputs, *, train, rng=None):
        return inputs.reshape(len(inputs), -1) @ params, model_state

    pictures = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
    networks = {name: Network(flat, Weights(np.ones((16, 3), np.float32), {})) for name in NAMES}
    objective = weighted_sum(labels=(1.0, cross_entropy))
    recipe = Recipe((lambda rng, inputs: None, flat), objective, lambda updates: None, epochs=1, batch_size=8)
    part = Dataset(pictures, np.resize(np.arange(3, dtype=np.int32), 24), ("5", "7", "9"), "mine", "test")
    about, arrays = collect(networks, [part, part], None, recipe, ignore_label=None)
    assert about["class_names"] == ["5", "7", "9"]
    results = {"experiment": "mine", "parameters": dict.fromkeys(NAMES, 48)}
    write_json(
        tmp_path / "results.json", results | {"seeds": [{name: {"accuracy": 0.5, "seconds": 1.0} for name in NAMES}]}
    )
    _kept.save(tmp_path, about | {"class_names": [5, 7, 9]}, arrays)  # as runs of before did
    assert "Labels in order: 5, 7, 9, 5, 7" in write_report(tmp_path).read_text()


def mapped(labels, classes, *, said=None, counted=None):
    """The drawn label maps of one picture, and by column its pixels in the page and in the figure, as bytes."""
    arrays = {"pictures": np.linspace(0, 255, labels.size).reshape(1, *labels.shape, 1).astype(np.uint8)}
    arrays["labels"] = labels[None]
    arrays["counted"] = (np.ones(labels.shape, bool) if counted is None else counted)[None]
    arrays |= {f"first_{name}": np.asarray(labels if said is None else said, np.int32)[None] for name in NAMES}
    with _style.styled():
        drawn = _examples.label_maps({"shown": [0], "classes": classes}, arrays)
    pages = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        for data in re.findall(r'src="data:image/png;base64,([^"]*)"', drawn.html)
    ]
    figures = [np.round(255 * np.asarray(axes.images[0].get_array())).astype(int) for axes in drawn.figure.axes]
    columns = ("picture", "label", *NAMES)
    return drawn, dict(zip(columns, pages, strict=True)), dict(zip(columns, figures, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 21, 22, 100])
def test_a_colour_of_a_label_map_is_a_class(classes, dtype):
    every = np.arange(200).reshape(10, 20) % classes
    drawn, page, figure = mapped(every.astype(dtype), classes)
    colours = {number: {tuple(one) for one in page["label"][every == number]} for number in range(classes)}
    assert all(len(own) == 1 for own in colours.values())
    assert len(set().union(*colours.values())) == classes
    assert colours[0] == {(0, 0, 0)}
    assert GREY not in set().union(*colours.values())
    for name in ("label", *NAMES):
        np.testing.assert_array_equal(page[name], page["label"])
        np.testing.assert_allclose(figure[name], page["label"], atol=1)
    assert "a colour is a class" in drawn.title


def test_where_classes_are_too_many_for_a_colour_each_the_words_say_so():
    drawn, page, _ = mapped(np.arange(200).reshape(10, 20), 200)
    assert "of so many classes some share a colour" in drawn.title
    assert "a colour is a class" not in drawn.title
    np.testing.assert_array_equal(page["alone"], page["label"])


def test_a_class_has_one_colour_whatever_else_is_in_the_map():
    """Each map was stretched by its own darkest and brightest."""
    whole = np.arange(16).reshape(4, 4) % 5
    _, page, _ = mapped(whole, 5)
    for number in range(1, 5):
        _, own, figure = mapped(whole, 5, said=np.full((4, 4), number))
        (colour,) = {tuple(one) for one in own["alone"].reshape(-1, 3)}
        assert colour == tuple(page["label"][whole == number][0])
        np.testing.assert_allclose(figure["alone"][0, 0], colour, atol=1)
    # The picture beside them is still drawn from its darkest to its brightest.
    assert (page["picture"].min(), page["picture"].max()) == (0, 255)


@pytest.mark.parametrize("ignored", [-100, 255, 2])
def test_pixels_that_do_not_count_are_grey_and_so_is_no_first_choice(ignored):
    labels, said = np.arange(16).reshape(4, 4) % 3, np.arange(16).reshape(4, 4) % 3
    counted = np.ones((4, 4), bool)
    counted[1], said[3] = False, -1
    drawn, page, _ = mapped(np.where(counted, labels, ignored), 3, said=said, counted=counted)
    _, plain, _ = mapped(labels, 3)
    grey = {name: (page[name] == GREY).all(-1) for name in ("label", *NAMES)}
    np.testing.assert_array_equal(grey["label"], ~counted)
    for name in NAMES:
        np.testing.assert_array_equal(grey[name], said == -1)
        np.testing.assert_array_equal(page[name][said >= 0], plain["label"][said >= 0])
    np.testing.assert_array_equal(page["label"][counted], plain["label"][counted])
    assert "grey" in drawn.title


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ({}, [1, 2, 4, 10]),
        ({"soft": 4.0}, [1, 2, 4, 10]),
        ({"soft": 20.0}, [1, 2, 4, 20]),
        ({"soft": 4.0, "other": 20.0}, [1, 2, 4, 20]),
        ({"soft": 20.0, "other": 30.0, "third": 3.0}, [1, 3, 20, 30]),
        ({"one": 5.0, "two": 6.0, "three": 7.0, "four": 8.0, "five": 9.0}, [5, 6, 7, 8]),
        ({"soft": 20.0, "other": 20.0}, [1, 2, 4, 20]),
    ],
)
def test_soft_targets_are_drawn_at_the_run_s_own_temperatures(own, shown):
    numbers = {f"{name} temperature": [value, 2 * value] for name, value in own.items()} | {"hard power": [7.0, 7.0]}
    assert _write.temperatures_of(numbers) == shown


@pytest.mark.parametrize(("label", "called"), [(-1, "none"), (2, "owl"), (3, "none")])
def test_a_label_that_is_none_of_the_classes_has_none_of_their_names(label, called):
    names = ["cat", "dog", "owl"]
    logits = {name: np.float32([[0.0, 1.0, 2.0]]) for name in NAMES}
    arrays = {"pictures": np.zeros((1, 4, 4, 1), np.uint8), "labels": np.array([label])}
    arrays |= {f"logits_{name}": own for name, own in logits.items()}
    with _style.styled():
        drawn = _examples.predictions({"shown": [0]}, arrays, names, [0], name="test-pictures")
        soft = _maps.soft_targets({name: own[0] for name, own in logits.items()}, label, names, [1.0, 4.0])
    assert f"<span>label {called}</span>" in drawn.html
    assert f"label {called}, seed 0" in soft.title
    assert drawn.html.count("✓") == (3 if label == 2 else 0)
