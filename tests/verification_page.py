"""The verification report's text: rows of measurements to a Markdown page."""

import inspect
import math
import re
from dataclasses import dataclass, field

import machine
import numpy as np
from cases import NOT_LOSSES
from costs import BATCHES, shapes
from golden_values import golden_of

from kdjax.testing import Case

NO_GOLDEN = "no golden value published"
PROPERTIES = {
    "test_finite_and_bounded_below": "finite, never below its least value",
    "test_agrees_with_the_slow_reference": "agrees with the slow reference",
    "test_order_of_the_batch_is_only_an_order": "the batch's order is only an order",
    "test_equal_inputs_are_a_minimum": "equal inputs are a minimum",
}
AT_EQUALITY = "test_equal_inputs_are_a_minimum"
# The smallest power of ten that is told apart, so that another machine's rounding changes little on the page.
SMALLEST = {"float64": -12, "gradient": -8, "float32": -6}

VALUES = {
    "golden values, float64": ("float64", "golden value, float64", "golden gradient, float64"),
    "golden values, float32": ("float32", "golden value, float32", "golden gradient, float32"),
    "NumPy reference, float64": ("float64", "reference value, float64"),
    "NumPy reference, float32": ("float32", "reference value, float32"),
    "gradient, by the reference's slopes": ("gradient", "reference gradient"),
    "gradient, by its own slopes": ("gradient", "numerical gradient"),
}
TRANSFORMED = {
    "order of the batch": ("float32", "order of the batch"),
    "split over 4 devices": ("float32", "split over 4 devices"),
    "`jit`": ("float32", "jit"),
    "`vmap`": ("float32", "vmap"),
    "`scan`": ("float32", "scan"),
}
# By column: the law, and what stands where it does not apply.
SHAPES = {
    "any axes lead": ("leading axes", "[batch] alone"),
    "among others that do not count": ("left out", "each for itself"),
    "so in a train step": ("in the step", "its connector refuses a mask"),
}

_AT = f"at batch {', '.join(map(str, BATCHES))}"
COSTS = {
    f"operations {_AT}": ("flops", "", "†"),
    f"moved {_AT}": ("bytes_moved", "B", "†"),
    f"held {_AT}": ("bytes_held", "B", ""),
}

HEAD = """# Verification report of the losses

{summary}

## How it was measured

Every function of `kdjax.losses` that is a loss has a row in each of these tables. `make verification` measures all of it
anew and writes this page; it writes nothing where one law does not hold. The laws are the ones that the tests ask
(`kdjax/testing`), of the same rows (`tests/cases*.py`).

- Software: {software}
- Hardware: {hardware}, with 4 XLA CPU devices
- Code of the losses: `{code}`, a fingerprint that docstrings and comments do not change

How to read an error: the largest |measured − wanted| / (|wanted| + 1 % of the largest wanted), rounded up to a power of
ten; for gradients 100 % instead of 1 %, since small components of a gradient are sums that cancel, and for invariances
5 %. Powers below {float64} in float64, {gradient} for numerical gradients and {float32} in float32 are not told apart.
"""


@dataclass
class Row:
    """All that was measured of one loss."""

    case: Case
    errors: dict = field(default_factory=dict)  # by law
    invariances: dict = field(default_factory=dict)  # by change
    bad_points: dict = field(default_factory=dict)  # by dtype, then by point and setting: what is wrong there
    costs: dict = field(default_factory=dict)  # by batch

    def cells(self):
        """What the page says of it, by column."""
        cells = {}
        for column, (kind, *names) in {**VALUES, **TRANSFORMED}.items():
            parts = [_largest([e.error for e in self.errors[name]], kind) for name in names]
            both = "; gradient ".join(parts) if all(parts) else ""
            cells[column] = both if golden_of(self.case) or not column.startswith("golden") else NO_GOLDEN
        for column, (name, otherwise) in SHAPES.items():
            errors = [one.error for one in self.errors[name]]
            cells[column] = _largest(errors, "float32") if errors else otherwise
        for dtype, points in self.bad_points.items():
            cells[f"finite, {dtype}"] = f"{sum(not faults for faults in points.values())} of {len(points)}"
        kinds = dict.fromkeys(name_of(change).split(":")[0].lower() for change in self.case.invariances)
        largest = _largest([measured.error for measured in self.invariances.values()], "float32")
        cells["invariances"] = f"{', '.join(kinds)}: {largest}" if kinds else "none declared"
        loops = any(cost.loops for cost in self.costs.values())
        for column, (name, unit, mark) in COSTS.items():
            numbers = [_with_unit(getattr(cost, name), unit) + mark * loops for cost in self.costs.values()]
            cells[column] = " / ".join(numbers)
        return cells


