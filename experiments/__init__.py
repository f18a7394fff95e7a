"""One readable script a claim; `_loop` and `_three_runs` are what they share."""

import sys
from pathlib import Path

# `python experiments/NAME.py` puts this folder first on Python's path. There compression.py would hide the standard
# library's `compression` (Python 3.14), which JAX looks for on every version; so the folder goes. Scripts therefore import
# from `experiments` before anything that imports JAX.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
