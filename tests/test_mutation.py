"""The kept page of the mutation tests is that of the kept record, and holds what is asked of it."""

import json
from pathlib import Path

import mutation_page
import pytest

RECORD = Path(__file__).with_name("mutation_run.json")
PAGE = Path(__file__).parents[1] / "docs" / "mutation-testing.md"


def test_the_kept_page_is_that_of_the_kept_record():
    record = json.loads(RECORD.read_text())
    assert PAGE.read_text() == mutation_page.page(record)
    mutants = record["mutants"]
    assert len(mutants) >= 200
    missed = [one for one in mutants if not one["caught"] and one["changes"]]
    caught = sum(one["caught"] for one in mutants)
    assert caught >= 0.98 * (caught + len(missed))


def test_a_survivor_without_a_reason_is_no_page():
    survivor = {"file": "losses/_math.py", "change": ["-    return 1", "+    return 2"], "caught": False}
    record = {"about": {"date": "2026-01-01", "software": "Python"}, "mutants": [survivor]}
    with pytest.raises(ValueError, match=r"losses/_math\.py .* survived; the record must say why"):
        mutation_page.page(record)
    why = {"why": "Nothing reads it.", "changes": False}
    said = mutation_page.page({**record, "mutants": [survivor | why, survivor | {"caught": True}]})
    assert "**100.0 %**" in said
    assert "| `losses` | 2 | 1 | 1 | 0 |" in said
    assert "```diff\n-    return 1\n+    return 2\n```" in said
