"""Section 3 of Hinton et al.: every part gives its figures, resumes to the same bits, and no test digit chooses anything."""

import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from experiments import _hinton2015_ledger as ledgers
from experiments import _hinton2015_parts as parts
from experiments import hinton2015
from experiments._hinton2015_training import max_norm, trainer_of
from kdjax.batches import epoch_indices
from kdjax.data import load
from kdjax.training import weights_of

SHORT = hinton2015.Hinton2015(
    seeds=1, teacher_epochs=2, epochs=1, batch_size=32, teacher_width=12, student_width=8, curve_widths=(6,),
    temperatures=(1.0, 8.0), validation=80, alphas=(0.0, 0.5), lengths=(2,), search_seeds=1, max_norm=1.0,
    learning_rate=1e-2, teacher_learning_rate=1e-2, dropouts=(0.5, 0.2), input_dropouts=(0.2, 0.0),
    teacher_rates=(5e-3,),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """480 real digits of 8 × 8 to train on, and 120 to test on."""
    train, test = (load("digits", split) for split in ("train", "test"))
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    own, others = ({"x": one.inputs[:count], "y": one.labels[:count]} for one, count in ((train, 480), (test, 120)))
    np.savez(path, x_train=own["x"], y_train=own["y"], x_test=others["x"], y_test=others["y"])
    return f"npz:{path}"


def run(data, out, **changes):
    settings = replace(SHORT, data=data, out=out, **changes)
    hinton2015.main(settings)
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def figures(lines):
    """By part and seed, without what a clock says."""
    return {
        (line["part"], line["seed"]): {k: v for k, v in line["figures"].items() if not k.endswith("seconds")}
        for line in lines
    }


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("hinton") / "out"
    return out, run(data, out)


@pytest.fixture(scope="module")
def bench(data, tmp_path_factory):
    settings = replace(SHORT, data=data)
    return hinton2015.bench_of(settings, settings.load(), tmp_path_factory.mktemp("bench"), Console(file=io.StringIO()))


def test_every_part_gives_its_figures(whole):
    _, lines = whole
    found = figures(lines)
    assert list(found) == [(part, 0) for part in parts.PARTS]
    for part in ("teacher", "alone", "alone_jittered", "distilled"):
        assert 0 < found[part, 0]["errors"] < 120 == found[part, 0]["of"]
    assert list(found["curves", 0]["6"]) == ["labels alone", "1", "8"]
    threes = found["without_3", 0]
    assert threes["fewest_errors_of_any_bias"] <= threes["errors_with_bias"]
    assert threes["errors_of_3_with_bias"] <= threes["errors_of_3"] <= threes["pictures_of_3"]
    assert found["only_7_8", 0]["bias"] <= 0 <= threes["bias"]
    assert {"settings", "versions", "hardware", "commit", "date", "data"} <= lines[0].keys()


@pytest.fixture
def search_without_training(monkeypatch):
    """What each student and teacher of the search is given; the errors are made up, the fewest with α = 0.5 and jitter, and
    of the teachers with dropout 0.2 and none of pixels and the smaller rate."""
    given, module = [], hinton2015.choose.__globals__

    def student(bench, seed, name, arrays, told, *, epochs, alpha, views, teacher):
        given.append((seed, arrays, told))
        return None, None, {"errors": [5.0 - 4 * alpha, float(views == "none"), abs(epochs - 2.0)]}

    def transferred(bench, seed, which, arrays, told, *, alpha, teacher, folder):
        given.append((seed, arrays, told))
        settings = bench.settings
        assert (settings.views, settings.epochs, settings.dropout, settings.input_dropout) == ("jitter", 2, 0.2, 0.0)
        assert settings.teacher_learning_rate == 5e-3
        return {"validation_errors_with_bias": 10 * alpha if which == "only_7_8" else 1 - alpha}

    def teacher(bench, seed, arrays, told, folder):
        given.append((seed, arrays, told))
        own = bench.settings
        rates = own.dropout, own.input_dropout, own.teacher_learning_rate
        assert folder == "dropout-{:g}_input-{:g}_rate-{:g}_teacher".format(*rates)
        return None, {"errors": 1 + sum(rates)}

    names = {"trained_student": student, "transferred": transferred, "trained_teacher": teacher}
    for name, stands_in in (names | {"with_soft_targets": lambda bench, teacher, arrays: arrays}).items():
        monkeypatch.setitem(module, name, stands_in)
    return given


CHOSEN = {
    "dropout": 0.2,
    "input_dropout": 0.0,
    "teacher_learning_rate": 5e-3,
    "alpha": 0.5,
    "views": "jitter",
    "epochs": 2,
    "alpha_without_3": 0.5,
    "alpha_only_7_8": 0.0,
}


def test_the_search_chooses_by_validation_digits_that_nothing_of_it_trains_on(bench, search_without_training):
    found = hinton2015.choose(bench, lambda seed, name, make, *arguments: make(*arguments))
    assert {name: found[name] for name in CHOSEN} == CHOSEN
    assert len(found["compared"]) == 4 + 1 + 4 + 1 + 2 * 2
    for seed, arrays, told in search_without_training:
        assert seed >= 1000
        assert arrays is bench.rest
        assert told is bench.validation


def test_a_search_of_teachers_trains_no_student(bench, search_without_training):
    found = hinton2015.choose(bench, lambda seed, name, make, *arguments: make(*arguments), students=False)
    of_teacher = {name: CHOSEN[name] for name in ("dropout", "input_dropout", "teacher_learning_rate")}
    assert {name: value for name, value in found.items() if name != "compared"} == of_teacher
    assert len(found["compared"]) == 4 + 1
    assert len(search_without_training) == 4 + 2  # nothing is recorded here: the usual rate is asked for twice


def test_a_search_of_teachers_may_be_followed_by_one_of_all(data, tmp_path, search_without_training):
    run(data, tmp_path / "out", parts=("search_teacher",))
    first, second = run(data, tmp_path / "out", parts=("search",), resume=True)
    assert (first["part"], second["part"]) == ("search_teacher", "search")
    assert first["figures"]["compared"].items() <= second["figures"]["compared"].items()
    assert {name: second["figures"][name] for name in CHOSEN} == CHOSEN


def test_a_rate_is_the_teachers_or_the_students(bench, monkeypatch):
    rates = []

    def trainer(network, *arguments, **keywords):
        rates.append((network.widths, arguments[3]))
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.trained_teacher.__globals__, "trainer_of", trainer)
    own = replace(bench, settings=replace(bench.settings, learning_rate=1e-2, teacher_learning_rate=3e-3))
    for part in ("teacher", "alone"):
        with pytest.raises(KeyboardInterrupt):
            hinton2015.PARTS[part](own, 0)
    assert rates == [((12, 12), 3e-3), ((8, 8), 1e-2)]


