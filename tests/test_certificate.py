"""The certificate's page is whole, of the losses as they are, and never written where a law does not hold."""

import inspect
import math
import re
from pathlib import Path

import certificate
import certificate_page
import machine
import pytest
from case import NOT_LOSSES
from cases import BY_NAME, CASES
from costs import Cost
from laws import Measured

from kdjax import losses

PAGE = Path(__file__).parents[1] / "docs" / "certificate.md"
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


def test_one_loss_makes_a_whole_page(tmp_path):
    page = tmp_path / "page.md"
    assert certificate.main(["--out", str(page)], [CASE], ["logit_mse"]) == 0
    is_whole(page.read_text(), ["logit_mse"])
    assert [*tmp_path.iterdir()] == [page]


def test_a_law_that_fails_leaves_the_page_as_it_was(tmp_path, capsys):
    def logit_mse(student, teacher):
        return 1.01 * losses.logit_mse(student, teacher)

    logit_mse.__doc__ = inspect.getdoc(losses.logit_mse)
    page = tmp_path / "page.md"
    page.write_text("as it was")
    assert certificate.main(["--out", str(page)], [CASE._replace(function=logit_mse)], ["logit_mse"]) == 1
    assert "logit_mse: reference value, float64: 0.0099 is over 1e-10" in capsys.readouterr().err
    assert page.read_text() == "as it was"
    assert [*tmp_path.iterdir()] == [page]


def row():
    """Measurements that hold."""
    good = Measured(1e-9, 1e-4)
    laws = [
        name for _, *names in {**certificate_page.VALUES, **certificate_page.TRANSFORMED}.values() for name in names
    ]
    found = certificate_page.Row(CASE, {name: [good] for name in laws}, dict.fromkeys(CASE.invariances, good))
    found.bad_points = {"float32": {"all zero": []}}
    found.costs = {32: Cost(1.0, 2.0, 3, False)}
    return found


def test_nothing_is_wrong_where_all_holds():
    assert certificate.wrong([row()], ["logit_mse", *NOT_LOSSES]) == []


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
            lambda r: r.bad_points["float32"].update(huge=["a gradient is not finite"]),
            "logit_mse: float32: huge: a gradient is not finite",
        ),
    ],
)
def test_what_does_not_hold_is_named(spoil, words):
    spoiled = row()
    spoil(spoiled)
    assert any(words in fault for fault in certificate.wrong([spoiled], ["logit_mse"]))


def test_an_export_without_a_row_is_named():
    (fault,) = certificate.wrong([row()], ["logit_mse", "new_loss"])
    assert "new_loss is exported and has neither a row" in fault


def test_too_few_examples_are_named():
    (fault,) = certificate.wrong([row()], ["logit_mse"], ({}, {("a", "logit_mse"): 4_000, ("b", "logit_mse"): 5_999}))
    assert "logit_mse: the record of properties has 9,999 examples of at least 10,000" in fault


def test_every_invariance_says_its_kind():
    for change in {change for case in CASES for change in case.invariances}:
        assert re.match(r"(Shift|Scale|Rotation|Permutation|Mirror|Sign): ", certificate_page.name_of(change))


AGAIN = "run `make certificate`: docs/certificate.md is not of the losses as they are"


def test_the_kept_page_is_whole_and_has_every_loss():
    text = PAGE.read_text()
    names = sorted(set(losses.__all__) - set(NOT_LOSSES))
    is_whole(text, names)
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == names, AGAIN
    assert re.findall(r"^- `(\w+)` .* Held by ", text, re.MULTILINE) == [*NOT_LOSSES], AGAIN


def test_the_kept_page_is_of_the_losses_as_they_are():
    text = PAGE.read_text()
    for case in CASES:
        assert certificate_page.static_section(case) in text, AGAIN
    assert f"`{machine.fingerprint()}`" in text, AGAIN
