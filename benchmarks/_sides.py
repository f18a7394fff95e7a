"""One side's steps: made here, or in a process of its own that waits for orders (run as a script, it is that process).

Orders and answers are pickled, weights and batches first, so that PyTorch's process never loads JAX.
"""

import os
import pickle
import subprocess
import sys

from _work import Batches, Step


def here(params: dict[str, dict], batches: Batches, cores: int, way: str | None, pool_first: bool) -> dict[str, Step]:
    """The pieces of work by name, in PyTorch's `way`, or in kdjax where that is None."""
    if way is None:
        import _kdjax_side

        return _kdjax_side.steps(params, batches)
    import _pytorch_side
    import torch

    torch.set_num_threads(cores)
    return _pytorch_side.steps(params, batches, way, pool_first=pool_first)


def apart(params: dict[str, dict], batches: Batches, cores: int, way: str | None, pool_first: bool) -> dict[str, Step]:
    """As `here`, in a new process, which ends with this one."""
    child = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    orders, answers = child.stdin, child.stdout
    assert orders is not None
    assert answers is not None

    def ask(order: object) -> object:
        pickle.dump(order, orders)
        orders.flush()
        return pickle.load(answers)

    names = ask((params, batches, cores, way, pool_first))
    return {name: lambda count, name=name: ask((name, count)) for name in names}


def _serve() -> None:
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    os.environ["JAX_PLATFORMS"] = "cpu"
    steps = here(*pickle.load(orders))
    answer: object = list(steps)
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            name, count = pickle.load(orders)
        except EOFError:  # the asking process has ended
            return
        answer = steps[name](count)


if __name__ == "__main__":
    _serve()
