"""Weights and states that are split over the devices.

Where the arrays of a tree lie does not change numbers, only memory and what travels: `shard_by_rules` splits a teacher by
rules on its arrays' names, `shard_largest_axis` a state along each array's longest axis. The teacher, the student and the
optimiser's state may lie differently; `jit_step` takes them as they are.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import _checks, _processes, _trees
from kdjax._types import Tree
from kdjax.training.devices import AXIS


def shard_by_rules(tree: Tree, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]) -> Tree:
    """Places each array as the first rule that finds its path says: for a large teacher over a ``"model"`` axis.

    Args:
      tree: `Weights`, or any other tree of arrays.
      mesh: such as ``data_mesh(model=2)``.
      rules: a regular expression, looked for anywhere in paths such as ``params/Dense_0/kernel``, and the axes of the mesh
        over which such an array's axes are split. What no rule finds is copied to every device.

    Returns:
      The tree, placed.

    Raises:
      ValueError: if a rule is no regular expression, finds no array, names an axis that the mesh does not have, has more
        axes than an array, or splits an axis that does not divide; or if several processes do not bring the same arrays.

    Example:
      >>> from kdjax.training import data_mesh
      >>> kernel, bias = np.ones((8, 6)), np.ones(6)
      >>> rules = [("kernel", PartitionSpec(None, "data"))]
      >>> mesh = data_mesh(jax.devices()[:1])
      >>> placed = shard_by_rules({"Dense_0": {"kernel": kernel, "bias": bias}}, mesh, rules)
      >>> placed["Dense_0"]["kernel"].sharding.spec == PartitionSpec(None, "data")
      True
    """
    leaves = _trees.by_path(tree)
    for pattern, spec in rules:
        _trees.check("rules", pattern)
        if not any(re.search(pattern, name) for name in leaves):
            raise ValueError(f"rules: {pattern!r} must find an array; there are {_trees.listed(list(leaves))}.")
        for axis in _axes(spec):
            _checks.one_of(f"rules: the axis of {pattern!r}", axis, list(mesh.axis_names))
    specs = [next((s for pattern, s in rules if re.search(pattern, name)), PartitionSpec()) for name in leaves]
    for (name, leaf), spec in zip(leaves.items(), specs, strict=True):
        _check_divides(name, leaf.shape, spec, mesh)
    return _placed(tree, mesh, specs)


def shard_largest_axis(tree: Tree, mesh: Mesh, *, at_least: int = 1024) -> Tree:
    """Splits each array over the ``"data"`` axis, so that n devices hold one copy of a state and not n.

    Parameters and the optimiser's state are split alike, having the same shapes, and stay split from step to step; the
    compiled step gathers a layer's parameters where it needs them.

    Args:
      tree: such as a `TrainState`.
      mesh: from `data_mesh`.
      at_least: arrays of fewer numbers are copied to every device; to gather a few numbers takes as long as many.

    Returns:
      The tree, each array split along its largest axis that divides by the number of parts; whole where none does.

    Raises:
      ValueError: if several processes do not bring the same arrays.
    """
    return _placed(tree, mesh, [_longest(leaf, mesh.shape[AXIS], at_least) for leaf in _trees.by_path(tree).values()])


def _longest(leaf: jax.Array, parts: int, at_least: int) -> PartitionSpec:
    fit = [axis for axis, size in enumerate(leaf.shape) if size and size % parts == 0]
    if not fit or leaf.size < at_least:
        return PartitionSpec()
    axis = max(fit, key=lambda axis: leaf.shape[axis])
    return PartitionSpec(*[None] * axis, AXIS)


def _placed(tree: Tree, mesh: Mesh, specs: Sequence[PartitionSpec]) -> Tree:
    _trees.check_same(tree)
    pairs = zip(_trees.by_path(tree).values(), specs, strict=True)
    placed = [_processes.place(leaf, NamedSharding(mesh, spec)) for leaf, spec in pairs]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def _check_divides(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise ValueError(f"rules: {tuple(spec)} must have no more axes than {name}, which is {list(shape)}.")
    for axis, (size, axes) in enumerate(zip(shape, spec, strict=False)):
        parts = int(np.prod([mesh.shape[one] for one in _axes((axes,))]))
        if size % parts:
            raise ValueError(
                f"{name}: axis {axis} must divide by the {parts} parts of {axes!r}; got shape {list(shape)}."
            )


def _axes(spec: PartitionSpec | tuple) -> list[str]:
    """The mesh's axes that a spec names; one of an array's axes may be split over several."""
    names: list[str] = []
    for entry in spec:
        names += [] if entry is None else [entry] if isinstance(entry, str) else list(entry)
    return names
