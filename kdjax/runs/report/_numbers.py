"""The report's tables: what was trained, with what objective, and what each network measures and costs."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.metrics import mean_interval
from kdjax.runs.report._maps import NAMES, TITLES
from kdjax.runs.report._table import measure_of, over_seeds, percent, transferred

Row = tuple[str, str, Mapping[str, str]]
"""A quantity, a note on how it was measured, and its value by network."""


def rows(results: Mapping[str, Any], kept: Mapping[str, Any] | None) -> list[Row]:
    """What is compared, one quantity a row; what was not measured in any network is left out."""
    measure, seeds = measure_of(results), len(results["seeds"])
    over = f"mean ± 95 % interval, {seeds} seeds" if seeds > 1 else "one seed: no interval"
    tests = f", {kept['examples']:,} test examples" if kept else ""
    found: list[Row] = [
        (
            f"test {measure['name']}{', %' if measure['percent'] else ''}",
            over + tests,
            {name: headline(results, name) for name in NAMES},
        )
    ]
    records = [seed[name] for name in NAMES for seed in results["seeds"]]
    # What is not finite is null in one of them, and may be a number in another.
    for key in dict.fromkeys(key for record in records for key in record):
        if key in (measure["name"], "seconds", "agreement", "rate", "skipped"):
            continue
        if not any(isinstance(record.get(key), int | float) for record in records):
            continue
        found.append((f"test {key.replace('_', ' ')}", over, {name: _plain(results, name, key) for name in NAMES}))
    found.append(
        ("agrees with the teacher, %", over, {name: _agreement(results, name) for name in NAMES if name != "teacher"})
    )
    found.append(("transfer rate, %", "of the mean values", {"distilled": transferred(results)}))
    if kept and "calibration" in kept:
        own = kept["calibration"]
        note = f"15 bins, n = {int(own['teacher']['n']):,}, seed 0"
        found.append(("ECE, %", note, {name: _known(own[name]["calibration"], 100, ".2f") for name in NAMES}))
        note = f"n = {int(own['teacher']['n']):,}, seed 0"
        found.append(("Brier score", note, {name: _known(own[name]["brier"], 1, ".4f") for name in NAMES}))
    found.append(("parameters", "", {name: f"{results['parameters'][name]:,}" for name in NAMES}))
    if kept:
        found += _costs(kept)
    found.append(("training, s", "mean of the seeds", {name: _seconds(results, name) for name in NAMES}))
    return [row for row in found if any(value not in ("", "not measured") for value in row[2].values())]


def _costs(kept: Mapping[str, Any]) -> list[Row]:
    costs, device = kept["costs"], kept["device"]
    one, several = (costs["teacher"][what] for what in ("one", "several"))
    calls = sorted({costs[name]["one"]["calls"] for name in NAMES})
    times = f"{calls[0]}" if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"
    return [
        ("weights", "bytes, as held", {name: scaled(costs[name]["weight_bytes"], "B") for name in NAMES}),
        ("FLOPs", "of one example, counted by XLA", {name: scaled(costs[name]["flops"], "") for name in NAMES}),
        (
            "latency, ms",
            f"median (5th to 95th percentile) of {times} calls, batch {one['batch']}, on {device}",
            {name: "{median_ms:.3g}\n({p05_ms:.2g}–{p95_ms:.2g})".format(**costs[name]["one"]) for name in NAMES},
        ),
        (
            "throughput",
            f"examples a second, batch {several['batch']}, on {device}",
            {name: scaled(costs[name]["several"]["per_second"], "/s") for name in NAMES},
        ),
    ]


def headline(results: Mapping[str, Any], name: str) -> str:
    """The first measure of a network, over the seeds of its own."""
    measure = measure_of(results)
    values, own = over_seeds(results, name, measure["name"]), np.count_nonzero(over_seeds(results, name, "seconds"))
    values = values if own == len(values) else values[:1]
    return percent(values) if measure["percent"] else rounded(values)


def _plain(results: Mapping[str, Any], name: str, key: str) -> str:
    values, own = over_seeds(results, name, key), np.count_nonzero(over_seeds(results, name, "seconds"))
    return rounded(values if own == len(values) else values[:1])


def rounded(values: np.ndarray) -> str:
    """Mean ± interval, as many decimals as the interval's second digit has; of one value four digits."""
    if not np.isfinite(values).all():
        return "not measured"
    interval = mean_interval(values)
    if interval.n == 1 or not 0 < interval.half_width < np.inf:
        return f"{interval:.4g}"
    return f"{interval:.{int(np.clip(1 - np.floor(np.log10(interval.half_width)), 0, 9))}f}"