def page(rows, record):
    cells = {row.case.name: row.cells() for row in rows}
    finite = [f"finite, {dtype}" for dtype in rows[0].bad_points]
    parts = [
        HEAD.format(
            **machine.described(),
            **{kind: f"1e{power}" for kind, power in SMALLEST.items()},
            summary=_summary(rows, record),
        ),
        "## Right values and gradients\n",
        "Golden values: of the methods' widely used implementations, in float64, value and gradient (`tests/golden`). "
        "NumPy reference: loops written from the papers, at every setting of hyper-parameters in the row. Its slopes: "
        "central differences of it, in every number of every array. Its own slopes: those of the loss, in every array and "
        "every hyper-parameter that may be traced.\n",
        _table(["loss", *VALUES], cells),
        "\n## Finite everywhere\n",
        "Value and gradient at each bad point and each setting of hyper-parameters, the defaults among them: how many of "
        "how many passed. There the value is also that of the same input in float32, and the gradient of its input's dtype. "
        "The points are listed below, the settings under each loss.\n",
        _table(["loss", *finite], cells),
        "\nThe points: "
        + ", ".join(dict.fromkeys(point for row in rows for by in row.bad_points.values() for point, _ in by))
        + ".\n",
        "## Invariances, transformations, devices\n",
        "What may not change the value, by kind, and the largest change seen (each is named under its loss below). A batch "
        "split over 4 devices, gathered as the train step does, against the whole on one: values and gradient, under `jit` "
        "with a sharded batch, `shard_map` and `pmap`. `jit`, `vmap` and `scan` against plain calls.\n",
        _table(["loss", "invariances", *TRANSFORMED], cells),
        "\n## Axes and masks\n",
        "Any axes lead: [2, 3, …] against the same six entries as [6, …], values and gradients. Among others that do not "
        "count: a batch with three examples more, filled with 0, 1e30 or NaN, that `where` leaves out, against the batch "
        "alone: values, gradients, and 0 for the three. A loss that gives each example a number for itself takes no "
        "`where`. So in a train step: twelve digits among four whose pixels are NaN, whose label is no class and which "
        "`mask` leaves out, against the twelve alone, on one device and on four: every metric, and the gradient of all "
        "parameters as one. Tokens and pixels, labels that are missing, and other kinds of step: "
        "`tests/test_training_masks.py`.\n",
        _table(["loss", *SHAPES], cells),
        "\n## Cost\n",
        "Of the value and the gradient for the student in float32, as XLA estimates it for the program that it compiled for "
        "the CPU: floating-point operations, bytes moved by all operations together (an array that two operations read "
        "counts twice), and bytes held at once for what lies between inputs and outputs. Nothing is run, and another "
        "device's program differs. In a program marked † XLA counts what a loop's body does once, however often it runs: "
        "there the true number is larger. Shapes are named under each loss.\n",
        _table(["loss", *COSTS], cells),
        "\n## Examples drawn by hypothesis\n",
        _properties(record, [row.case for row in rows]),
        "\n## Each loss\n",
        *(static_section(row.case) + "\n" + _invariances(row) for row in rows),
        "## What is exported and is no loss\n",
        "\n".join(f"- `{name}` {what}. Held by `tests/{file}`." for name, (what, file) in NOT_LOSSES.items()),
        "",
    ]
    return "\n".join(parts)


def _summary(rows, record):
    """What the page shows, in ten lines."""

    def largest(kind, *names):
        return _largest([one.error for row in rows for name in names for one in row.errors[name]], kind)

    asked = {name: sum(bool(row.errors[name]) for row in rows) for name in ("leading axes", "left out", "in the step")}
    points = [not faults for row in rows for by in row.bad_points.values() for faults in by.values()]
    invariances = [one.error for row in rows for one in row.invariances.values()]
    examples = sum(
        record[law, row.case.name]["examples"] for row in rows for law in PROPERTIES if (law, row.case.name) in record
    )
    ways = [name for kind, *names in TRANSFORMED.values() for name in names]
    golden = sum(bool(golden_of(row.case)) for row in rows)
    return "\n".join(
        [
            "| what was asked | of how many | result |",
            "| --- | --- | --- |",
            f"| losses with a row in every table | {len(rows)} | all |",
            f"| value as the methods' own code has it, float64 | {golden} | {largest('float64', 'golden value, float64')} |",
            f"| its gradient, likewise | {golden} | {largest('float64', 'golden gradient, float64')} |",
            f"| value of a slow NumPy reference, float64 | {len(rows)} | {largest('float64', 'reference value, float64')} |",
            f"| gradient of that reference, by its slopes | {len(rows)} | {largest('gradient', 'reference gradient')} |",
            f"| value and gradient finite at bad points, in three dtypes | {len(points):,} | {sum(points):,} |",
            f"| declared invariances | {len(invariances)} | {_largest(invariances, 'float32')} |",
            f"| the same under jit, vmap and scan, and split over 4 devices | {len(rows)} | {largest('float32', *ways)} |",
            f"| any axes lead, where a loss takes more than [batch] | {asked['leading axes']} | "
            f"{largest('float32', 'leading axes')} |",
            f"| examples that do not count change nothing, where a loss takes `where` | {asked['left out']} | "
            f"{largest('float32', 'left out')} |",
            "| what a mask leaves out changes no number of a train step, on 1 and 4 devices | "
            f"{asked['in the step']} | {largest('float32', 'in the step')} |",
            f"| examples drawn by hypothesis | {examples:,} | none failed |",
        ]
    )


