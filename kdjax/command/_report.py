"""``kdjax report``: the page of a finished run, written again."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from kdjax.command._settings import Common


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Write the report of a finished run again: report.html, and its figures as PNG."""

    run: Positional[Path]
    """the run's folder"""


def report(settings: Report) -> int:
    """Writes it and names it."""
    from kdjax.runs import write_report

    print(f"Report: {write_report(settings.run)}")
    return 0
