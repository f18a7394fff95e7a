"""From a pure step to a compiled one, on one device or on all of a host's: `jit`, `pmap` and `shard_map`, thinly.

`jit_step` is the front door. With a batch placed by `shard_batch`, the same compiled step runs on every device of a mesh.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax._types import Tree
from kdjax.training import TrainStep

AXIS = "data"


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``"data"``, over `devices` (by default all there are)."""
    found = jax.devices() if devices is None else devices
    # make_mesh's own default, explicit axes, puts shardings into types, and Linen's Dense cannot multiply those.
    return jax.make_mesh((len(found),), (AXIS,), axis_types=(AxisType.Auto,), devices=found)


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Places a batch with its first axis split over the mesh.

    Raises:
      ValueError: if the batch does not divide by the number of devices.
    """
    size = _batch_size(batch)
    if size % mesh.size:
        raise ValueError(f"batch must divide by the mesh's {mesh.size} devices; got {size} examples.")
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Places a copy of every array on every device of the mesh: for the state and the teacher."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def jit_step(step: TrainStep) -> Any:
    """Compiles a step whose state is donated: its memory is used again, so keep only the state that comes back."""
    return jax.jit(step, donate_argnums=0)


def pmap_step(step: TrainStep) -> Any:
    """The same under `jax.pmap`; make `step` with ``axis_name="data"``.

    The batch comes split by `split_batch`, [devices, batch per device, …]; state, teacher and objective come and go as
    they are, not replicated. `jax.pmap` is in maintenance; new code wants `jit_step`.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, None, 0), out_axes=None)


def shard_map_step(step: TrainStep, mesh: Mesh) -> Any:
    """The same under `jax.shard_map` and `jax.jit`; make `step` with ``axis_name="data"``."""
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(whole, whole, whole, split), out_specs=whole)
    return jax.jit(mapped, donate_argnums=0)


def split_batch(batch: Tree, devices: int) -> Tree:
    """[batch, …] to [devices, batch / devices, …], in order.

    Raises:
      ValueError: if the batch does not divide by `devices`.

    Example:
      >>> split_batch({"labels": np.arange(6)}, 2)["labels"].tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    size = _batch_size(batch)
    if size % devices:
        raise ValueError(f"batch must divide by devices = {devices}; got {size} examples.")
    return jax.tree.map(lambda array: array.reshape(devices, size // devices, *array.shape[1:]), batch)


def _batch_size(batch: Tree) -> int:
    return int(np.shape(jax.tree.leaves(batch)[0])[0])
