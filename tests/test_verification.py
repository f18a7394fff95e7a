"""The verification report's page is whole, of the losses as they are, and never written where a law does not hold."""

import inspect
import json
import math
import re
import shutil
from pathlib import Path

import machine
import pytest
import verification
import verification_page
from cases import BY_NAME, CASES, NOT_LOSSES
from costs import Cost

from kdjax import losses
from kdjax.testing import Measured

PAGE = Path(__file__).parents[1] / "docs" / "verification-report.md"
CASE = BY_NAME["logit_mse"]


def tables(text):
    """Of each table its columns, and its rows' cells by the name in the first column."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found.append((head, {row[0].strip("`"): row for row in rows}))
    return found


def is_whole(text, names):
    measured = [table for table in tables(text) if table[0][0] == "loss"]
    assert len(measured) >= 4
    for columns, rows in measured:
        assert sorted(rows) == sorted(names)
        for row in rows.values():
            assert len(row) == len(columns)
            assert all(cell and not re.search(r"\b(nan|inf)\b", cell) for cell in row)


def record_of(loss="logit_mse", **changes):
    """A record in which all is well, but for the changes of its first line."""
    run = {"date": "2026-01-01", "machine": {"software": "Python", "hardware": "1 core"}}
    line = {"loss": loss, "code": machine.fingerprint_of(loss), "examples": 2_500, "failed": 0, "seconds": 1.0}
    found = {(law, loss): {**run, "law": law, **line} for law in verification_page.PROPERTIES}
    found["test_finite_and_bounded_below", loss].update(changes)
    return found


def written(record, path):
    lines = []
    for line in record.values():
        run = {name: line[name] for name in ("date", "machine")}
        lines += [run, {name: value for name, value in line.items() if name not in run}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def reports_the_run(text):
    return any(columns[1:-1] == [*verification_page.PROPERTIES.values()] for columns, _ in tables(text))


def test_one_loss_makes_a_whole_page(tmp_path):
    page = tmp_path / "page.md"
    record = written(record_of(), tmp_path / "record.jsonl")
    assert verification.main(["--out", str(page), "--properties", record], [CASE], ["logit_mse"]) == 0
    is_whole(page.read_text(), ["logit_mse"])
    assert reports_the_run(page.read_text())
    assert sorted(tmp_path.iterdir()) == [page, tmp_path / "record.jsonl"]


def test_a_law_that_fails_leaves_the_page_as_it_was(tmp_path, capsys):
    def logit_mse(student, teacher):
        return 1.01 * losses.logit_mse(student, teacher)

    logit_mse.__doc__ = inspect.getdoc(losses.logit_mse)
    page = tmp_path / "page.md"
    page.write_text("as it was")
    no_record = str(tmp_path / "none.jsonl")
    options = ["--out", str(page), "--properties", no_record]
    assert verification.main(options, [CASE._replace(function=logit_mse)], ["logit_mse"]) == 1
    said = capsys.readouterr().err
    assert "logit_mse: reference value, float64: 0.0099 is over 1e-10" in said
    assert "logit_mse: the record of properties has no test_finite_and_bounded_below" in said
    assert page.read_text() == "as it was"
    assert [*tmp_path.iterdir()] == [page]


def test_a_stale_record_is_said_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verification, "measured", None)
    record = written(record_of(code="0123"), tmp_path / "record.jsonl")
    assert verification.main(["--out", str(tmp_path / "page.md"), "--properties", record], [CASE], ["logit_mse"]) == 1
    assert "is of other code than now; run" in capsys.readouterr().err


def row():
    """Measurements that hold."""
    good = Measured(1e-9, 1e-4)
    laws = [
        name for _, *names in {**verification_page.VALUES, **verification_page.TRANSFORMED}.values() for name in names
    ]
    laws += [name for name, _ in verification_page.SHAPES.values()]
    found = verification_page.Row(CASE, {name: [good] for name in laws}, dict.fromkeys(CASE.invariances, good))
    found.bad_points = {"float32": {("all zero", 0): []}}
    found.costs = {32: Cost(1.0, 2.0, 3, False)}
    return found


def test_nothing_is_wrong_where_all_holds():
    assert verification.wrong([row()], ["logit_mse", *NOT_LOSSES], record_of()) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.errors.update(jit=[Measured(2e-4, 1e-4)]), "logit_mse: jit: 0.0002 is over 0.0001"),
        (lambda r: r.errors.update(scan=[Measured(math.nan, 1e-4)]), "logit_mse: scan: nan is over 0.0001"),
        (lambda r: r.errors.update(vmap=[]), "logit_mse: nothing to say under '`vmap`'"),
        (lambda r: r.costs.clear(), "logit_mse: nothing to say under 'moved at batch"),
        (
            lambda r: r.invariances.update({CASE.invariances[0]: Measured(1.0, 1e-4)}),
            "logit_mse: translated_together: 1 is over 0.0001",
        ),
        (
            lambda r: r.bad_points["float32"].update({("huge", 0): ["a gradient is not finite"]}),
            "logit_mse: float32: huge: it has none: a gradient is not finite",
        ),
    ],
)
def test_what_does_not_hold_is_named(spoil, words):
    spoiled = row()
    spoil(spoiled)
    assert any(words in fault for fault in verification.wrong([spoiled], ["logit_mse"], record_of()))


def test_an_export_without_a_row_is_named():
    (fault,) = verification.wrong([row()], ["logit_mse", "new_loss"], record_of())
    assert "new_loss is exported and has neither a row" in fault


def test_a_missing_record_is_named():
    faults = verification.wrong([row()], ["logit_mse"], {})
    for law in verification_page.PROPERTIES:
        assert any(f"logit_mse: the record of properties has no {law}; run" in fault for fault in faults)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": 2_499}, "logit_mse: the record of properties has 9,999 examples of at least 10,000"),
        ({"failed": 1}, "logit_mse: test_finite_and_bounded_below failed in the recorded run"),
        ({"code": "0123"}, "logit_mse: the record's test_finite_and_bounded_below is of other code than now; run"),
    ],
)
def test_a_record_that_is_not_enough_is_named(changes, words):
    (fault,) = verification.wrong([row()], ["logit_mse"], record_of(**changes))
    assert words in fault


def test_the_last_run_of_a_property_counts(tmp_path):
    path = tmp_path / "record.jsonl"
    first = written(record_of(examples=1, failed=1), path) and path.read_text()
    written(record_of(date="2026-01-02"), path)
    path.write_text(first + path.read_text())
    assert verification.read_record(path) == record_of(date="2026-01-02")


def test_a_loss_has_the_fingerprint_of_what_it_calls(tmp_path, monkeypatch):
    """A change shows in the losses that it touches, by way of others too, and in no other."""

    def after(file, old, new):
        folder = tmp_path / file / new.split()[0]
        shutil.copytree(Path(machine.losses.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / file).read_text()
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new))
        with monkeypatch.context() as patch:
            patch.setattr(machine.losses, "__file__", str(folder / "__init__.py"))
            now = {name: machine.fingerprint_of(name) for name in before}
        return [name for name in before if now[name] != before[name]]

    before = {name: machine.fingerprint_of(name) for name in ("hint", "cosine", "pkt", "top_k_kl")}
    assert after("_features.py", "squared_difference(student, teacher)", "squared_difference(0.0)") == ["hint"]
    assert after("_math.py", "return jnp.where(zero, 0.0, 1.0 /", "return jnp.where(zero, 1.0, 1.0 /") == [
        "cosine",
        "pkt",
    ]
    assert after("_math.py", "# The result below is the same", "# Words") == []


def test_every_invariance_says_its_kind():
    for change in {change for case in CASES for change in case.invariances}:
        assert re.match(r"(Shift|Scale|Rotation|Permutation|Mirror|Sign): ", verification_page.name_of(change))


AGAIN = "run `make verification`: docs/verification-report.md is not of the losses as they are"


def test_the_kept_page_is_whole_and_has_every_loss():
    text = PAGE.read_text()
    names = sorted(set(losses.__all__) - set(NOT_LOSSES))
    is_whole(text, names)
    assert reports_the_run(text), AGAIN
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == names, AGAIN
    assert re.findall(r"^- `(\w+)` .* Held by ", text, re.MULTILINE) == [*NOT_LOSSES], AGAIN


def test_the_kept_page_is_of_the_losses_as_they_are():
    text = PAGE.read_text()
    for case in CASES:
        assert verification_page.static_section(case) in text, AGAIN
    assert f"`{machine.fingerprint()}`" in text, AGAIN
