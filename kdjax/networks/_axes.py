"""A value that is followed through a network: what its axes are made of, and how PyTorch would lay it out.

An axis is the parts that it was merged from, row-major; a value is its axes, and whether PyTorch would hold it channels
first. Here is what becomes of both where values are merged, cut or combined.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """What an axis is made of, row-major.

    Attributes:
      size: how long it is.
      role: batch, space, channel, weight (of parameters alone), mixed, or free: whatever it meets.
      leaves: of a free part, the parameters that it has met already, and that will meet what it meets.
    """

    size: int
    role: str
    leaves: frozenset[str] = frozenset()


Axis = tuple[Part, ...]  # parts of size 1 are left out


class Met(NamedTuple):
    """What a leaf met: the axis that its own axes run along, and whether PyTorch would hold that value channels first.

    Attributes:
      axis: the parts, in the order in which Flax has them.
      layout: ``"first"``, ``"last"``, ``"any"`` where there is no position, or ``"unsure"``.
      split: whether another axis of the value has channels too, as where a row of channels becomes a map.
    """

    axis: Axis
    layout: str
    split: bool = False

    def rows(self, layout: str | None = None) -> np.ndarray | None:
        """For each of Flax's rows, which of PyTorch's it is; None where they are the same ones in either layout."""
        sizes, order = [part.size for part in self.axis], self._channels_first()
        if order == list(range(len(order))) or (layout or self.layout) in ("last", "any"):
            return None
        theirs = np.arange(math.prod(sizes)).reshape([sizes[place] for place in order])
        return theirs.transpose(np.argsort(order)).ravel()

    @property
    def unsure(self) -> bool:
        """Whether the order cannot be told, and matters."""
        order = self._channels_first()
        return self.unknown or (self.layout == "unsure" and order != list(range(len(order))))

    @property
    def unknown(self) -> bool:
        """Whether its parts are not told apart, so that not even who knows the layout could reorder them here."""
        roles = {part.role for part in self.axis}
        return "mixed" in roles or {"free", "space"} <= roles

    def _channels_first(self) -> list[int]:
        # What was a part of the batch, such as the frames of a video, stays in front.
        rank = {"batch": 0, "channel": 1}
        return sorted(range(len(self.axis)), key=lambda place: (rank.get(self.axis[place].role, 2), place))


class Value(NamedTuple):
    """`leaves`: the parameters that it is computed from, where it depends on nothing else; None where it does."""

    axes: tuple[Axis, ...]
    layout: str
    leaves: frozenset[str] | None


def parameter(shape: Sequence[int], leaves: frozenset[str]) -> Value:
    return Value(tuple((Part(size, "weight"),) if size > 1 else () for size in shape), "any", leaves)


def unknown(shape: Sequence[int], layout: str) -> Value:
    """Nothing is known but the usual places: the batch comes first and the channels last."""
    roles = ["batch", *["space"] * (len(shape) - 2), "channel"][-len(shape) :] if shape else []
    axes = tuple((Part(size, role),) if size > 1 else () for size, role in zip(shape, roles, strict=True))
    return Value(axes, layout, None)


def lost(known: Sequence[Value], shape: Sequence[int]) -> Value:
    """What an operation gives that is not followed: its last axis is channels only where an axis of channels came in."""
    value = unknown(shape, "unsure")
    came = {axis for one in known if one.leaves is None for axis in one.axes}
    apart = all(part.role not in ("space", "mixed") for axis in came for part in axis)
    channels = {length(axis) for axis in came if {part.role for part in axis} == {"channel"}}
    if apart or not value.axes or shape[-1] == 1 or shape[-1] in channels:
        return value
    return value._replace(axes=(*value.axes[:-1], (Part(shape[-1], "mixed"),)))


def settled(value: Value) -> Value:
    """Without positions there is no layout."""
    positions = any(part.role in ("space", "mixed") for axis in value.axes for part in axis)
    return value if positions else value._replace(layout="any")


def length(axis: Axis) -> int:
    return math.prod(part.size for part in axis)


def shape_of(value: Value) -> tuple[int, ...]:
    return tuple(map(length, value.axes))


def resized(value: Value, shape: tuple[int, ...]) -> Value:
    """Windows, cuts and padding: an axis of another length keeps its role, and a merged one is lost."""
    axes = []
    for axis, size in zip(value.axes, shape, strict=True):
        roles = {part.role for part in axis} or {"free"}
        new = (Part(size, roles.pop() if len(roles) == 1 else "mixed"),) if size > 1 else ()
        axes.append(axis if length(axis) == size else new)
    return value._replace(axes=tuple(axes))


def both(one: Value, other: Value) -> Value:
    """Of two values that are added or multiplied: what is known of either; "unsure" where they differ."""
    layouts = {one.layout, other.layout} - {"any"}
    tokens = sum(any(part.role == "space" for part in axis) for axis in one.axes) == 1
    if layouts == {"last", "unsure"} and tokens:  # PyTorch adds what lies alike, and of tokens it is known how
        layouts = {"last"}
    layout = layouts.pop() if len(layouts) == 1 else "unsure" if layouts else "any"
    axes = []
    for mine, theirs in zip(one.axes, other.axes, strict=True):
        if not theirs or not mine:
            axes.append(mine or theirs)
        elif [part.size for part in mine] == [part.size for part in theirs]:
            axes.append(tuple(b if a.role == "free" else a for a, b in zip(mine, theirs, strict=True)))
            layout = layout if all(map(_agree, mine, theirs)) else "unsure"
        elif len(roles := {part.role for part in (*mine, *theirs)} - {"free"}) == 1:
            axes.append((Part(length(mine), roles.pop()),))  # groups of channels, and the channels again
        else:
            layout = layout if is_free(mine) or is_free(theirs) else "unsure"
            axes.append(theirs if is_free(mine) or (len(theirs) > len(mine) and not is_free(theirs)) else mine)
    return Value(tuple(axes), layout, None)


def is_free(axis: Axis) -> bool:
    return all(part.role == "free" for part in axis)


def _agree(one: Part, other: Part) -> bool:
    return one.role == other.role or "free" in (one.role, other.role)


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    rest = [part for axis in value.axes for part in axis]
    layout, axes = value.layout, []
    for size in shape:
        axis: list[Part] = []
        while (have := length(tuple(axis))) < size:
            part = rest.pop(0)
            want = size // have
            if size % have or (part.size > want and part.size % want) or (part.size <= want and want % part.size):
                return lost([value], shape)._replace(leaves=value.leaves)
            if part.size > want:
                rest.insert(0, Part(part.size // want, part.role))
                part = Part(want, part.role)
                layout = "unsure" if part.role == "space" and layout == "first" else layout
            axis.append(part)
        roles = [part.role for part in axis]
        # Positions in one row, [batch, positions, channels], as of a transformer's tokens: it is channels last there.
        if layout == "first" and roles.count("space") > 1 and "channel" not in roles:
            layout = "unsure"
        axes.append(tuple(axis))
    return Value(tuple(axes), layout, value.leaves)
