"""Starting a student from a part of its teacher: leaves that fit by path and shape, and channels where it is narrower.

A leaf's path is that in `Weights`, such as ``params/stage1/kernel`` or ``model_state/batch_stats/stage1/norm/mean``. A part
is named by names of it, one or several in a row: ``stage1`` is the stage's parameters and its statistics.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks, _trees
from kdjax._types import Weights


class Transfer(NamedTuple):
    """What became of one leaf.

    Attributes:
      name: the student's path; None for a leaf that only the teacher has.
      source: the teacher's path, before renaming; None for a leaf that only the student has.
      what: ``"copied"``, ``"selected"`` (some of its channels), ``"left"`` (the student keeps its own numbers), or
        ``"unused"`` (the teacher's alone).
      why: the reason, or which channels.
    """

    name: str | None
    source: str | None
    what: str
    why: str


class _Cut(NamedTuple):
    """Which of a teacher's leaf a student takes: along each named axis, these places."""

    places: Mapping[int, np.ndarray]
    why: str


class _Flow(NamedTuple):
    """What a layer hands on: which of so many channels of the teacher the student has, in order."""

    kept: np.ndarray
    of: int


def copy_matching(
    source: Weights,
    target: Weights,
    *,
    only: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    channels: str = "refuse",
    order: Sequence[str] = (),
) -> tuple[Weights, list[Transfer]]:
    """Copies what fits of a teacher's weights into a student's, and says of every leaf what became of it.

    A leaf fits where the student has one of the same path and shape. With channels ``"first"`` or ``"largest"``, the layers
    in `order` are also narrowed: a layer keeps k of its n output channels, and its biases, its statistics and the inputs
    of the next layer follow. "Largest" are the channels whose filters have the largest L1 norm, Σ|w| over all of a
    filter's weights; they stay in their order. Of logits it would choose classes: a layer of fewer classes does not belong
    in `order` then.

    Args:
      source: the teacher's weights.
      target: the student's, as initialised.
      only: regular expressions of the parts that may be copied, as in `kdjax.training.freeze`; none: all.
      rename: parts of the teacher's paths, by name, and what the student calls them. The longest that stands in a path is
        replaced, once.
      channels: ``"refuse"`` copies whole leaves alone; ``"first"`` or ``"largest"`` selects.
      order: the student's layers by name, from the inputs to the logits; needed to select, and not taken from the params,
        because JAX sorts their names. A layer has one kernel ``[…, inputs, outputs]``, as Flax lays it out, and any
        vectors of one number an output. One of vectors alone, such as a normalisation apart, hands on what it gets.

    Returns:
      The student's weights with what was copied, in the student's dtypes; and the report: one `Transfer` a leaf.

    Raises:
      ValueError: if an argument names what is not there, `order` and `channels` do not go together, a layer has several
        kernels or shares a leaf with another, two of the teacher's leaves get one path, or nothing can be copied.

    Example:
      >>> teacher = Weights({"a": {"kernel": jnp.array([[1.0, -9.0, 3.0]])}, "b": {"kernel": jnp.eye(3)[:, :2]}}, {})
      >>> student = Weights({"a": {"kernel": jnp.zeros((1, 2))}, "b": {"kernel": jnp.zeros((2, 2))}}, {})
      >>> weights, report = copy_matching(teacher, student, channels="largest", order=("a", "b"))
      >>> weights.params["a"]["kernel"].tolist(), weights.params["b"]["kernel"].tolist()
      ([[-9.0, 3.0]], [[0.0, 1.0], [0.0, 0.0]])
      >>> for line in transfer_lines(report):
      ...     print(line)
      selected  params/a/kernel  2 of 3 channels
      selected  params/b/kernel  2 of 3 inputs

    Note:
      Supported is a chain: each layer reads the one before it and nothing else, channels are the last axis, and between a
      convolution and a dense layer there may be a flattening, whose rows are positions × channels. Where branches are
      added, ``"first"`` still takes the same channels of each and ``"largest"`` does not. A grouped
      convolution is left as it is where what comes in is known; as the first layer, or after one that was left, its shape
      does not tell it from a convolution of fewer inputs, and `only` must leave it out. A selected first layer computes
      exactly the teacher's maps; a later one computes them without what the missing channels gave.

    Reference:
      Li et al. 2017, Pruning filters for efficient ConvNets, section 3.1 (filters by their L1 norm, each by itself).
      https://arxiv.org/abs/1608.08710
    """
    _checks.one_of("channels", channels, ("refuse", "first", "largest"))
    if (channels == "refuse") != (not order):
        raise ValueError(
            'order must name the layers that are narrowed where channels is "first" or "largest", and none where it is '
            f'"refuse"; got channels {channels!r} and order {tuple(order)!r}.'
        )
    ours = _trees.by_path(target)
    theirs, origins = _renamed(_trees.by_path(source), rename or {})
    allowed = _trees.chosen("only", only, ours) if only else set(ours)
    cuts = _cuts(theirs, ours, order, allowed, channels)
    values, report = [], []
    for name, own in ours.items():
        cut = _whole(theirs[name], own) if name in theirs else "the teacher has no such leaf"
        cut = cuts.get(name, cut) if name in allowed else "not named by only"
        if isinstance(cut, str):
            values.append(own)
            report.append(Transfer(name, origins.get(name), "left", cut))
        else:
            value = _taken(theirs[name], cut)
            values.append(value.astype(own.dtype) if value.dtype != own.dtype else value)
            cast = f"cast from {value.dtype} to {own.dtype}" if value.dtype != own.dtype else ""
            why = ", ".join(filter(None, (cut.why, cast)))
            report.append(Transfer(name, origins[name], "selected" if cut.places else "copied", why))
    if all(entry.what == "left" for entry in report):
        reasons = [f"{entry.name}: {entry.why}" for entry in report]
        raise ValueError(f"source must have something that fits the target; {_trees.listed(reasons, '; ')}.")
    unused = [name for name in theirs if name not in ours]
    report += [Transfer(None, origins[name], "unused", "the student has no such leaf") for name in unused]
    return jax.tree.unflatten(jax.tree.structure(target), values), report


def transfer_lines(report: Sequence[Transfer]) -> list[str]:
    """The report of `copy_matching` as text, one line a leaf: what became of it, its path, and why.

    Example:
      >>> transfer_lines([Transfer("params/a", "params/b", "copied", ""), Transfer("params/c", None, "left", "not there")])
      ['copied  params/a  from params/b', 'left    params/c  not there']
    """
    rows = []
    for entry in report:
        origin = f"from {entry.source}" if entry.name and entry.source not in (None, entry.name) else ""
        rows.append((entry.what, entry.name or entry.source or "", ", ".join(filter(None, (origin, entry.why)))))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"{what:<{widths[0]}}  {name:<{widths[1]}}  {why}".rstrip() for what, name, why in rows]


