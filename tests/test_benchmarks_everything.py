"""What everything.py writes into the ledger: the figures of each piece, from what its script writes down."""

import json
import sys
from pathlib import Path

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


def wrn_row(side, rate, compiled=None):
    return {"side": side, "images_per_second": rate, "compiled": compiled, "share_of_stated_peak": rate / 1000}


RESULTS = {
    "wrn-TF32": {
        "gpu": "a card",
        "hardware": {"platform": "cpu", "cores": 2},
        "rows": [
            wrn_row("_wrn_kdjax", 300.0), wrn_row("_wrn_kdjax", 400.0), wrn_row("_wrn_pytorch", 900.0),
            wrn_row("_wrn_pytorch", 200.0, "reduce-overhead"),
        ],
    },
    "training": {
        "lines": [{"figures": {"epoch_s": {"kdjax": {"TF32": 0.5}}, "teacher_epoch_s": 4.0}}],
    },
    "vocabulary": {
        "times": [{"loss": f"linear_{name}", "quartiles_ratio": [0, 1.5, 2]} for name in (
            "soft_target_kl", "reverse_kl", "jensen_shannon")],
        "memory": [{"loss": f"linear_{name}", "words": words, "temporary_mb": words / 1000} for name in (
            "soft_target_kl", "reverse_kl", "jensen_shannon") for words in (8192, 131_072)],
    },
    "sweep": {
        "rows": [
            {"network": "CNN", "teacher": teacher, "way": way, "students": count, "quartiles_ms": [0, ms * count, 0]}
            for teacher, ways in (("cached", {"vmap": 3.0, "one by one": 2.0}), ("online", {"vmap": 1.0}))
            for way, ms in ways.items() for count in (1, 8, 32, 96)
        ],
    },
    "article": {"ratios": [{"phase": phase, "ratios": [3.0, 5.0, 9.0]} for phase in (
        "teacher", "alone", "distilled", "whole")]},
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_each_figure_of_the_table_is_read_from_what_its_piece_writes(tmp_path, name):
    from _everything_figures import FIGURES, figures_of

    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(RESULTS[name]))
    figures, _ = figures_of(name, file)
    assert figures.keys() == set(FIGURES[name][1])
    assert None not in figures.values()


def test_the_best_of_each_side_counts_and_of_pytorch_those_that_are_compiled(tmp_path):
    from _everything_figures import figures_of

    (tmp_path / "wrn.json").write_text(json.dumps(RESULTS["wrn-TF32"]))
    figures, result = figures_of("wrn-TF32", tmp_path / "wrn.json")
    assert figures["kdjax, images/s"] == 400.0
    assert figures["kdjax / PyTorch"] == 2.0
    assert result["hardware"]["device"] == "a card"
    alone = RESULTS["wrn-TF32"] | {"rows": RESULTS["wrn-TF32"]["rows"][:2]}
    (tmp_path / "wrn.json").write_text(json.dumps(alone))
    figures, _ = figures_of("wrn-TF32", tmp_path / "wrn.json")
    assert figures["kdjax / PyTorch"] is None


def test_tests_are_counted_over_all_suites(tmp_path):
    from _everything_figures import figures_of

    suites = '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/><testsuite tests="4"/></testsuites>'
    (tmp_path / "tests-core.xml").write_text(suites)
    assert figures_of("tests-core", tmp_path / "tests-core.xml") == ({"passed": 7, "failed": 3}, {})


def test_a_piece_becomes_a_line_that_names_no_folder_and_the_table_has_it(tmp_path):
    import everything
    import ledger

    from experiments._ledger import read

    machine = {"backend": "gpu", "devices": [{"kind": "a card"}], "cores": 2, "python": "3", "packages": {"jax": "0.1"}}
    (tmp_path / "machine.txt").write_text(json.dumps(machine))
    kept = tmp_path / "ledger.jsonl"
    everything.note("sweep", tmp_path, kept, None)
    assert not kept.exists()
    result = RESULTS["sweep"] | {"config": {"out": "/somewhere/sweep.json", "rounds": 5}, "versions": {"jax": "0.2"}}
    (tmp_path / "sweep.json").write_text(json.dumps(result))
    everything.note("sweep", tmp_path, kept, "abc")
    (line,) = read(kept, "everything")
    assert (line["part"], line["commit"], line["settings"]) == ("sweep", "abc", {"rounds": 5})
    assert line["versions"] == {"jax": "0.2"}
    table = "\n".join(ledger.everything([line]))
    assert "| … | 32, ms a step | 64 |" in table
    assert "a card, jax 0.2, torch none" in table
    assert table.count(ledger.NOT_MEASURED) == sum(len(names) for _, names in ledger.FIGURES.values()) - 4
    on_cpu = line | {"hardware": line["hardware"] | {"platform": "cpu"}}
    assert ledger.everything([on_cpu]) == ledger.everything([])


def test_a_call_begins_what_ends_in_its_minutes_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    import everything

    pieces = {
        "first": everything.Piece(0.5, "-c pass", "", {}),
        "long": everything.Piece(5, "-c pass", "", {}),
        "pictures": everything.Piece(0.5, "-c {mnist}", "", {}),
        "last": everything.Piece(0.5, "-c pass", "", {}),
    }
    monkeypatch.setattr(everything, "PIECES", pieces)
    monkeypatch.setattr(everything, "_filled", lambda *_: {"backend": "cpu", "mnist": "", "cifar": ""})
    for minutes, begun, later in (
        ("1", ["first", "last"], "Not begun: long."),
        ("6", ["long"], "Nothing is left to do."),
    ):
        monkeypatch.setattr(sys, "argv", ["everything.py", "--out", str(tmp_path), "--minutes", minutes])
        everything.main()
        told = capsys.readouterr().out
        assert [name for name in pieces if f"{name}: done" in told] == begun
        assert later in told
        assert "pictures: left out, since there is no carried/mnist.npz" in told
    ended = json.loads((tmp_path / "summary.json").read_text())
    assert {name: one["ended"] for name, one in ended.items()} == dict.fromkeys(("first", "last", "long"), "done")
