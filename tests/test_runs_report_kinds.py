"""What a report shows of tokens, pixels, numbers and others, and what it leaves out; by networks that learn nothing."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import Outputs, Shared, Weights, cross_entropy, on_logits, weighted_sum
from kdjax._files import write_json
from kdjax.data import make_dataset
from kdjax.losses import soft_target_kl
from kdjax.objectives.schedules import linear
from kdjax.runs import Recipe, write_report
from kdjax.runs.report import _curves, _examples, _maps, _write
from kdjax.runs.report._collected import Network, collect
from kdjax.runs.report._kept import load, save

NAMES = ("teacher", "alone", "distilled")
RNG = np.random.default_rng(0)
BOTH = weighted_sum(
    labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl, temperature=linear(4.0, 2.0, steps=6)))
)
PICTURES = RNG.integers(0, 256, (20, 6, 5, 1), np.uint8)


def spread(params, model_state, inputs, *, train, rng=None):
    """Logits at each position of pictures [batch, height, width, 1], and two maps."""
    maps = inputs.astype(jnp.float32) / 255 * params[None, None, None]
    return Outputs(jnp.sin(9 * maps), {"stage1": maps, "stage10": maps**2, "head": Shared(params)}), model_state


def embedded(params, model_state, inputs, *, train, rng=None):
    """Logits of tokens [batch, time]."""
    return jnp.take(params, inputs, axis=0), model_state


def summed(params, model_state, inputs, *, train, rng=None):
    """Of vectors [batch, dim] what a matrix makes of them."""
    return inputs @ params, model_state


def written(folder, apply, size, inputs, labels, *, measure="accuracy", **more):
    """The report of a run of three networks with random params of this size, as HTML, and what was kept for it."""
    part = {"inputs": inputs, "labels": labels}
    networks = {name: Network(apply, Weights(RNG.normal(size=size).astype(np.float32), {})) for name in NAMES}
    recipe = Recipe((lambda rng, inputs: None, apply), BOTH, lambda updates: None, epochs=3, batch_size=10)
    save(folder, *collect(networks, [part, part | more], None, recipe, ignore_label=-100))
    seeds = [{name: {measure: 0.25 + 0.125 * seed, "seconds": 1.0} for name in NAMES} for seed in range(2)]
    percent = {"name": measure, "percent": measure == "accuracy", "lower_is_better": measure != "accuracy"}
    write_json(
        folder / "results.json",
        {"experiment": measure, "parameters": dict.fromkeys(NAMES, 7), "seeds": seeds, "measure": percent},
    )
    return write_report(folder).read_text(), *load(folder)


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_of_pixels_label_maps_stand_beside_each_other(tmp_path):
    labels = RNG.integers(0, 4, (20, 6, 5))
    labels[0, 0] = -100
    mask = np.ones((20, 6, 5), bool)
    mask[2:4] = False
    page, kept, arrays = written(tmp_path, spread, 4, PICTURES, labels, mask=mask)
    assert kept["kind"] == "classes"
    assert arrays["counted"].sum() == 18 * 6 * 5 - 5
    assert kept["calibration"]["teacher"]["n"] == 535
    right = (arrays["first_alone"] == labels)[arrays["counted"]].mean()
    assert f"the student alone is wrong on {535 - round(535 * right)} of 535" in page.lower()
    assert 'id="label-maps"' in page
    assert 'id="attention"' in page
    assert "Soft targets" not in headings(page)
    assert "first-pictures" not in page
    assert kept["shown"] == [0, 1, *range(4, 11)]
    np.testing.assert_array_equal(arrays["pictures"], PICTURES[kept["shown"]])
    assert all(f'alt="{what} of test picture {shown}"' in page for what in ("label", "teacher") for shown in (0, 1, 4))
    # In the order in which the network makes them, and what belongs to no example is no layer.
    assert kept["layers"]["maps"]["teacher"] == ["stage1", "stage10"]
    assert kept["layers"]["cka"]["alone"]["teacher"] == ["stage1", "stage10", "logits"]


def test_of_tokens_there_is_the_entropy_by_position_and_no_picture(tmp_path):
    tokens = RNG.integers(0, 7, (30, 5))
    labels = np.where(RNG.random((30, 5)) < 0.5, tokens, -100)
    page, _, arrays = written(tmp_path, embedded, (7, 7), tokens, labels)
    assert 'id="entropy"' in page
    assert f"n = {int((labels >= 0).sum()):,} tokens" in page
    assert "position" in page
    assert "none</td>" in page
    assert "Where the numbers come from" not in page
    assert not {"Attention", "Soft targets", "Predictions", "Similarity of layers"} & set(headings(page))
    logits = arrays["entropy_teacher"]
    assert ((logits >= 0) & (logits <= np.log2(7) + 1e-3)).all()


def test_entropies_are_added_up_as_exactly_as_they_are_many():
    """They are kept in float16, which ends at 65,504 and has no odd numbers beyond 2,048."""
    kept = {
        f"entropy_{name}": np.full((9_000, 3), bits, np.float16) for name, bits in zip(NAMES, (0.1, 4, 9), strict=True)
    }
    drawn = _examples.entropies({"counted": np.ones((9_000, 3), bool), **kept})
    assert (
        drawn.finding == "Over all positions: teacher 0.10 bits, student alone 4.00 bits, student distilled 9.00 bits."
    )
    np.testing.assert_allclose(drawn.figure.axes[0].lines[0].get_ydata(), 0.1, rtol=1e-3)


def test_of_numbers_predictions_stand_against_labels(tmp_path):
    inputs = RNG.normal(size=(40, 3)).astype(np.float32)
    page, kept, arrays = written(tmp_path, summed, (3, 1), inputs, inputs.sum(-1), measure="squared error")
    assert kept["kind"] == "number"
    error = float(np.sqrt(np.mean((arrays["predicted_alone"] - inputs.sum(-1)) ** 2)))
    assert f"The root mean squared error is {error:.4g}" in page
    assert "Predictions" in headings(page)
    assert not {"Calibration", "Examples", "Mistakes, and where student and teacher differ"} & set(headings(page))


def test_masked_examples_change_nothing_of_a_regression_and_of_the_layers(tmp_path):
    inputs = RNG.normal(size=(40, 3)).astype(np.float32)
    labels, mask, weights = inputs.sum(-1), np.arange(40) % 2, RNG.normal(size=(3, 3, 1)).astype(np.float32)

    def layered(params, model_state, inputs, *, train, rng=None):
        return Outputs(inputs @ params, {"parts": inputs * params[None, :, 0]}), model_state

    networks = {name: Network(layered, Weights(own, {})) for name, own in zip(NAMES, weights, strict=True)}
    recipe = Recipe((lambda rng, inputs: None, layered), BOTH, lambda updates: None, epochs=1, batch_size=10)
    found = []
    for rows, more in ((slice(None), {"mask": mask}), (mask > 0, {})):
        part = {"inputs": inputs[rows], "labels": np.where(mask, labels, 1000.0)[rows].astype(np.float32), **more}
        kept, arrays = collect(networks, [part, part], None, recipe, ignore_label=None)
        said = [(drawn.title, drawn.finding) for drawn in _examples.predicted(arrays)]
        found.append((said, kept["layers"]["examples"], kept["layers"]["cka"]))
    assert found[0] == found[1]
    assert found[0][1] == 20


def test_of_a_regression_without_one_example_that_counts_no_predictions_are_drawn(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    _, kept, _ = written(tmp_path, summed, (3, 1), inputs, inputs.sum(-1), measure="error", labelled=np.zeros(20, bool))
    assert kept["kind"] == "other"


def test_a_network_that_gives_nan_is_wrong_agrees_with_none_and_has_no_calibration(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    inputs[:4] = np.nan
    page, kept, arrays = written(tmp_path, summed, (3, 3), inputs, np.arange(20) % 3)
    right = (arrays["first_alone"] == np.arange(20) % 3).sum()
    assert (arrays["first_alone"][:4] == -1).all()
    assert f"the student alone is wrong on {20 - right} of 20" in page.lower()
    same = (arrays["first_teacher"] == arrays["first_distilled"])[4:].sum()
    assert f"say the same of {same};" in page
    assert kept["calibration"]["alone"]["calibration"] is None
    assert 'id="reliability"' not in page
    assert "Brier score" not in page


def test_of_a_network_without_calibration_the_others_are_drawn():
    own = {"calibration": 0.1, "n": 20.0, "reliability": [[0.5, 0.4, 0.5], [0.9, 1.0, 0.5]]}
    (drawn,) = _maps.reliability(dict.fromkeys(NAMES, own) | {"teacher": own | {"calibration": None}})
    assert drawn.finding.startswith("On average the student alone gives its first choice 70.0 % and is right in 70.0 %")
    assert "teacher" not in drawn.finding
    assert "n = 20" in drawn.title


@pytest.mark.parametrize("pictured", [False, True])
def test_logits_beyond_the_classes_are_wrong_and_named_by_their_number(tmp_path, pictured):
    """They were counted as the next class's label, and right; of pictures there was no report."""

    def flat(params, model_state, inputs, *, train, rng=None):
        return inputs.reshape(len(inputs), -1).astype(jnp.float32) @ params, model_state

    labels, names = np.arange(20) % 3, ("cat", "dog", "owl")
    inputs = PICTURES if pictured else RNG.normal(size=(20, 30)).astype(np.float32)
    part = make_dataset(inputs, labels, class_names=names, name="own", split="test")
    sizes = {"teacher": 6, "alone": 3, "distilled": 5}
    networks = {name: Network(flat, Weights(RNG.normal(size=(30, sizes[name])), {})) for name in NAMES}
    recipe = Recipe((lambda rng, inputs: None, flat), BOTH, lambda updates: None, epochs=3, batch_size=10)
    about, arrays = collect(networks, [part, part], lambda x: x.astype(jnp.float32), recipe, ignore_label=None)
    assert arrays["first_teacher"].max() > 2
    save(tmp_path, about, arrays)
    seeds = [{name: {"accuracy": 0.5, "seconds": 1.0} for name in NAMES}]
    write_json(tmp_path / "results.json", {"experiment": "own", "parameters": dict.fromkeys(NAMES, 7), "seeds": seeds})
    page = write_report(tmp_path).read_text()
    for name, title in _maps.TITLES.items():
        assert f"The {title} is wrong on {(arrays[f'first_{name}'] != labels).sum()} of 20" in page
        counts = _maps.confusion(labels, arrays[f"first_{name}"], 3)
        assert counts.sum(axis=1).tolist() == [7, 7, 6]
    assert ("Labels in order: cat, dog, owl" in page) == pictured


