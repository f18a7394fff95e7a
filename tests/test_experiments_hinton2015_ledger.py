"""The ledger of hinton2015.py: a seed counts once, pairs are of the same pictures, and the page says what it says."""

import re
from pathlib import Path

import pytest

from experiments import _hinton2015_ledger as ledgers

WITH_INTERVAL = r"-?\d+\.\d ± \d+\.\d"
# What stands in which row of the page's table, by the words of the printed one.
ROWS_OF_PAGE = {
    "| `teacher` |": ["teacher"],
    "| `alone`": ["student alone"],
    "| `alone_jittered`": ["student alone, on the teacher's views"],
    "| `distilled`": ["distilled student"],
    "| `without_3`": ["no 3: errors", "no 3: threes wrong"],
    "| | with the bias of 3": ["no 3, with bias: errors", "no 3, with bias: threes wrong"],
    "| `only_7_8`": ["only 7 and 8: errors in %"],
    "| | with the biases of 7": ["only 7 and 8, with bias: errors in %"],
}
# Those of the settings that a later search chose, the ledger's second.
ROWS_OF_SEARCHED = {"| `teacher`, as searched |": ["teacher"]}


def test_a_seed_counts_once_in_the_table_and_a_damaged_line_is_named(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    about = {"settings": {"data": "mnist"}, "data": {}, "versions": {}, "hardware": {}, "commit": None}
    for seed, errors in ((0, 90), (0, 70), (1, 72)):
        ledgers.add(ledger, [ledgers.line_of("teacher", seed, {"errors": errors, "of": 10_000}, about)])
    (table,) = ledgers.tables(ledger)
    here, n = (next(iter(table.columns[place].cells)) for place in (3, 4))
    assert (here[:4], n) == ("71.0", "2")
    ledger.write_text(ledger.read_text() + "{\n")
    with pytest.raises(ValueError, match="line 4 of"):
        ledgers.read(ledger)


@pytest.mark.parametrize(("views", "beside"), [("jitter", "alone_jittered"), ("none", "alone")])
def test_what_the_teacher_adds_is_told_seed_by_seed_on_the_same_pictures(tmp_path, views, beside):
    about = {"settings": {"data": "mnist", "views": views}, "data": {}, "versions": {}, "hardware": {}, "commit": None}
    of_seed = {"distilled": (70, 80, 75), beside: (73, 85, 79), ({"alone", "alone_jittered"} - {beside}).pop(): (1, 2)}
    lines = [
        ledgers.line_of(part, seed, {"errors": errors, "of": 10_000}, about)
        for part, counts in of_seed.items() for seed, errors in enumerate(counts)
    ]  # fmt: skip
    ledgers.add(tmp_path / "ledger.jsonl", lines)
    (table,) = ledgers.tables(tmp_path / "ledger.jsonl")
    words, *_, here, n, _, _ = ([*column.cells][-1] for column in table.columns)
    assert (words.split(",")[0], here, n) == (
        "distilled student less student alone on the same pictures",
        "-4.0 ± 2.5",
        "3",
    )


def test_a_temperature_of_the_papers_best_is_set_beside_each_other_one_seed_by_seed(tmp_path):
    about = {"settings": {"data": "mnist"}, "data": {}, "versions": {}, "hardware": {}, "commit": None}
    of_30 = ({"labels alone": 90, "1": 80, "2.5": 70}, {"labels alone": 96, "1": 78, "2.5": 74})
    lines = [ledgers.line_of("curves", seed, {"30": errors}, about) for seed, errors in enumerate(of_30)]
    ledgers.add(tmp_path / "ledger.jsonl", lines)
    temperatures, errors, less = ([*column.cells] for column in ledgers.tables(tmp_path / "ledger.jsonl")[1].columns)
    assert temperatures == ["labels alone", "1", "2.5"]
    assert [cell.split(" ± ")[0] for cell in errors] == ["93.0", "79.0", "72.0"]
    # -20 and -22, then -10 and -4: Student's t of one degree of freedom is 12.706, the standard errors 1 and 3.
    assert less == ["-21.0 ± 12.7", "-7.0 ± 38.1", "–"]


def test_the_page_says_what_the_ledger_says():
    """Each row has the ledger's figures and number of seeds, and what else has an interval is in its tables."""
    folder = Path(ledgers.__file__).parent
    page = (folder / "README.md").read_text().replace("−", "-")
    section = page[page.index("## Hinton, Vinyals and Dean 2015") : page.index("What differs from the paper")]
    of_paper, of_curves, of_searched = (
        [[*row] for row in zip(*(column.cells for column in table.columns), strict=True)]
        for table in ledgers.tables(folder / "hinton2015.jsonl")
    )
    rows, everywhere = section.splitlines(), [cell for row in of_curves for cell in row]
    for table, of_page in ((of_paper, ROWS_OF_PAGE), (of_searched, ROWS_OF_SEARCHED)):
        printed = {words: (here, n) for words, _, _, here, n, *_ in table}
        everywhere += [here for here, _ in printed.values()]
        for start, wanted in of_page.items():
            (row,) = (line for line in rows if line.startswith(start))
            *_, here, n = (cell.strip() for cell in row.strip("|").split("|"))
            assert re.findall(WITH_INTERVAL, here) == [printed[words][0] for words in wanted]
            assert {n} == {printed[words][1] for words in wanted}
    for place, start in ((1, "| 2 × 300"), (3, "| 2 × 30 ")):
        (row,) = (line for line in rows if line.startswith(start))
        assert re.findall(WITH_INTERVAL, row) == [line[place] for line in of_curves]
    # Of a difference the page may say how many errors fewer.
    assert [
        figure
        for figure in re.findall(WITH_INTERVAL, section)
        if figure not in everywhere and f"-{figure}" not in everywhere
    ] == []
