"""From a pure step to a compiled one, on one device, on all of a host's, or on those of several hosts.

`jit_step` is the front door. With a batch placed by `shard_batch`, the same compiled step runs on every device of a mesh.
Several hosts: call ``jax.distributed.initialize()`` first in every process; `data_mesh` then spans them all, and each
process gives `shard_batch` its own `process_rows` of every batch. `pmap_step` and `shard_map_step` are thin wrappers.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax import _checks, _processes, _trees
from kdjax._types import Tree
from kdjax.training._step import TrainStep
from kdjax.training.compiler import Options, with_options

AXIS = "data"
MODEL_AXIS = "model"


def data_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh over `devices`, by default those of all processes: one axis, ``"data"``, or two, ``"data"`` and ``"model"``.

    Args:
      devices: what to span. Each process's stand together, so that its part of the batch is one block of rows.
      model: on how many neighbouring devices a network's arrays may be split; the batch is split over the rest.

    Raises:
      ValueError: if there are no devices, or `model` does not divide the number of devices of each process.
    """
    if devices is not None and not np.size(devices):
        raise ValueError("devices must hold one device or more; got none.")
    for device in () if devices is None else np.ravel(devices).tolist():
        _checks.instance("devices", device, jax.Device, "of jax.devices()")
    found = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    here = len(found) // _processes_of(found)
    if model < 1 or here % model:
        raise ValueError(f"model must divide the {here} devices of a process; got {model}.")
    shape, axes = ((len(found),), (AXIS,)) if model == 1 else ((-1, model), (AXIS, MODEL_AXIS))
    # Explicit axes would put shardings into types, and Linen's Dense cannot multiply those.
    return Mesh(np.array(found).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


def process_rows(batch_size: int, *, process_index: int | None = None, process_count: int | None = None) -> slice:
    """The rows of a whole batch that one process feeds: block number `process_index` of `process_count` equal ones.

    Cut from indices that all processes know, as `data.epoch_indices` gives them, every batch has the same examples in
    the same order, however many processes there are.

    Args:
      batch_size: examples in the whole batch.
      process_index: by default this process.
      process_count: by default all there are.

    Raises:
      ValueError: if a number is not whole, the batch does not divide by the number of processes, or there is no such
        process.

    Example:
      >>> [np.arange(8)[process_rows(8, process_index=i, process_count=2)].tolist() for i in range(2)]
      [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    _checks.whole("batch_size", batch_size, 1)
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _checks.whole("process_index", index, 0)
    _checks.whole("process_count", count, 1)
    if index >= count:
        raise ValueError(f"process_index must lie between 0 and process_count - 1 = {count - 1}; got {index}.")
    if batch_size % count:
        raise ValueError(f"batch_size must divide by the {count} processes; got {batch_size}.")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Places a batch with its first axis split over the mesh's ``"data"`` axis.

    Args:
      batch: arrays [batch, …]. With several processes, this one's part: the `process_rows` of the whole.
      mesh: from `data_mesh`.

    Returns:
      The whole batch, each device holding its rows.

    Raises:
      ValueError: if the batch does not divide by the number of devices that it is split over, or something in it has no
        axis of examples, or another number of them.
    """
    _checks.instance("mesh", mesh, Mesh, "a mesh, as data_mesh makes it")
    size = _batch_size(batch)
    processes = _processes_of(mesh.devices.flat)
    parts = mesh.shape[AXIS] // processes
    if size % parts:
        where = "the mesh's" if processes == 1 else "this process's"
        raise ValueError(f"batch must divide by {where} {parts} devices; got {size} examples.")
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if processes == 1:
        return jax.device_put(batch, sharding)

    def whole(array: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, (processes * size, *array.shape[1:]))

    return jax.tree.map(whole, batch)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Places a copy of every array on every device of the mesh: for the state and the teacher.

    Raises:
      ValueError: if several processes do not bring the same, naming the leaves.
    """
    _checks.instance("mesh", mesh, Mesh, "a mesh, as data_mesh makes it")
    whole = NamedSharding(mesh, PartitionSpec())
    if _processes_of(mesh.devices.flat) == 1:
        return jax.device_put(tree, whole)
    _trees.check_same(tree)
    return jax.tree.map(lambda leaf: _processes.place(leaf, whole), tree)


def jit_step(step: TrainStep, *, compiler_options: Options = None) -> Any:
    """Compiles a step whose state is donated: its memory is used again, so keep only the state that comes back.

    What comes back lies where the state lay: on every device, or split as `shard_by_rules` or `shard_largest_axis` did.

    Args:
      step: any ``step(state, teacher, objective, batch) -> (state, metrics)``.
      compiler_options: XLA's for this program, such as `kdjax.training.compiler_options` gives; None: those of the process.

    Raises:
      ValueError: if `compiler_options` are no options by name; later, if state and teacher share an array, whose memory the
        step would take, or the batch holds what is no array of numbers.
    """
    _checks.function("step", step, "step(state, teacher, objective, batch)")
    compiled = jax.jit(step, donate_argnums=0, **with_options(compiler_options))
    looked_at = None  # which teacher: a state that comes back shares nothing with any

    @functools.wraps(step)
    def call(state: Any, teacher: Any, objective: Any, batch: Any) -> Any:
        nonlocal looked_at
        numbers_only("batch", batch)
        if looked_at != id(teacher):
            apart(state, teacher)
            looked_at = id(teacher)
        return compiled(state, teacher, objective, batch)

    call.__dict__.update({name: getattr(compiled, name) for name in ("lower", "trace", "_cache_size")})
    return call


def apart(state: Tree, teacher: Tree) -> None:
    """A ValueError where the teacher's arrays are the state's, which a compiled step takes."""
    taken = {id(leaf) for leaf in jax.tree.leaves(state)}
    for path, leaf in jax.tree.leaves_with_path(teacher):
        if id(leaf) in taken and isinstance(leaf, jax.Array):
            raise ValueError(
                "teacher must not share arrays with state, whose memory the step uses again; it shares "
                f"teacher{jax.tree_util.keystr(path)}. Copy it: jax.tree.map(jax.numpy.copy, teacher)."
            )


def numbers_only(name: str, batch: Tree) -> None:
    """A ValueError where a batch by name holds words or objects."""
    for entry, value in batch.items() if isinstance(batch, Mapping) else ():
        for leaf in jax.tree.leaves(value):
            kind = getattr(leaf, "dtype", None)
            if isinstance(value, list) and isinstance(leaf, int | float):
                raise ValueError(f'{name}["{entry}"] must be an array; got a list of numbers. numpy.asarray makes one.')
            if isinstance(leaf, str | bytes) or (isinstance(kind, np.dtype) and kind.kind in "OSUMm"):
                raise ValueError(
                    f'{name}["{entry}"] must hold numbers; got {kind or type(leaf).__name__}. Number the classes, and '
                    "leave out what no network or term reads."
                )


def pmap_step(step: TrainStep) -> Any:
    """The same under `jax.pmap`, in one process; make `step` with ``axis_name="data"``.

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
      ValueError: if `devices` is not a whole number above 0, the batch does not divide by it, or as `shard_batch` says.

    Example:
      >>> split_batch({"labels": np.arange(6)}, 2)["labels"].tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    _checks.whole("devices", devices, 1)
    size = _batch_size(batch)
    if size % devices:
        raise ValueError(f"batch must divide by devices = {devices}; got {size} examples.")
    return jax.tree.map(lambda array: array.reshape(devices, size // devices, *array.shape[1:]), batch)


def _batch_size(batch: Tree) -> int:
    sizes = {name: np.shape(leaf)[:1] for name, leaf in _trees.by_path(batch).items()}
    found = set(sizes.values())
    if len(found) != 1 or () in found:
        shown = {name: size[0] if size else "no axis" for name, size in sizes.items()}
        raise ValueError(f"batch must hold arrays [batch, …], all of as many examples; got {shown}.")
    return int(found.pop()[0])


def _processes_of(devices: Any) -> int:
    return len({device.process_index for device in devices})
