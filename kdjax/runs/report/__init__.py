"""What a run found: the table that compares its networks, the sentences under it, and the page with its figures."""

from kdjax.runs.report._table import comparison as comparison
from kdjax.runs.report._table import comparison_lines as comparison_lines
from kdjax.runs.report._table import comparison_table as comparison_table
from kdjax.runs.report._write import write_report as write_report

__all__ = ["comparison", "comparison_lines", "comparison_table", "write_report"]
