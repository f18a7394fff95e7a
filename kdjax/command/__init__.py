"""The command ``kdjax``: a comparison, its report, its verification, and its student, without a line of Python.

It stands above `kdjax.runs`, and imports that only when it is asked for something: a command that says what is missing must
start where it is.
"""

from kdjax.command._main import main as main

__all__ = ["main"]
