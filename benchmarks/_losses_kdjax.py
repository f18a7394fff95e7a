"""kdjax's side of the comparison of losses: value and gradient of the batch's mean under `jax.jit`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _losses import COSTS
from _losses_sides import Result, Run, answers, read
from _memory import by_xla


def steps(file: Path) -> dict[str, Callable[..., Any]]:
    """Beside the answers of both sides: `temporary_mb`, of a case's program by XLA."""
    # The caller's own thread computes, as PyTorch's does: a call that is waited for need not wake another.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    cases = read(file, jnp.asarray)
    programs: dict[tuple[str, int], jax.stages.Compiled] = {}

    def made(name: str, batch: int) -> tuple[Run, Callable[[], Result]]:
        work = COSTS[name]
        program = programs[name, batch] = work.compiled(batch)
        structure = jax.tree.structure(jax.eval_shape(lambda: work.arrays(batch)))
        arrays = jax.tree.unflatten(structure, cases[name, batch])

        def run(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(program(*arrays))

        def result() -> Result:
            (value, _), gradients = program(*arrays)
            return float(value), [np.asarray(gradient) for gradient in gradients]

        return run, result

    return answers(made) | {"temporary_mb": lambda name, batch: by_xla(programs[name, batch])["temporary_mb"]}
