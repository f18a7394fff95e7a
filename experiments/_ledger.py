"""A ledger: a file with a line of JSON a result, to which lines are only added, and from which tables are made."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdjax.runs import append_json_line, as_json

Line = dict[str, Any]
FORM: dict[str, type | tuple[type, ...]] = {
    "what": str,  # the script, such as pairs
    "part": str,  # of what it measures, such as a method
    "seed": (int, type(None)),
    "figures": dict,
    "settings": dict,
    "data": dict,  # digests of what was read
    "versions": dict,
    "hardware": dict,
    "commit": (str, type(None)),
    "date": str,
}


def line_of(what: str, part: str, seed: int | None, figures: Mapping[str, Any], about: Mapping[str, Any]) -> Line:
    """What is written down of one result.

    Args:
      what: the script.
      part: of what it measures.
      seed: None where there is none.
      figures: what was measured; None of what was not.
      about: ``"settings"``, ``"data"``, ``"versions"``, ``"hardware"`` and ``"commit"``, as of `provenance`.
    """
    named = {name: about[name] for name in ("settings", "data", "versions", "hardware", "commit")}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"what": what, "part": part, "seed": seed, "figures": dict(figures), **named, "date": date}


def read(ledger: Path, what: str | None = None) -> list[Line]:
    """The lines of one script, or all; no file: no lines. What a killed writer left of a last line is no line.

    Raises:
      ValueError: if a line is not of this form, with the file's name and the line's number.
    """
    lines = []
    texts = ledger.read_bytes().split(b"\n") if ledger.exists() else [b""]
    whole = len(texts) - 1  # what follows the last end of a line is empty, or torn
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number > whole:
                continue
            raise ValueError(
                f"ledger must hold a JSON object in every line; line {number} of {ledger}: {error}."
            ) from None
        if (wrong := _wrong(line)) is not None:
            raise ValueError(f"ledger must hold lines of {', '.join(FORM)}; line {number} of {ledger} {wrong}.")
        lines.append(line)
    return [line for line in lines if what in (None, line["what"])]


def add(ledger: Path, lines: Iterable[Line]) -> None:
    """Appends the lines that are not there yet: a resumption writes none twice, and makes up for what a stop left out.

    Raises:
      ValueError: as `read`, also for a line that is to be added; the file is then as it was.
    """
    # As they come back: NaN as None, tuples as lists.
    there, lines = read(ledger), [as_json(line) for line in lines]
    for line in lines:
        if (wrong := _wrong(line)) is not None:
            raise ValueError(f"A line for a ledger must have {', '.join(FORM)}; this one {wrong}.")
    for line in lines:
        if line not in there:
            _cut_off_what_is_torn(ledger)
            append_json_line(ledger, line)
            there.append(line)


def newest(lines: Iterable[Line], *same: str) -> list[Line]:
    """Of lines that have the same values under these names, the last: what was measured again counts once."""
    return list({json.dumps([line[name] for name in same], sort_keys=True): line for line in lines}.values())


def _wrong(line: Any) -> str | None:
    if not isinstance(line, dict):
        return f"is {line!r:.60}"
    if odd := line.keys() ^ FORM.keys():
        return f"{'lacks' if odd & FORM.keys() else 'has'} {', '.join(sorted(odd & FORM.keys() or odd))}"
    wrong = [name for name, kind in FORM.items() if not isinstance(line[name], kind) or isinstance(line[name], bool)]
    return f"has {wrong[0]} {line[wrong[0]]!r:.60}" if wrong else None


def _cut_off_what_is_torn(ledger: Path) -> None:
    data = ledger.read_bytes() if ledger.exists() else b""
    end = data.rfind(b"\n") + 1
    try:
        json.loads(data[end:] or b"0")
    except (ValueError, RecursionError):
        os.truncate(ledger, end)