def test_the_parts_use_the_choice_and_a_resumption_does_too(data, tmp_path, search_without_training, monkeypatch):
    used = []
    monkeypatch.setattr(
        hinton2015, "PARTS", {"alone": lambda bench, seed: used.append(bench.settings) or {"errors": 1, "of": 9}}
    )
    with pytest.raises(ValueError, match="--resume needs a run"):
        run(data, tmp_path / "out", parts=("alone",), resume=True)
    lines = run(data, tmp_path / "out", parts=("search", "alone"))
    assert [line["part"] for line in lines] == ["search", "alone"]
    assert len(hinton2015.ledgers.tables(tmp_path / "out" / "ledger.jsonl")) == 1  # none of the search's line
    run(data, tmp_path / "out", parts=("alone",), seeds=2, resume=True)
    assert len(used) == 2
    assert all({name: getattr(one, name) for name in CHOSEN} == CHOSEN for one in used)
    assert all(lines[1]["settings"][name] == value for name, value in CHOSEN.items())


def test_a_search_that_comes_too_late_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(hinton2015, "PARTS", {"alone": lambda bench, seed: {"errors": 1, "of": 9}})
    run(data, tmp_path / "out", parts=("alone",))
    with pytest.raises(ValueError, match="parts must have search before all others"):
        run(data, tmp_path / "out", parts=("search",), resume=True)


def test_a_stopped_run_goes_on_to_the_same_figures_and_no_line_is_there_twice(data, whole, tmp_path, monkeypatch):
    wanted, count, add = ("teacher", "distilled", "without_3"), [], ledgers.add

    def stop(ledger, lines):
        count.append(1)
        if len(count) == 2:  # the figures are kept, their line is not written yet
            raise KeyboardInterrupt
        add(ledger, lines)

    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "add", stop)
        with pytest.raises(SystemExit):
            run(data, tmp_path / "out", parts=wanted)
    parts.taught.cache_clear()
    lines = run(data, tmp_path / "out", parts=wanted, resume=True)
    again = run(data, tmp_path / "out", parts=wanted, resume=True)
    assert again == lines
    assert [line["part"] for line in lines] == list(wanted)
    unbroken = figures(whole[1])
    assert figures(lines) == {(part, 0): unbroken[part, 0] for part in wanted}


def test_a_transfer_set_has_the_wanted_classes_alone_and_no_validation_digit(bench):
    assert set(parts.only(bench.rest, (3,), without=True)["labels"].tolist()) == {*range(10)} - {3}
    assert set(parts.only(bench.rest, (7, 8))["labels"].tolist()) == {7, 8}
    pictures = {np.asarray(one).tobytes() for one in bench.rest["inputs"]}
    assert len(bench.rest["labels"]) == 400
    assert not any(np.asarray(one).tobytes() in pictures for one in bench.validation["inputs"])


