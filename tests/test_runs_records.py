import errno
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import _files
from kdjax._files import append_json_line, as_json, write_bytes, write_json
from kdjax.runs import open_results, write_results
from kdjax.runs.folders import _same


@dataclass(frozen=True)
class Config:
    out: Path
    epochs: int = 3


class Pair(NamedTuple):
    mean: float
    n: int


def strict(text: str):
    """Reads JSON as other languages do, where NaN is a syntax error."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), None),
        ([np.inf, -np.inf, 1.5], [None, None, 1.5]),
        (np.float32(0.5), 0.5),
        (jnp.bfloat16(0.5), 0.5),
        (jnp.asarray([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.asarray([1.0, np.nan]), [1.0, None]),
        (np.bool_(True), True),
        ((1, "two", None), [1, "two", None]),
        ({"a": {"b": Pair(0.5, 3)}}, {"a": {"b": {"mean": 0.5, "n": 3}}}),
        (Config(Path("runs") / "x"), {"out": "runs/x", "epochs": 3}),
    ],
)
def test_values_become_plain_and_survive_a_strict_reader(tmp_path, value, plain):
    assert as_json(value) == plain
    write_json(tmp_path / "new" / "folder" / "value.json", value)
    text = (tmp_path / "new" / "folder" / "value.json").read_text()
    assert strict(text) == plain
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"runs": [{"model": object()}]},
            r"value\['runs'\]\[0\]\['model'\] must be something that JSON can hold; .*object",
        ),
        ({"seeds": {3: 0.5}}, r"value\['seeds'\] must have strings as keys; got 3"),
        ({"raw": b"bytes"}, r"value\['raw'\] must be .* of type bytes"),
        ({"z": np.asarray([1 + 2j])}, r"value\['z'\] must be something that JSON can hold"),
    ],
)
def test_what_json_cannot_hold_is_named_and_the_file_untouched(tmp_path, value, message):
    (tmp_path / "value.json").write_text("before")
    with pytest.raises(ValueError, match=message):
        write_json(tmp_path / "value.json", value)
    with pytest.raises(ValueError, match=message.replace("value", "record")):
        append_json_line(tmp_path / "value.json", value)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("value.json", "before")]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "value.json", 1)

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(tmp_path / "value.json", 2)
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]
    assert strict((tmp_path / "value.json").read_text()) == 1


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    """The system's own error of a write or an fsync names none."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match=rf"\[Errno 28\] No space left on device: '{tmp_path}/value.json'"):
        write_json(tmp_path / "value.json", 2)
    assert not list(tmp_path.iterdir())


def test_a_line_that_a_full_disk_takes_in_part_is_told_and_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"epoch": 1})

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 12:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(_files, "open", lambda path, mode, buffering: Full(path, mode.replace("b", "")), raising=False)
        with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
            append_json_line(path, {"epoch": 2})
        assert path.read_text() == '{"epoch": 1}\n'
    path.write_text('{"epoch": 1}\n{"epo')  # as a kill leaves it
    append_json_line(path, {"epoch": 2})
    assert path.read_text().splitlines() == ['{"epoch": 1}', '{"epo', '{"epoch": 2}']


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "whole", b"x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_lines_are_added_at_the_end(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    records_written = [{"epoch": epoch, "loss": float("nan"), "name": "naïve\nline"} for epoch in range(3)]
    for record in records_written:
        append_json_line(path, record)
    lines = path.read_text().splitlines()
    assert [strict(line) for line in lines] == [{"epoch": e, "loss": None, "name": "naïve\nline"} for e in range(3)]


def flipped(path, whole):
    """The file with one bit changed, in each byte in turn."""
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        yield place


def test_every_changed_byte_of_results_is_told_with_the_file_or_changes_nothing(tmp_path):
    path = tmp_path / "results.json"
    results, entry = open_results(path, {"commit": "a"})
    entry(0, "alone", lambda: {"accuracy": 0.9625, "loss": float("nan")})
    entry(1, "alone", lambda: [0.1, 1e-300])
    write_results(path, results | {"way": "vmap"})
    whole, told = path.read_bytes(), []
    for _ in flipped(path, whole):
        try:
            again, _ = open_results(path, {"commit": "a"})
        except ValueError as error:
            told.append(str(error))
        else:
            assert again["seeds"] == [{"alone": {"accuracy": 0.9625, "loss": None}}, {"alone": [0.1, 1e-300]}]
            assert again.get("way") == "vmap"
    assert len(told) > 0.6 * len(whole)
    assert all(str(path) in one for one in told)
    for damaged in ("[" * 100_000, "{}", '{"seeds": 3}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"results\.json must hold"):
            open_results(path, {})


def test_every_changed_byte_of_a_configuration_is_told_with_the_file_or_changes_nothing(tmp_path):
    path, config = tmp_path / "config.json", {"epochs": 12, "seeds": 2, "rate": 0.5, "data_digests": {"train": "0a1b"}}
    write_json(path, config)
    whole, told = path.read_bytes(), []
    for _ in flipped(path, whole):
        try:
            _same(path, config)
        except ValueError as error:
            told.append(str(error))
        else:
            assert path.read_bytes() == whole
    assert len(told) > 0.6 * len(whole)
    assert all(str(tmp_path) in one or "seeds of before" in one for one in told)
    path.write_text('{"seeds": "many"}')
    with pytest.raises(ValueError, match=r"config\.json must hold a whole number of seeds.*got 'many'"):
        _same(path, {"seeds": 3})
