"""The experiments on tokens, pixels and several labels, as short as they go: they run, go on, and compare what fits them."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _canvases, _settings, many_labels, pixels, tokens, transformers
from kdjax.data import load

SHORT = {"seeds": 2, "teacher_epochs": 1, "epochs": 1}


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_tokens_are_compared_by_perplexity_and_one_teacher_serves_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tokens, "DIVERGENCES", dict([*tokens.DIVERGENCES.items()][:2]))
    settings = tokens.Tokens(**SHORT, windows=32, time=8, batch_size=16, out=tmp_path / "run")
    tokens.main(settings)
    first, second = (results(tmp_path / "run" / name) for name in tokens.DIVERGENCES)
    assert first["measure"]["name"] == "perplexity"
    for one in (first, second):
        for seed in one["seeds"]:
            assert seed["distilled"]["bits per byte"] == pytest.approx(
                np.log2(seed["distilled"]["perplexity"]), rel=1e-5
            )
    assert [seed["alone"]["perplexity"] for seed in first["seeds"]] == pytest.approx(
        [seed["alone"]["perplexity"] for seed in second["seeds"]]
    )
    before = capsys.readouterr().out
    tokens.main(replace(settings, resume=True))
    for again, seed in zip(results(tmp_path / "run" / "forward-kl")["seeds"], first["seeds"], strict=True):
        for network in ("teacher", "alone", "distilled"):
            assert {**again[network], "seconds": 0} == {**seed[network], "seconds": 0}
    assert "perplexity transfer rate" in before


def test_the_text_is_cut_so_that_each_byte_has_the_next_as_its_label():
    train, test = tokens.text(tokens.Tokens(windows=8, time=16))
    np.testing.assert_array_equal(train["inputs"][:, 1:], train["labels"][:, :-1])
    assert train["inputs"].shape == (8, 16)
    assert test["inputs"].shape == (2, 16)
    assert train["inputs"].max() < 256
    for name, value in (("data", "mnist"), ("data_dir", Path("x")), ("size", 8)):
        with pytest.raises(ValueError, match=f"{name} must be left out: the text is Python's standard library"):
            tokens.Tokens(**{name: value})


@pytest.mark.slow
def test_pixels_are_compared_by_mean_iou(tmp_path, monkeypatch):
    settings = pixels.Pixels(**SHORT | {"seeds": 1}, examples=64, out=tmp_path / "run")
    monkeypatch.setattr(pixels, "run", lambda *given, **more: ran.append((given, more)) or tmp_path)
    ran: list = []
    pixels.main(settings)
    assert [more["part"] for _, more in ran] == ["soft", "channel-wise", "both"]
    monkeypatch.undo()
    (name, own, data), recipes = ran[1]
    pixels.run(name, replace(own, teacher=None), data, **recipes)
    found = results(tmp_path / "run" / "channel-wise")
    assert found["measure"] == {"name": "mean IoU", "percent": True, "lower_is_better": False}
    assert 0 <= found["seeds"][0]["distilled"]["mean IoU"] <= 1


def test_a_resumption_begins_the_parts_that_the_stop_came_before(tmp_path, monkeypatch, capsys):
    asked = []

    def compare(out, **more):
        asked.append((out.name, more["resume"], more["title"]))
        out.mkdir(parents=True, exist_ok=True)
        if out.name == "channel-wise" and not more["resume"] and len(asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_settings, "compare", compare)
    settings = pixels.Pixels(**SHORT, examples=16, out=tmp_path / "run")
    with pytest.raises(SystemExit):
        pixels.main(settings)
    assert f"--resume --out {tmp_path / 'run'} goes on" in capsys.readouterr().out
    pixels.main(replace(settings, resume=True))
    assert asked[2:] == [
        ("soft", True, "pixels-soft"),
        ("channel-wise", True, "pixels-channel-wise"),
        ("both", False, "pixels-both"),
    ]


def test_several_labels_are_compared_by_label_accuracy(tmp_path):
    many_labels.main(many_labels.ManyLabels(**SHORT, examples=64, out=tmp_path / "run"))
    found = results(tmp_path / "run")
    assert found["measure"]["name"] == "label accuracy"
    assert all(0.5 < seed["alone"]["label accuracy"] <= 1 for seed in found["seeds"])


@pytest.mark.slow
def test_transformers_and_cnns_teach_each_other(tmp_path):
    settings = transformers.Transformers(
        **SHORT | {"seeds": 1}, data="digits", patch=4, examples=128, out=tmp_path / "run"
    )
    transformers.main(settings)
    for name in ("transformer-from-cnn", "cnn-from-transformer"):
        found = results(tmp_path / "run" / name)["seeds"][0]
        assert 0 <= found["distilled"]["accuracy"] <= 1
        assert 0 <= found["distilled"]["agreement"] <= 1


def test_the_distillation_token_learns_and_joins_in_inference():
    network = transformers.VisionTransformer(10, 8, layers=1, heads=2, patch=4)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    variables = network.init(jax.random.key(0), images)
    inferring, training = (network.apply(variables, images, train=train) for train in (False, True))
    mean = (training.logits + training.features["distilled"]) / 2
    np.testing.assert_allclose(inferring.logits, mean, rtol=1e-5, atol=1e-6)


def test_canvases_hold_what_they_say():
    with pytest.raises(ValueError, match="data must be pictures of 7 × 7 at most; got 8 × 8"):
        _canvases.canvases(load("digits", "train"), 20, 15, 3, seed=0)
    made = _canvases.canvases(load("digits", "train"), 20, 32, 3, seed=0)
    again = _canvases.canvases(load("digits", "train"), 20, 32, 3, seed=0)
    for name, array in made.items():
        np.testing.assert_array_equal(array, again[name])
    assert made["inputs"].shape == (20, 32, 32, 1)
    assert 0 <= made["inputs"].min() <= made["inputs"].max() <= 1
    for classes, present, inputs in zip(made["classes"], made["present"], made["inputs"], strict=True):
        assert 1 <= present.sum() <= 3
        seen = {*np.unique(classes)} - {0}
        assert seen <= {1 + number for number in np.flatnonzero(present)}
        assert (inputs[classes > 0] > 0).all()
