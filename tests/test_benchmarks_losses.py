"""The comparison of losses with PyTorch, as far as it goes without PyTorch: its forms by name, and what numbers come to."""

import ast
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cases import NOT_LOSSES

from kdjax import losses

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LOSSES = set(losses.__all__) - set(NOT_LOSSES)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def forms():
    """The PyTorch forms' names and numbers of arguments (None: any), by file."""
    found = {}
    for file in sorted(BENCHMARKS.glob("_losses_pytorch_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.name not in found, f"{node.name} is there twice"
                needed = len(node.args.args) - len(node.args.defaults)
                found[node.name] = None if node.args.vararg else needed
    return found


def test_every_loss_has_a_pytorch_form():
    assert set(forms()) == LOSSES | {"crd_from_all"}


def test_every_loss_is_compared_and_its_form_takes_as_many_arrays():
    import jax
    from _losses import COSTS
    from _losses_compared import PAIRS

    assert {pair.loss for pair in PAIRS} == LOSSES
    assert {pair.name for pair in PAIRS} == set(COSTS)
    takes = forms()
    given = cache(lambda arrays: len(jax.tree.leaves(jax.eval_shape(lambda: arrays(32)))))
    for pair in PAIRS:
        assert takes[pair.form] in (None, given(COSTS[pair.name].arrays)), pair


def test_equal_arrays_are_saved_once_and_read_as_they_were(tmp_path):
    from _losses_sides import read, saved

    first, second = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(6, dtype=np.int32).reshape(2, 3)
    given = {("one", 2): [first, second], ("other", 2): [second, first.copy(), first.reshape(3, 2)]}
    saved(tmp_path / "arrays.npz", given)
    placed = []
    found = read(tmp_path / "arrays.npz", lambda array: placed.append(array.shape) or array)
    assert len(placed) == 3
    assert found.keys() == given.keys()
    for case, arrays in given.items():
        for was, read_again in zip(arrays, found[case], strict=True):
            assert was.dtype == read_again.dtype
            assert np.array_equal(was, read_again)


def test_a_turn_lasts_so_long_and_gives_its_quickest_portion(monkeypatch):
    import _losses_sides

    now, slow = [0.0], {3: 8.0}  # in the fourth order something else has the core
    orders = []
    monkeypatch.setattr(_losses_sides.time, "perf_counter", lambda: now[0])

    def made(loss, batch):
        def run(count):
            now[0] += 0.002 * count * slow.get(len(orders), 1.0)
            orders.append(count)

        return run, lambda: (float(batch), [])

    side = _losses_sides.answers(made)
    assert side["result"]("a", 3) == (3.0, [])
    (spent,) = side["turn"]([("a", 3)], 0.16)
    assert spent == pytest.approx(2.0)
    assert orders[:2] == [1, 1]  # how long is a call, and one to be warm
    assert set(orders[2:]) == {10}
    assert now[0] == pytest.approx(0.004 + 0.02 + 0.16)  # the slow one took its time from the others
    assert side["turn"]([("a", 3)], 0.0) == [pytest.approx(2.0)]


@pytest.mark.parametrize(
    ("value", "gradient", "agree"), [(1.0, [3.0, 4.0], True), (1.01, [3.0, 4.0], False), (1.0, [3.0, 4.1], False)]
)
def test_sides_that_differ_make_the_row_void(value, gradient, agree):
    from _losses_compared import PAIRS, _row, differences

    off = differences((value, [np.array(gradient)]), (1.0, [np.array([3.0, 4.0])]))
    times = {("kdjax", PAIRS[0].name, 64): [2.0, 1.0, 4.0], ("PyTorch", PAIRS[0].form, 64): [5.0, 4.0, 3.0]}
    row = _row(PAIRS[0], 64, 0.1, off, times)
    assert row["agree"] is agree
    assert (row["faster"], row["faster_by_medians"]) == ((3.0, 2.0) if agree else (None, None))
    assert _row(PAIRS[0], 64, 0.1, [0.0, float("nan")], times)["agree"] is False


def row(loss, batch, ours, theirs, form=None, agree=True, space=1.0):
    measured = theirs is not None
    ratio = theirs / ours if measured and agree else None
    return {
        "row": loss, "loss": loss.split(",")[0], "form": form or loss.split(",")[0], "batch": batch, "sizes": "",
        "temporary_mb": space, "kdjax_ms": [ours, 2 * ours], "pytorch_ms": [theirs, theirs] if measured else None,
        "agree": agree if measured else None, "differences": [0.0 if agree else 0.5] if measured else None,
        "faster": ratio, "faster_by_medians": ratio,
    }  # fmt: skip


def printed(rows):
    from _losses_judged import show, show_targets, targets
    from rich.console import Console

    class Report:
        console = Console(record=True, width=150)

        def table(self, title, heads, rows):
            import _script

            _script.Report.table(self, title, heads, rows)

    report = Report()
    show(report, rows)
    show_targets(report, targets(rows, None))
    return report.console.export_text()


def test_the_tables_are_those_of_the_numbers(capsys):
    rows = [
        row("hint", 64, 2.0, 8.0), row("cosine", 64, 2.0, 1.0), row("fsp", 64, 1.0, 100.0, agree=False),
        row("rkd_angle", 256, 10.0, 90.0, space=300.0), row("rkd_angle, block=8", 256, 30.0, 90.0),
        row("crd", 32, 10.0, 20.0), row("crd", 32, 10.0, 5.0, form="crd_from_all"),
    ]  # fmt: skip
    from _losses_judged import ratios, targets

    assert ratios(rows, 64) == {"hint": 4.0, "cosine": 0.5}
    assert ratios(rows, 256) == {"rkd_angle": 9.0}  # the better of its two
    assert ratios(rows, 32) == {"crd": 0.5}  # the better of PyTorch's two
    found = {target["what"]: (target["is"], target["met"]) for target in targets(rows, 0.3)}
    assert found == {
        "share of the machine that others used meanwhile": (0.3, False),
        "rows in which the sides differ": (1, False),
        "PyTorch / kdjax, the least of all losses, batch 64": (0.5, False),
        "PyTorch / kdjax, median of all losses, batch 64": (2.25, False),
        "PyTorch / kdjax, the least of all losses, batch 256": (9.0, True),
        "PyTorch / kdjax, median of all losses, batch 256": (9.0, True),
        "ms of rkd_angle, batch 256, in less than 67 MB": (30.0, True),
        "PyTorch's crd / kdjax's crd, batch 32": (2.0, True),
        "PyTorch's crd_from_all / kdjax's crd, batch 32": (0.5, False),
    }
    text = printed(rows)
    assert "4.00 (4.00)" in text
    assert "void: they differ" in text
    assert "Slower than PyTorch at batch 64: cosine 0.50" in text
    assert "fsp, batch 64: the sides differ by 5.0e-01" in text


def test_without_pytorch_its_column_says_so():
    from _losses_judged import targets

    rows = [row("hint", 64, 2.0, None), row("rkd_angle, block=8", 256, 70.0, None), row("crd", 32, 10.0, None)]
    text = printed(rows)
    assert text.count("not measured") == 3 + 8  # rows and targets
    known = {target["what"]: target["met"] for target in targets(rows, None) if target["met"] is not None}
    assert known == {"ms of rkd_angle, batch 256, in less than 67 MB": False}


def test_what_others_use_is_what_the_sides_do_not():
    from _losses_compared import _cpu_seconds, share_of_others

    before, after = (100.0, 5000.0, 40.0), (110.0, 5016.0, 52.0)
    assert share_of_others(before, after, 2) == pytest.approx(4 / 20)
    assert share_of_others(None, after, 2) is None
    now = _cpu_seconds({"kdjax": ({"cpu_seconds": lambda: 1e6}, [])})
    assert now is None or (now[1] > 0 and now[2] > 1e6)


def test_a_python_without_pytorch_gives_the_reason(tmp_path):
    from _losses_compared import version_of_torch

    version, reason = version_of_torch(tmp_path / "python")
    assert version is None
    assert "No such file" in reason
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    silent.chmod(0o755)
    assert version_of_torch(silent) == (None, "ModuleNotFoundError: No module named 'torch'")
