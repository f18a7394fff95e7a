"""One side's steps: made here, or in a process of its own that waits for orders (run as a script, it is that process).

A side is a module beside this one with a function `steps`. Orders and answers are pickled, what `steps` is given first, so
that PyTorch's process never loads JAX.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def here(side: str, *given: Any) -> dict[str, Callable[..., Any]]:
    """The pieces of work by name, as the module called `side` makes them of what it is given."""
    return import_module(side).steps(*given)


def apart(
    side: str, *given: Any, platform: str = "cpu", python: str | Path = sys.executable
) -> dict[str, Callable[..., Any]]:
    """As `here`, in a new process, which ends with this one.

    `platform` is JAX's name of what the process computes on; `python` may be another environment's.
    """
    # Memory as it is needed, since other sides share the device.
    variables = os.environ | {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    child = subprocess.Popen([python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
    orders, answers = child.stdin, child.stdout
    assert orders is not None
    assert answers is not None

    def ask(order: object) -> Any:
        pickle.dump(order, orders)
        orders.flush()
        return pickle.load(answers)

    names = ask((side, *given))
    return {name: lambda *order, name=name: ask((name, order)) for name in names}


def _serve() -> None:
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    steps = here(*pickle.load(orders))
    answer: object = list(steps)
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            name, order = pickle.load(orders)
        except EOFError:  # the asking process has ended
            return
        answer = steps[name](*order)


if __name__ == "__main__":
    _serve()
