"""The same training in kdjax and in PyTorch: kdjax's side and the bookkeeping; both sides where PyTorch is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def small(**changes):
    from _pairs_work import RECIPES

    return replace(RECIPES["small"], batch=8, steps=2, teacher_steps=1, negatives=4, **changes)


def pictures(count=24):
    from _pairs_work import Data

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count + 10, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(count + 10, dtype=np.int32) % 3
    return Data(images[:count], labels[:count], images[count:], labels[count:], np.array([0.5]), np.array([0.25]))


def side(recipe, data, compared=2):
    import jax.numpy as jnp
    from _pairs_kdjax import Side

    return Side(recipe, data, compared, jnp.dtype("float32"))


def test_kdjax_records_the_loss_and_each_term_of_every_step_and_the_accuracy_at_the_end():
    from _pairs_kdjax import initial, order_of
    from _pairs_work import terms_of

    recipe, data = small(), pictures()
    teacher = initial(None, 7, recipe, data, None)
    student = initial("CRD", 0, recipe, data, teacher)
    order = order_of(data, recipe, recipe.steps, 0)
    trained = side(recipe, data).train("CRD", 0, order, student, teacher)
    weights = terms_of("CRD", recipe)
    assert trained["curves"].keys() == {"loss", *weights}
    for step in range(2):
        terms = [weight * trained["curves"][name][step] for name, weight in weights.items()]
        assert trained["curves"]["loss"][step] == pytest.approx(sum(terms), rel=1e-5)
    assert trained["curves"]["loss"][0] != trained["curves"]["loss"][1]
    assert 10 * trained["accuracy"] == pytest.approx(round(10 * trained["accuracy"]))
    before, after = (weights["hidden"]["kernel"] for weights in (student[0]["student"], trained["weights"][0]))
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_every_method_has_its_terms_and_kdjax_has_each():
    import jax
    from _pairs_kdjax import objective_of
    from _pairs_work import METHODS, RECIPES, terms_of

    data = pictures()
    for method in METHODS:
        for recipe in RECIPES.values():
            weights = terms_of(method, recipe)
            objective, _ = objective_of(method, recipe, data)
            assert {name: float(weight) for name, weight in objective.weights.items()} == pytest.approx(weights)
            assert len(jax.tree.leaves(objective)) >= len(weights)
    assert set(terms_of("VID", RECIPES["wrn"])) == {"labels", *(f"variational_stage{stage}" for stage in (1, 2, 3))}


def test_a_view_is_the_picture_cut_out_of_its_border_mirrored_and_normalised():
    import jax.numpy as jnp
    from _pairs_kdjax import viewed
    from _pairs_work import BORDER, epochs, normal

    recipe, data = small(views=True), pictures()
    rows, seen = next(epochs(np.arange(16).reshape(2, 8), data, recipe, 3))
    assert seen["corner"].max() == 2 * BORDER
    assert set(seen["mirrored"]) == {0, 1}
    padded = np.pad(data.images, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)))
    batch = {"inputs": padded[rows[1]]} | {name: array[rows[1]] for name, array in seen.items()}
    found = viewed(lambda state, teacher, objective, batch: batch["inputs"], data, jnp.float32)(None, None, None, batch)
    for number, example in enumerate(rows[1]):
        down, right = seen["corner"][example]
        wanted = padded[example, down : down + 8, right : right + 8]
        wanted = wanted[:, ::-1] if seen["mirrored"][example] else wanted
        np.testing.assert_allclose(found[number], normal(wanted, data), rtol=1e-5, atol=1e-6)
    (_, again), (_, other) = epochs(np.arange(48).reshape(6, 8), data, recipe, 3)
    assert np.array_equal(again["corner"], seen["corner"])
    assert not np.array_equal(other["corner"], seen["corner"])


def test_the_rate_falls_to_a_tenth_at_the_same_steps_on_both_sides():
    import optax
    from _pairs_work import RECIPES

    recipe = replace(RECIPES["wrn"], steps=240)
    assert recipe.dropped_at() == [150, 180, 210]
    schedule = optax.piecewise_constant_schedule(recipe.learning_rate, dict.fromkeys(recipe.dropped_at(), 0.1))
    for step in (0, 149, 150, 151, 180, 239):
        assert float(schedule(step)) == pytest.approx(recipe.rate_at(step))


def test_on_a_gpu_all_calls_of_an_epoch_have_as_many_steps(monkeypatch):
    import _pairs_kdjax

    assert _pairs_kdjax.chunk_of(781) == 1
    monkeypatch.setattr(_pairs_kdjax.jax, "default_backend", lambda: "gpu")
    assert [_pairs_kdjax.chunk_of(steps) for steps in (781, 187, 64, 67)] == [11, 17, 64, 1]


def curves(loss, hint):
    return {"curves": {"loss": loss, "hint": hint}, "accuracy": 0.5, "epochs_s": [9.0, 1.0, 2.0]}


def test_what_is_compared_is_the_largest_difference_of_all_steps_over_the_larger_of_two_losses():
    from _pairs_judged import figures_of, row_of

    trained = {("kdjax", "float32"): curves([1.0, 2.0, 0.0], [3.0, 3.0, 1.0])}
    alone = figures_of(trained)
    assert alone["largest_difference"] == {"float32": None}
    assert alone["accuracy"] == {"kdjax": {"float32": 0.5}, "PyTorch": {"float32": None}}
    both = figures_of(trained | {("PyTorch", "float32"): curves([1.0, 2.5, 0.0], [3.0, 3.0, 1.001])})
    assert both["largest_difference"] == {"float32": pytest.approx(0.2)}
    assert both["largest_differences_of_terms"] == {"float32": {"hint": pytest.approx(1e-3, rel=1e-2)}}
    assert both["losses"] == [1.0, 0.0]
    assert both["epoch_s"]["PyTorch"] == {"float32": 1.5}
    shown = row_of({"part": "FitNets", "seed": 1, "figures": both})
    assert shown == "FitNets, seed 1: float32 losses within 2.0e-01, accuracies 50.00% and 50.00%."
    assert "not compared, accuracies 50.00% and not measured" in row_of({"part": "", "seed": 0, "figures": alone})


def test_losses_that_are_not_finite_and_other_terms_are_refused():
    from _pairs_judged import figures_of

    ours = {("kdjax", "float32"): curves([1.0, 2.0], [1.0, 1.0])}
    with pytest.raises(ValueError, match="hint of PyTorch in float32 is nan at step 1"):
        figures_of(ours | {("PyTorch", "float32"): curves([1.0, 2.0], [1.0, np.nan])})
    with pytest.raises(ValueError, match="must have the same terms"):
        figures_of(ours | {("PyTorch", "float32"): ours["kdjax", "float32"] | {"curves": {"loss": [1.0, 2.0]}}})


def test_the_page_has_the_tables_that_the_ledger_gives():
    import ledger

    page = ledger.PAGE.read_text()
    assert ledger.written(page, ledger.read(ledger.LEDGER)) == page, "python benchmarks/ledger.py"
    with pytest.raises(ValueError, match="<!-- end of small pairs -->, once each"):
        ledger.written(page.replace("<!-- end of small pairs -->", ""), [])


def test_a_command_line_is_read_by_the_fields_of_its_settings(capsys):
    from _command_line import command_line
    from pairs import Benchmark

    given = command_line(Benchmark, None, ["--methods", "KD", "AT", "--seeds", "2", "--torch", "python", "--quick"])
    assert given == Benchmark(methods=("KD", "AT"), seeds=2, torch=Path("python"), quick=True)
    assert command_line(Benchmark, None, []) == Benchmark()
    for words, said in ((["--seeds", "0"], "seeds must be at least 1; got 0"), (["--methods", "KT"], "choose from")):
        with pytest.raises(SystemExit):
            command_line(Benchmark, None, words)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line(Benchmark, "What it does.", ["--help"])
    assert "how often each method is trained" in " ".join(capsys.readouterr().out.split())


def test_both_sides_have_the_same_losses_where_pytorch_is(tmp_path):
    pytest.importorskip("torch")
    out, kept = tmp_path / "pairs.json", tmp_path / "ledger.jsonl"
    command = [sys.executable, str(BENCHMARKS / "pairs.py"), "--quick", "--steps", "3", "--out", str(out)]
    command += ["--ledger", str(kept), "--methods", "CRD", "VID", "--kept", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    lines = json.loads(out.read_text())["lines"]
    assert [line["part"] for line in lines] == ["CRD", "VID"]
    for line in lines:
        assert line["figures"]["compared"] == 3
        assert line["figures"]["largest_difference"]["float32"] < 1e-5
        assert line["figures"]["largest_difference"]["float64"] < 1e-12
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.count("the ledger has it") == 2


def test_random_pictures_are_of_the_size_of_cifars():
    from pairs import Benchmark, data_of

    data = data_of(Benchmark(data="random", examples=40, tested=20))
    assert (data[0].shape, data[0].dtype, data[2].shape) == ((40, 32, 32, 3), np.uint8, (20, 32, 32, 3))
    assert {*data[1]} <= {*range(10)}