def test_validation_digits_choose_the_bias(bench, monkeypatch):
    """Logits that are the inputs: on the test digits any bias above 9 would do, on the validation digits only 1 to 6."""

    def apply(params, model_state, inputs, *, train, rng=None):
        return inputs, model_state

    def digits(behind):  # a three that is behind by so much, and a zero that is ahead by 5 more
        logits = jnp.zeros((2, 10)).at[:, 0].set(jnp.array([behind, behind + 5.0]))
        return {"inputs": logits, "labels": jnp.array([3, 0])}

    trained = (parts.Weights({}, {}), apply, {"seconds": 1.0})
    monkeypatch.setattr(parts, "trained_student", lambda *given, **named: trained)
    bench = replace(bench, validation=digits(1.0))
    asked = {"alpha": 0.1, "teacher": None}
    found = parts.transferred(bench, 0, "without_3", bench.rest, digits(9.0), **asked)
    assert 1.0 < found["bias"] < 6.0
    assert (found["errors"], found["errors_with_bias"], found["validation_errors_with_bias"]) == (1, 1, 0)
    assert (found["errors_of_3_with_bias"], found["fewest_errors_of_any_bias"]) == (1, 0)


def test_a_bias_moves_the_errors_of_its_classes():
    def apply(params, model_state, inputs, *, train, rng=None):
        return inputs, model_state

    arrays = {"inputs": jnp.array([[1.0, 0.0], [3.0, 0.0]]), "labels": jnp.array([1, 0])}
    lowered = parts.biased(apply, parts.Weights({}, {}), arrays, (0,), -1)
    assert lowered[[0, 20, 40]].tolist() == [[0, 1], [0, 0], [1, 0]]
    assert parts.AMOUNTS[[0, 20, 40]].tolist() == [0, 2, 4]
    assert parts.best(np.array([3, 1, 1, 1, 2])) == 2


def test_the_weight_constraint_holds_after_every_step(bench):
    trainer = trainer_of(bench.network(12, dropout=0.5), 480, 1, 96, 1e-2, limit=0.5)
    weights = trainer.init(jax.random.key(0), bench.train["inputs"][:1])
    state = trainer.begin(weights, jax.random.key(0), None)
    for row in epoch_indices(480, 96, seed=0, epoch=0):
        state, _ = trainer.epoch(state, None, trainer.recipe.objective, bench.train, row[None])
        params = weights_of(state).params
        for name in ("hidden1", "hidden2"):
            norms = jnp.linalg.norm(jax.tree.leaves(params[name]["kernel"])[0], axis=0)
            assert 0.1 < float(norms.max()) <= 0.5 * (1 + 1e-5)
    assert float(jnp.linalg.norm(params["logits"]["kernel"], axis=0).max()) > 0.5  # the logits are free


def test_a_short_vector_is_left_to_the_bit():
    params = {"hidden1": {"kernel": jnp.array([[0.3], [0.1]]), "bias": jnp.array([9.0])}}
    updates = jax.tree.map(lambda one: jnp.full_like(one, 0.25), params)
    held, _ = max_norm(1.0).update(updates, optax.EmptyState(), params)
    np.testing.assert_allclose(held["hidden1"]["kernel"], 0.25, rtol=1e-6)
    assert held["hidden1"]["bias"].tolist() == [0.25]


def test_the_tables_are_made_from_the_ledger(whole, capsys):
    out, lines = whole
    hinton2015.main(hinton2015.Hinton2015(table=out / "ledger.jsonl"))
    printed = capsys.readouterr().out
    assert str(lines[0]["figures"]["errors"]) in printed
    assert "paper" in printed
    assert "2 × 6" in printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1; got 1.0"),
        ({"max_norm": 0.0}, "max_norm must be greater than 0; got 0.0"),
        ({"alpha_only_7_8": 1.5}, "alpha_only_7_8 must lie between 0 and 1; got 1.5"),
        ({"parts": ("teachers",)}, "parts must be of search, search_teacher, teacher"),
        ({"parts": ("search", "search_teacher")}, "parts must have one of search and search_teacher"),
        ({"teacher_rates": (1e-3, 0.0)}, "teacher_rates must be greater than 0"),
        ({"teacher_learning_rate": 0.0}, "teacher_learning_rate must be greater than 0; got 0.0"),
        ({"temperatures": (2.0, 2.0)}, "temperatures must name each one once"),
    ],
)
def test_bad_settings_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(SHORT, **changes)


def test_data_that_do_not_fit_are_named(data, tmp_path):
    with pytest.raises(ValueError, match="validation must be less than the 480 training pictures; got 480"):
        run(data, tmp_path / "out", validation=480)
    with pytest.raises(ValueError, match=r"batch_size must be at most the \d+ pictures of only_7_8; got 200"):
        run(data, tmp_path / "out", batch_size=200)
    assert not (tmp_path / "out").exists()
