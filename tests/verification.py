"""The verification report: what every loss is held to, measured now, and written as a page only if all of it holds.

    make verification

Takes about twenty minutes of one core. The laws are those that the tests assert (kdjax/testing); here the largest error
of each is written down. The page is either whole or not written: a law that does not hold, an export that has no row,
or a cell that would be empty ends the command with a list of what is wrong and exit status 1.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Four devices and checked shapes, as in the tests, before anything of kdjax is imported.
import conftest  # noqa: F401

# isort: split
import golden_values
import laws_masked
import machine
import numpy as np
import verification_page
from cases import CASES, NOT_LOSSES
from costs import BATCHES, cost

from kdjax import losses
from kdjax.testing import _finite, _transforms, _values

EXAMPLES = 10_000
PRECISIONS = {"float64": np.float64, "float32": np.float32}


def measured(case):
    """The loss's cells by column, and what does not hold."""
    found = verification_page.Row(case)
    for named, precision in PRECISIONS.items():
        golden = [golden_values.agreement_with_golden(name, precision) for name in golden_values.golden_of(case)]
        found.errors[f"golden value, {named}"] = [value for value, _ in golden]
        found.errors[f"golden gradient, {named}"] = [gradient for _, gradient in golden]
        found.errors[f"reference value, {named}"] = [_values.agreement_with_reference(case, precision)]
    found.errors["reference gradient"] = [_values.gradient_of_reference(case)]
    found.errors["numerical gradient"] = [_values.numerical_gradient(case)]
    found.errors["order of the batch"] = [_values.order_of_the_batch(case)]
    for change in case.invariances:
        found.invariances[change] = _values.invariance(case, change)
    for way, error in _transforms.transformed(case).items():
        found.errors[way] = [error]
    found.errors["split over 4 devices"] = [*_transforms.split_batch(case).values()]
    found.errors["leading axes"] = [_values.with_leading_axes(case)] if case.leading_axes else []
    rubbish = (0.0, 1e30, float("nan")) if case.takes_where else ()
    found.errors["in the step"] = [*laws_masked.left_out_by_the_step(case.name).values()]
    found.errors["left out"] = [_values.left_out(case, one) for one in rubbish]
    for dtype in _finite.DTYPES:
        found.bad_points[dtype.__name__] = _finite.at_bad_points(case, dtype)
    for batch in BATCHES:
        found.costs[batch] = cost(case, batch)
    return found


def wrong(rows, exports, record):
    """What keeps the page from being written, in words; nothing should."""
    unknown = sorted({*exports} - {row.case.name for row in rows} - {*NOT_LOSSES})
    found = [
        f"{name} is exported and has neither a row in cases.py nor a reason in cases.NOT_LOSSES" for name in unknown
    ]
    for row in rows:
        for law, errors in {**row.errors, **{change.__name__: [e] for change, e in row.invariances.items()}}.items():
            found += [
                f"{row.case.name}: {law}: {error.error:.2g} is over {error.limit:g}"
                for error in errors
                if not error.holds
            ]
        for dtype, points in row.bad_points.items():
            found += [
                f"{row.case.name}: {dtype}: {point}: {verification_page.said(row.case.settings[number])}: {'; '.join(f)}"
                for (point, number), f in points.items()
                if f
            ]
        found += [
            f"{row.case.name}: nothing to say under {column!r}" for column, cell in row.cells().items() if not cell
        ]
        found += _wrong_in_record(row.case, record)
    return found


def read_record(path):
    """By property and loss, the last line on it, with the head of the run that it is of."""
    found, head = {}, {}
    for line in map(json.loads, path.read_text().splitlines()):
        if "law" in line:
            found[line["law"], line["loss"]] = {**head, **line}
        else:
            head = line
    return found


def _wrong_in_record(case, record):
    """Of the run of the slow property tests: all of it there, of the loss as it is, and without a failure."""
    lines = {law: line for (law, loss), line in record.items() if loss == case.name}
    code = machine.fingerprint_of(case.name)
    again = f"run test_losses_properties.py again with -k {case.name}"
    found = [
        f"{case.name}: the record of properties has no {law}; {again}"
        for law in verification_page.PROPERTIES
        if law not in lines and (case.zero_at_equality or law != verification_page.AT_EQUALITY)
    ]
    for law, line in lines.items():
        if line["failed"]:
            found.append(f"{case.name}: {law} failed in the recorded run")
        if line["code"] != code:
            found.append(f"{case.name}: the record's {law} is of other code than now; {again}")
    examples = sum(line["examples"] for line in lines.values())
    if examples < EXAMPLES:
        found.append(f"{case.name}: the record of properties has {examples:,} examples of at least {EXAMPLES:,}")
    return found


def main(arguments=None, cases=CASES, exports=losses.__all__):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the page to write, a Markdown file")
    parser.add_argument(
        "--properties", type=Path, required=True, help="the record of slow runs of test_losses_properties.py"
    )
    options = parser.parse_args(arguments)
    record = read_record(options.properties) if options.properties.exists() else {}
    # What is stale already is said before the measurement, not after it.
    stale = [fault for case in cases if record for fault in _wrong_in_record(case, record)]
    if stale:
        print(*stale, f"Nothing was measured, and {options.out} is not written.", sep="\n", file=sys.stderr)
        return 1
    rows = []
    for case in sorted(cases, key=lambda case: case.name):
        print(case.name, file=sys.stderr, flush=True)
        rows.append(measured(case))
    if not record:
        print(
            f"There is no record of slow property tests in {options.properties}; the tests' file says how to make one."
        )
    faults = wrong(rows, exports, record)
    if faults:
        print(
            *faults,
            f"{options.out} is not written: {len(faults)} of its claims do not hold.",
            sep="\n",
            file=sys.stderr,
        )
        return 1
    unfinished = options.out.with_name(options.out.name + ".unfinished")
    unfinished.write_text(verification_page.page(rows, record), encoding="utf-8")
    os.replace(unfinished, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