def _renamed(leaves: Mapping[str, Any], rename: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves by their new paths, and each new path's old one."""
    parts = {old: re.escape(old) for old in sorted(rename, key=len, reverse=True)}
    _trees.chosen("rename", list(parts.values()), leaves)
    moved: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, leaf in leaves.items():
        old, found = next(((old, hit) for old, part in parts.items() if (hit := _trees.within(part, path))), ("", None))
        new = path if found is None else path[: found.start()] + rename[old] + path[found.end() :]
        if new in moved:
            raise ValueError(f"rename must give each leaf a path of its own; {origins[new]} and {path} both get {new}.")
        moved[new], origins[new] = leaf, path
    return moved, origins


def _cuts(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], order: Sequence[str], allowed: set[str], channels: str
) -> dict[str, _Cut | str]:
    """For the leaves of the layers in order, what the student takes, or why it takes nothing."""
    cuts: dict[str, _Cut | str] = {}
    flow: _Flow | None = None
    broken = ""  # the last layer, where it was left
    for layer in order:
        part = re.escape(layer)
        members = _trees.chosen("order", [part], ours)
        if shared := members & cuts.keys():
            raise ValueError(
                f"order must name layers that share no leaf; {layer!r} has {min(shared)}, and another has too."
            )
        everywhere = members | {path for path in theirs if _trees.within(part, path)}
        kernels = [path for path in sorted(everywhere) if theirs.get(path, ours.get(path)).ndim >= 2]
        if len(kernels) > 1:
            raise ValueError(f"order must name layers of one kernel each; {layer!r} has {', '.join(kernels)}.")
        if kernels:
            kernel = kernels[0]
            cut, flow = _kernel_cut(theirs.get(kernel), ours.get(kernel), flow, channels, kernel in allowed, broken)
            cuts[kernel] = cut
            broken = layer if flow is None else ""
        for path in members - set(kernels):
            if path not in theirs:
                continue
            cuts[path] = f"the kernel of {broken} is left" if broken else _vector_cut(theirs[path], ours[path], flow)
    return {path: cut for path, cut in cuts.items() if path in ours and path in theirs}