def static_section(case):
    """What is known of a loss without measuring it."""
    text = inspect.getdoc(case.function)
    return "\n".join(
        [
            f"### {case.name}\n",
            f"{text.splitlines()[0]}\n",
            f"- Paper and common code: {docstring_section(text, 'Note')}",
            f"- Reference: {docstring_section(text, 'Reference')}",
            f"- Golden cases: {', '.join(f'`{name}`' for name in golden_of(case)) or NO_GOLDEN}",
            f"- Hyper-parameters tried: {'; '.join(map(said, case.settings))}",
            f"- Shapes under cost: {shapes(case)}",
        ]
    )


def said(setting):
    """Hyper-parameters in words."""
    shown = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in setting.items()}
    return f"`{', '.join(f'{name}={value}' for name, value in shown.items())}`" if shown else "it has none"


def docstring_section(text, heading):
    """A section as one paragraph."""
    found = re.search(rf"^{heading}:\n((?:(?:  .*)?(?:\n|\Z))+)", text, re.MULTILINE)
    assert found, f"the docstring has no {heading}"
    return " ".join(found[1].split())


def name_of(change):
    """An invariance's name is its docstring's first line: a kind, a colon, and what is done."""
    return inspect.getdoc(change).splitlines()[0]


def _invariances(row):
    changes = [f"    - {name_of(change)} {_largest([m.error], 'float32')}" for change, m in row.invariances.items()]
    head = "- What may not change the value, and how much it did:\n"
    return "\n".join([head, *(changes or ["    - none declared"]), "\n"])


def _properties(record, cases):
    of_page = {
        (law, case.name): record[law, case.name] for case in cases for law in PROPERTIES if (law, case.name) in record
    }
    examples = {place: line["examples"] for place, line in of_page.items()}
    rows = {
        case.name: {
            **{said: f"{examples.get((law, case.name), 0):,}" for law, said in PROPERTIES.items()},
            "all": f"{sum(examples.get((law, case.name), 0) for law in PROPERTIES):,}",
        }
        for case in cases
    }
    for case in cases:
        if not case.zero_at_equality:
            rows[case.name][PROPERTIES[AT_EQUALITY]] = "not 0 there"
    minutes = math.ceil(sum(line["seconds"] for line in of_page.values()) / 60)
    days, software, hardware = (
        " and ".join(dict.fromkeys(of(line) for line in of_page.values()))
        for of in (
            lambda line: line["date"],
            lambda line: line["machine"]["software"],
            lambda line: line["machine"]["hardware"],
        )
    )
    return (
        f"Run on {days} with the code of this page, each loss by its own fingerprint: {sum(examples.values()):,} "
        f"examples in {minutes} minutes, on a machine that did other work too.\n\n"
        f"- Software: {software}\n- Hardware: {hardware}\n"
        "- Command: `HYPOTHESIS_PROFILE=slow KDJAX_PROPERTY_RECORD=tests/property_run.jsonl python -m pytest "
        "tests/test_losses_properties.py`; with `-k` and a loss's name it runs that one again\n\n"
        "Counted are the examples on which the property was asked and held; the tests count, not hypothesis. Floating-point "
        "inputs are drawn: for the reference, the order, gradients at equal inputs and all of `top_k_kl` at equality from "
        "steps of 1/4, full of ties and zeros, for the others from all float16 up to 1e4.\n\n"
        + _table(["loss", *PROPERTIES.values(), "all"], rows)
    )


def _largest(errors, kind):
    """As a power of ten that is not less."""
    if not errors:
        return ""
    largest = max(errors)
    if not math.isfinite(largest):
        return ""
    power = SMALLEST[kind] if largest <= 10 ** SMALLEST[kind] else math.ceil(math.log10(largest))
    return f"≤ 1e{power}"


def _with_unit(number, unit):
    """Two digits: 1.3 MB."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{float(f'{number / size:.2g}'):g} {prefix}{unit}"
    return f"{float(f'{number:.2g}'):g} {unit}".rstrip()


def _table(columns, cells):
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, row in cells.items():
        lines.append(f"| {' | '.join([f'`{name}`', *(row[column] for column in columns[1:])])} |")
    return "\n".join(lines) + "\n"
