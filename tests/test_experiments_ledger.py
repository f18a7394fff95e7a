"""The ledger's form: lines are only added, each whole, and none of another form is read or written."""

import json

import pytest

from experiments import _ledger

ABOUT = {"settings": {"batch": 64}, "data": {}, "versions": {"jax": "0"}, "hardware": {"device": "cpu"}, "commit": None}


def line(seed=0, **figures):
    return _ledger.line_of("pairs", "KD", seed, figures, ABOUT)


def test_lines_come_back_in_order_and_none_is_written_twice(tmp_path):
    file = tmp_path / "ledger.jsonl"
    first, second = line(0, loss=0.5), line(1, loss=None)
    _ledger.add(file, [first, second])
    _ledger.add(file, [first])
    assert _ledger.read(file) == [first, second]
    assert _ledger.read(file, "others") == []
    assert _ledger.read(tmp_path / "none yet") == []


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_what_a_killed_writer_left_is_read_as_nothing_and_cut_off_by_the_next(tmp_path, kept):
    file = tmp_path / "ledger.jsonl"
    _ledger.add(file, [line(0), line(1)])
    first, second, _ = file.read_bytes().split(b"\n")
    file.write_bytes(first + b"\n" + second[:kept])
    assert [one["seed"] for one in _ledger.read(file)] == [0]
    _ledger.add(file, [line(2)])
    assert [one["seed"] for one in _ledger.read(file)] == [0, 2]
    assert file.read_bytes().count(b"\n") == 2


def test_a_last_line_that_lacks_its_end_alone_is_kept(tmp_path):
    file = tmp_path / "ledger.jsonl"
    _ledger.add(file, [line(0)])
    file.write_bytes(file.read_bytes()[:-1])
    _ledger.add(file, [line(1)])
    assert [one["seed"] for one in _ledger.read(file)] == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 2 of .*ledger.jsonl: Expecting property name"),
        pytest.param("[" * 100_000, "line 2 of .*ledger.jsonl: maximum recursion", id="too deep"),
        ("[]", r"line 2 of .*ledger.jsonl is \[\]"),
        (json.dumps({"what": "pairs"}), "line 2 of .*ledger.jsonl lacks commit, data, date, figures, hardware"),
        (json.dumps(line() | {"more": 1}), "line 2 of .*ledger.jsonl has more"),
        (json.dumps(line() | {"seed": "0"}), "line 2 of .*ledger.jsonl has seed '0'"),
        (json.dumps(line() | {"seed": True}), "line 2 of .*ledger.jsonl has seed True"),
    ],
)
def test_another_form_is_refused_with_the_files_name_and_the_lines_number(tmp_path, text, said):
    file = tmp_path / "ledger.jsonl"
    _ledger.add(file, [line(0)])
    file.write_text(f"{file.read_text()}{text}\n")
    before = file.read_bytes()
    with pytest.raises(ValueError, match=said):
        _ledger.read(file)
    with pytest.raises(ValueError, match=said):
        _ledger.add(file, [line(1)])
    assert file.read_bytes() == before


def test_a_line_of_another_form_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="this one lacks date"):
        _ledger.add(tmp_path / "ledger.jsonl", [{name: value for name, value in line().items() if name != "date"}])
    assert not (tmp_path / "ledger.jsonl").exists()


def test_of_several_lines_none_is_written_where_one_has_another_form(tmp_path):
    with pytest.raises(ValueError, match="this one has seed '1'"):
        _ledger.add(tmp_path / "ledger.jsonl", [line(0), line(1) | {"seed": "1"}])
    assert not (tmp_path / "ledger.jsonl").exists()


def test_what_json_writes_otherwise_is_not_written_twice_either(tmp_path):
    file = tmp_path / "ledger.jsonl"
    one = line(0, loss=float("nan"), arms=(1, 2))
    for _ in range(2):
        _ledger.add(file, [one])
    assert [one["figures"] for one in _ledger.read(file)] == [{"loss": None, "arms": [1, 2]}]


def test_of_what_was_measured_again_the_newest_counts():
    lines = [line(0, loss=1.0), line(1, loss=2.0), line(0, loss=3.0)]
    assert [one["figures"]["loss"] for one in _ledger.newest(lines, "part", "seed")] == [3.0, 2.0]