def _kernel_cut(
    theirs: Any, ours: Any, flow: _Flow | None, channels: str, allowed: bool, broken: str
) -> tuple[_Cut | str, _Flow | None]:
    """What the student takes of a kernel, and what the layer then hands on; None where that is not the teacher's."""
    if not allowed or theirs is None or ours is None:
        return "not in both networks, or not named by only", None
    shapes = f"the teacher's shape is {theirs.shape}, the student's {ours.shape}"
    if theirs.ndim != ours.ndim or _misfit(theirs, ours):
        return _misfit(theirs, ours) or shapes, None
    (*window, rows, outputs), (*own_window, own_rows, own_outputs) = theirs.shape, ours.shape
    if window != own_window or own_outputs > outputs:
        return shapes, None
    if broken and window and rows == 1 and own_outputs < outputs:
        # A kernel of one input may be depthwise: one filter for each channel that comes in, and those are the student's own.
        return f"{shapes}; it may be depthwise, and what comes in from {broken} is the student's own", None
    if flow is None:
        flow = _Flow(np.arange(rows), rows)
    # Only a dense layer may read a flattened map: rows are positions × channels, channels fastest.
    positions = rows // flow.of
    if rows != positions * flow.of or own_rows != positions * len(flow.kept) or (window and positions != 1):
        return f"{shapes}; {len(flow.kept)} of {flow.of} channels come in", None
    inputs = (np.arange(positions)[:, None] * flow.of + flow.kept[None, :]).ravel()
    kept = np.arange(own_outputs)
    if channels == "largest":
        sizes = np.abs(np.asarray(theirs, np.float64)).reshape(-1, outputs).sum(axis=0)
        kept = np.sort(np.argsort(-sizes, kind="stable")[:own_outputs])
    last = len(window) + 1
    narrowed = {last: kept} if own_outputs < outputs else {}
    said = [f"{own_outputs} of {outputs} channels"] if narrowed else []
    if own_rows < rows:
        narrowed[last - 1] = inputs
        said.append(f"{own_rows} of {rows} inputs")
    return _Cut(narrowed, ", ".join(said)), _Flow(kept, outputs)


def _vector_cut(theirs: Any, ours: Any, flow: _Flow | None) -> _Cut | str:
    if flow is None or len(flow.kept) == flow.of or (theirs.shape, ours.shape) != ((flow.of,), flow.kept.shape):
        return _whole(theirs, ours)
    return _misfit(theirs, ours) or _Cut({0: flow.kept}, f"{len(flow.kept)} of {flow.of} channels")


def _whole(theirs: Any, ours: Any) -> _Cut | str:
    if theirs.shape != ours.shape:
        return f"the teacher's shape is {theirs.shape}, the student's {ours.shape}"
    return _misfit(theirs, ours) or _Cut({}, "")


def _taken(theirs: Any, cut: _Cut) -> jax.Array:
    value = jnp.asarray(theirs)
    for axis, places in cut.places.items():
        value = jnp.take(value, places, axis=axis)
    return value


def _misfit(theirs: Any, ours: Any) -> str:
    """Why numbers of the one type cannot stand for the other's; floating-point numbers are cast."""
    floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (theirs, ours))
    same = floating or theirs.dtype == ours.dtype
    return "" if same else f"the teacher's dtype is {theirs.dtype}, the student's {ours.dtype}"
