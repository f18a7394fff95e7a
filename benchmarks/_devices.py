"""The distillation step on several fake devices of one CPU: a side of `_sides.apart`.

Each number of devices needs a process of its own.
"""

from functools import partial

import jax
from _cases import make
from _work import STUDENT, TEACHER, Step, random_batches

from experiments._networks import make_model
from kdjax.training import data_mesh, jit_step, replicate, shard_batch, shard_map_step
from kdjax.training.devices import AXIS


def steps(devices: int, batch: int) -> dict[str, Step]:
    """By wrapper."""
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = data_mesh()
    student, teacher = make_model(STUDENT), make_model(TEACHER)
    runners = {}
    for name, compiled, axis_name in (
        ("jit_step", jit_step, None),
        ("shard_map_step", partial(shard_map_step, mesh=mesh), AXIS),
    ):
        case = make(student, teacher, random_batches(batch), compiled=compiled, axis_name=axis_name)
        state, weights = replicate((case.state, case.teacher), mesh)
        split = [shard_batch(one, mesh) for one in case.batches]
        runners[name] = case._replace(state=state, teacher=weights, batches=split).runner()
    return runners