def test_pictures_without_a_labelled_pixel_are_not_shown(tmp_path):
    labels = np.where(np.arange(20)[:, None, None] < 3, -100, RNG.integers(0, 3, (20, 6, 5)))
    page, kept, _ = written(tmp_path, spread, (3,), PICTURES, labels)
    assert kept["first"][:3] == [3, 4, 5]
    assert "nan %" not in page


def test_a_first_choice_that_is_none_has_a_column_of_its_own_and_is_no_ones_label():
    labels = np.array([0, 1, 1, 1, -1])
    counts = _maps.confusion(labels, np.array([0, -1, -1, 0, -1]), 2)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [1, 0, 2]])
    arrays = {"counted": np.ones(5, bool), "labels": labels}
    arrays |= {f"first_{name}": np.array([0, -1, -1, 0, -1]) for name in NAMES}
    findings = {drawn.finding for drawn in _maps.confusions(arrays, ["cat", "dog"])}
    mistake = "most often taking label dog for none (2 of 3)"
    assert findings == {f"The {title} is wrong on 3 of 4, {mistake}." for title in _maps.TITLES.values()}
    assert "say the same of 2; both are right on 1," in _write.both_right(arrays)


def test_of_several_labels_at_once_there_is_what_fits_any_outputs(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    page, kept, _ = written(tmp_path, summed, (3, 4), inputs, (RNG.random((20, 4)) < 0.5).astype(np.float32))
    assert kept["kind"] == "other"
    assert "latency, ms" in page
    assert not {"Calibration", "Examples", "Predictions", "Soft targets"} & set(headings(page))


def test_of_many_classes_no_matrix_is_drawn_and_soft_targets_are_of_the_first(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    page, _, _ = written(tmp_path, summed, (3, 40), inputs, RNG.integers(0, 40, 20))
    assert "confusion-" not in page
    assert "the teacher&#x27;s first 12 of 40 classes" in page


def test_pictures_without_a_label_are_neither_shown_nor_counted(tmp_path):
    def flat(params, model_state, inputs, *, train, rng=None):
        return inputs.reshape(len(inputs), -1).astype(jnp.float32) @ params, model_state

    labels = np.where(np.arange(20) < 3, -100, np.arange(20) % 4)
    page, kept, arrays = written(tmp_path, flat, (30, 4), PICTURES, labels)
    assert kept["first"] == [*range(3, 12)]
    assert not {0, 1, 2} & {*kept["shown"]}
    np.testing.assert_array_equal(arrays["pictures"], PICTURES[kept["shown"]])
    assert kept["calibration"]["alone"]["n"] == 17
    assert "n = 17" in page
    # Of the training pictures too: what stands for no label is no label.
    assert "Labels in order: 3, 0, 1, 2, 3, 0, 1, 2, 3." in page
    np.testing.assert_array_equal(arrays["train_pictures"], PICTURES[3:12])
    said = arrays["logits_distilled"].argmax(-1)
    np.testing.assert_array_equal(said, arrays["first_distilled"][kept["shown"]])
    differ = np.flatnonzero(arrays["first_teacher"] != arrays["first_distilled"])
    assert kept["differing"] == [index for index in differ.tolist() if index > 2][:6]


def test_a_scheduled_temperature_is_kept_by_epoch(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    _, kept, _ = written(tmp_path, summed, (3, 3), inputs, RNG.integers(0, 3, 20))
    # Two updates an epoch; that of the last one, of six steps from 4 to 2.
    np.testing.assert_allclose(
        kept["numbers"]["soft temperature"], [4 - 2 / 6, 4 - 2 * 3 / 6, 4 - 2 * 5 / 6], rtol=1e-6
    )


def test_a_learnt_temperature_is_drawn_and_what_is_known_twice_once():
    lines = [{"train": {"soft": 1.0, "soft_weight": 0.5, "soft_temperature": one}} for one in (4.0, 5.0, 6.0)]
    *_, drawn = _curves.terms({"distilled": [lines, lines]}, {"hard power": [2.0] * 3})
    assert [line.get_label() for line in drawn.figure.axes[0].lines] == ["hard power", "soft temperature"]
    assert "hard power stays at 2, soft temperature goes from 4 to 6" in drawn.finding
    *_, again = _curves.terms({"distilled": [lines]}, {"soft temperature": [4.0, 5.0, 6.0]})
    assert [line.get_label() for line in again.figure.axes[0].lines] == ["soft temperature"]


def test_what_was_kept_is_bounded(tmp_path):
    inputs = np.zeros((12_000, 2), np.float32)
    written(tmp_path, summed, (2, 3), inputs, np.arange(12_000) % 3)
    kept, arrays = load(tmp_path)
    assert (kept["examples"], kept["read"]) == (12_000, 10_000)
    assert len(arrays["labels"]) == 10_000


def test_a_run_of_before_has_a_report_without_what_was_not_measured(tmp_path):
    inputs = RNG.normal(size=(20, 3)).astype(np.float32)
    written(tmp_path, summed, (3, 3), inputs, RNG.integers(0, 3, 20))
    (tmp_path / "report-data.npz").write_bytes(b"not a file of NumPy's")
    page = write_report(tmp_path).read_text()
    assert "latency" not in page
    assert "31.25 " in page
    write_json(tmp_path / "results.json", json.loads((tmp_path / "results.json").read_text()) | {"seeds": []})
    with pytest.raises(ValueError, match="run must be the folder of a comparison"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "none")