def _known(value: float | None, scale: int, spec: str) -> str:
    """JSON has null for what is not finite."""
    return "not measured" if value is None else format(scale * value, spec)


def _agreement(results: Mapping[str, Any], name: str) -> str:
    return percent(over_seeds(results, name, "agreement"))


def _seconds(results: Mapping[str, Any], name: str) -> str:
    each = over_seeds(results, name, "seconds")
    own = each[each > 0]
    return f"{own.mean():.1f}" if own.size else "given"


def scaled(value: int | float | None, unit: str) -> str:
    """A number to three digits, with a thousand's prefix."""
    if value is None or not np.isfinite(value):
        return "not measured"
    for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if abs(value) >= 1000**power:
            return f"{value / 1000**power:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip()


def compared(results: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str:
    """The table of `rows`."""
    lines = []
    for title, note, values in rows(results, kept):
        cells = "".join(f'<td class="number">{_cell(values.get(name, ""))}</td>' for name in NAMES)
        small = f"<small>{html.escape(note)}</small>" if note else ""
        lines.append(f'<tr><th scope="row">{html.escape(title)}{small}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col"><i class="key {name}"></i>{TITLES[name]}</th>' for name in NAMES)
    return _wide(f"<tr><td></td>{heads}</tr>", lines)


def _cell(text: str) -> str:
    """A value, and under it what belongs to it."""
    value, _, under = html.escape(text).partition("\n")
    mean, pm, half = value.partition(" ± ")
    value = f'{mean} <span class="range">±\u00a0{half}</span>' if pm else value
    return f"{value}<small>{under}</small>" if under else value


def distilled(results: Mapping[str, Any]) -> str:
    """What each network is, for how long it was trained, and what it minimised."""
    config, lines = results.get("config", {}), []
    for name in NAMES:
        own = config.get(f"{name}_recipe")
        if own is None:
            continue
        objective = " + ".join(plain_term(text) for text in own["objective"].values())
        if name == "teacher" and not any(seed["teacher"]["seconds"] for seed in results["seeds"]):
            objective = f"given, not trained here ({objective})"
        beside = f", with connectors {', '.join(own['connectors'])}" if own.get("connectors") else ""
        if its := own.get("peer"):
            beside += f", together with {its['network'] or 'a peer'}, each the other's teacher"
        cells = (own["network"] or "unnamed", objective + beside, f"{own['epochs']:,}", f"{own['batch_size']:,}")
        kinds = ("", ' class="code"', ' class="number"', ' class="number"')
        row = "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True))
        lines.append(f'<tr><th scope="row"><i class="key {name}"></i>{TITLES[name]}</th>{row}</tr>')
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("network", "minimises", "epochs", "batch"))
    return _wide(f"<tr><td></td>{heads}</tr>", lines) if lines else ""


def plain_term(text: str) -> str:
    """A term as the run's config records it, for people; what is not of that form stays as it is.

    Example:
      >>> plain_term("0.3 × Partial(<function cross_entropy>)")
      '0.3 × cross_entropy'
    """
    text = re.sub(r"Partial\(<function ([\w.<>]+)>\)", r"\1", text)

    def match(found: re.Match) -> str:
        settings = re.findall(r"'(\w+)': ([^,}]+)", found["numbers"])
        settings += re.findall(r"\('(\w+)', ([^)]+)\)", found["settings"])
        arrays = re.findall(r"'([\w.]+)'", found["arrays"])
        usual = arrays == ["student.logits", "teacher.logits"]
        return f"{found['loss']}({', '.join((*(() if usual else arrays), *(f'{k}={v}' for k, v in settings)))})"

    form = (
        r"Match\(loss=<function (?P<loss>[\w.<>]+)>, arrays=\((?P<arrays>.*?)\), named_places=\(.*?\), "
        r"numbers=\{(?P<numbers>.*?)\}, settings=\((?P<settings>.*)\)\)"
    )
    return re.sub(form, match, text)


def provenance(results: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    hardware = results.get("hardware", {})
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    pairs: Sequence[tuple[str, Any]] = (
        ("command", results.get("command")),
        ("commit", results.get("commit")),
        ("versions", versions),
        ("hardware", ", ".join(f"{name} {value}" for name, value in hardware.items() if name != "load")),
        ("digests of the data", ", ".join(f"{name} {value}" for name, value in results.get("data", {}).items())),
    )
    told = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in pairs if value)
    return f"<dl>{told}</dl>" if told else ""


def _wide(head: str, lines: Iterable[str]) -> str:
    table = f'<table class="results"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'
