"""The certificate: what every loss is held to, measured now, and written as a page only if all of it holds.

    make certificate

Takes about five minutes of one core. The laws are those that the tests assert (laws*.py); here the largest error of each
is written down. The page is either whole or not written: a law that does not hold, an export that has no row, or a cell
that would be empty ends the command with a list of what is wrong and exit status 1.
"""

import argparse
import os
import sys
from pathlib import Path

# Four devices and checked shapes, as in the tests, before anything of kdjax is imported.
import conftest  # noqa: F401

# isort: split
import certificate_page
import laws
import laws_transformed
import numpy as np
from case import NOT_LOSSES
from cases import CASES
from costs import BATCHES, cost

from kdjax import losses

EXAMPLES = 10_000
PRECISIONS = {"float64": np.float64, "float32": np.float32}


def measured(case):
    """The loss's cells by column, and what does not hold."""
    found = certificate_page.Row(case)
    for name, precision in PRECISIONS.items():
        golden = [laws.agreement_with_golden(golden, precision) for golden in case.golden]
        found.errors[f"golden value, {name}"] = [value for value, _ in golden]
        found.errors[f"golden gradient, {name}"] = [gradient for _, gradient in golden]
        found.errors[f"reference value, {name}"] = [laws.agreement_with_reference(case, precision)]
    found.errors["reference gradient"] = [laws.gradient_of_reference(case)]
    found.errors["numerical gradient"] = [laws.numerical_gradient(case)]
    found.errors["order of the batch"] = [laws.order_of_the_batch(case)]
    for change in case.invariances:
        found.invariances[change] = laws.invariance(case, change)
    for way, error in laws_transformed.transformed(case).items():
        found.errors[way] = [error]
    found.errors["split over 4 devices"] = [*laws_transformed.split_batch(case).values()]
    for dtype in laws.DTYPES:
        found.bad_points[dtype.__name__] = laws.at_bad_points(case, dtype)
    for batch in BATCHES:
        found.costs[batch] = cost(case, batch)
    return found


def wrong(rows, exports, record=None):
    """What keeps the page from being written, in words; nothing should."""
    unknown = sorted({*exports} - {row.case.name for row in rows} - {*NOT_LOSSES})
    found = [
        f"{name} is exported and has neither a row in cases.py nor a reason in case.NOT_LOSSES" for name in unknown
    ]
    for row in rows:
        for law, errors in {**row.errors, **{change.__name__: [e] for change, e in row.invariances.items()}}.items():
            found += [
                f"{row.case.name}: {law}: {error.error:.2g} is over {error.limit:g}"
                for error in errors
                if not error.holds
            ]
        for dtype, points in row.bad_points.items():
            found += [f"{row.case.name}: {dtype}: {point}: {'; '.join(f)}" for point, f in points.items() if f]
        found += [
            f"{row.case.name}: nothing to say under {column!r}" for column, cell in row.cells().items() if not cell
        ]
        examples = EXAMPLES if record is None else sum(n for (_, loss), n in record[1].items() if loss == row.case.name)
        if examples < EXAMPLES:
            found.append(
                f"{row.case.name}: the record of properties has {examples:,} examples of at least {EXAMPLES:,}"
            )
    return found


def main(arguments=None, cases=CASES, exports=losses.__all__):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the page to write, a Markdown file")
    parser.add_argument("--properties", type=Path, help="the record of a run of test_losses_properties.py to report")
    options = parser.parse_args(arguments)
    record = certificate_page.read_record(options.properties) if options.properties else None

    rows = []
    for case in sorted(cases, key=lambda case: case.name):
        print(case.name, file=sys.stderr, flush=True)
        rows.append(measured(case))
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
    unfinished.write_text(certificate_page.page(rows, record), encoding="utf-8")
    os.replace(unfinished, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
