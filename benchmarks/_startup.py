"""One start of Python, for startup.py: what importing kdjax adds, or how long a first distillation step takes.

python benchmarks/_startup.py import|step prints seconds: two imports', or those of the step after the imports.
"""

import json
import sys
import time


def imports() -> tuple[float, float]:
    """Of jax and optax, and then of kdjax."""
    started = time.perf_counter()
    import jax  # noqa: F401
    import optax  # noqa: F401

    others = time.perf_counter()
    import kdjax  # noqa: F401

    return others - started, time.perf_counter() - others


def first_step() -> float:
    """Article C's networks are made, the step is compiled or read from JAX's cache, and one update is done."""
    import _kdjax_side
    from _work import STUDENT, TEACHER, random_batches

    batches = random_batches(32)
    started = time.perf_counter()
    params = {name: _kdjax_side.initial_params(name) for name in (TEACHER, STUDENT)}
    _kdjax_side.steps(params, batches)["distillation"](1)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps({"import": imports, "step": first_step}[sys.argv[1]]()))
