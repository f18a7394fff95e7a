"""What a run is: `compare` trains and compares, and what it wrote is recorded, resumed and reported."""

from kdjax.runs.compare import compare as compare
from kdjax.runs.folders import open_folder as open_folder
from kdjax.runs.recipes import Recipe as Recipe
from kdjax.runs.records import append_json_line as append_json_line
from kdjax.runs.records import as_json as as_json
from kdjax.runs.records import digest as digest
from kdjax.runs.records import open_results as open_results
from kdjax.runs.records import provenance as provenance
from kdjax.runs.records import write_bytes as write_bytes
from kdjax.runs.records import write_json as write_json
from kdjax.runs.records import write_results as write_results
from kdjax.runs.remeasured import Measured as Measured
from kdjax.runs.remeasured import remeasure as remeasure
from kdjax.runs.report import write_report as write_report
from kdjax.runs.stopping import StoppedError as StoppedError
from kdjax.runs.stopping import stopped_by_signals as stopped_by_signals

__all__ = [
    "Measured",
    "Recipe",
    "StoppedError",
    "append_json_line",
    "as_json",
    "compare",
    "digest",
    "open_folder",
    "open_results",
    "provenance",
    "remeasure",
    "stopped_by_signals",
    "write_bytes",
    "write_json",
    "write_report",
    "write_results",
]
