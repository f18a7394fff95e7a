"""In which order a flattened map lies where weights meet it: found by following the axes through the traced program.

PyTorch holds a map channels first, [batch, channels, height, width]; Flax holds it channels last. Flattened, the same
numbers stand in another order, and so must the rows of the layer that reads them. Every axis is followed as the
parts that it was merged from, and every value by whether PyTorch would hold it channels first.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

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


class _Value(NamedTuple):
    """`leaves`: the parameters that it is computed from, where it depends on nothing else; None where it does."""

    axes: tuple[Axis, ...]
    layout: str
    leaves: frozenset[str] | None


# Each acts on each number by itself, so that axes pass through.
_NAMES = (
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow "
    "reduce_precision rem round rsqrt select_n shift_left sign sin sqrt square stop_gradient sub tan tanh xor "
    "cumsum cumprod cummax cummin cumlogsumexp"
)
_ELEMENTWISE = frozenset(_NAMES.split())
_RESIZING = {"slice", "dynamic_slice", "split", "pad", "reduce_window", "reduce_window_sum", "reduce_window_max"}
_FOLLOWED = {"transpose", "broadcast_in_dim", "squeeze", "reshape"}


class _Follower:
    """Walks a program once and notes what each parameter meets."""

    def __init__(self, last: Collection[str]) -> None:
        self.last = last
        self.met: dict[str, list[Met]] = {}
        self.refused: list[str] = []

    def walk(self, program: Any, constants: Sequence[_Value], inputs: Sequence[_Value]) -> list[_Value]:
        values: dict[Any, _Value] = dict(zip(program.constvars, constants, strict=True))
        values |= zip(program.invars, inputs, strict=True)

        def read(atom: Any) -> _Value:
            return values[atom] if atom in values else _parameter(np.shape(atom.aval), frozenset())

        for equation in program.eqns:
            known = [
                _parameter(np.shape(atom.val), frozenset()) if hasattr(atom, "val") else read(atom)
                for atom in equation.invars
            ]
            shapes = [np.shape(out.aval) for out in equation.outvars]
            results = self.results(equation, known, shapes)
            for out, result, shape in zip(equation.outvars, results, shapes, strict=True):
                sound = _shape(result) == shape
                values[out] = _settled(result if sound else _lost(known, shape)._replace(leaves=result.leaves))
        return [
            _parameter(np.shape(atom.val), frozenset()) if hasattr(atom, "val") else read(atom)
            for atom in program.outvars
        ]

    def results(self, equation: Any, known: list[_Value], shapes: list[tuple[int, ...]]) -> list[_Value]:
        name, settings = equation.primitive.name, equation.params
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            inner = settings.get(key)
            if inner is not None and name not in ("scan", "while", "pallas_call"):
                closed = getattr(inner, "jaxpr", inner)
                if len(closed.invars) == len(known):
                    consts = [_parameter(np.shape(one), frozenset()) for one in getattr(inner, "consts", ())]
                    return self.walk(closed, consts, known)
        data = [value for value in known if value.leaves is None]
        if not data:
            leaves = frozenset().union(*(value.leaves or () for value in known))
            same = next((value for value in known if len(value.axes) == len(shapes[0])), None)
            if name in _FOLLOWED:
                return [self.rule(name, settings, known, shapes[0])._replace(leaves=leaves)]
            if same is not None and _shape(same) == shapes[0] and name in _ELEMENTWISE:
                return [same._replace(leaves=leaves)]
            return [_parameter(shape, leaves) for shape in shapes]
        if name in _ELEMENTWISE:
            return [self.elementwise(known, shapes[0])]
        if name in _RESIZING and known[0].leaves is None:
            return [_resized(known[0], shape) for shape in shapes]
        if name.startswith(("reduce_", "arg")) and "axes" in settings:
            gone = settings["axes"]
            axes = tuple(axis for place, axis in enumerate(data[0].axes) if place not in gone)
            if any(part.role == "channel" for place in gone for part in data[0].axes[place]):
                # Of a row of channels that became a map, a part is left: PyTorch may hold it in another place.
                axes = tuple(
                    tuple(part._replace(role="mixed") if part.role == "channel" else part for part in axis)
                    for axis in axes
                )
            return [data[0]._replace(axes=axes) for _ in shapes]
        if name == "stack":
            new = (Part(len(known), "mixed"),) if len(known) > 1 else ()
            axes = data[0].axes
            return [data[0]._replace(axes=(*axes[: settings["axis"]], new, *axes[settings["axis"] :]))]
        if name in _FOLLOWED | {"dot_general", "conv_general_dilated", "concatenate", "gather"}:
            return [self.rule(name, settings, known, shapes[0])]
        for value in known:  # a loop, for one: what becomes of a parameter inside is not followed
            self.note(value.leaves, (Part(2, "mixed"),), "unsure")
        return [_lost(known, shape) for shape in shapes]

    def rule(self, name: str, settings: Mapping[str, Any], known: list[_Value], shape: tuple[int, ...]) -> _Value:
        first = known[0]
        if name == "transpose":
            return first._replace(axes=tuple(first.axes[place] for place in settings["permutation"]))
        if name == "squeeze":
            return first._replace(
                axes=tuple(axis for place, axis in enumerate(first.axes) if place not in settings["dimensions"])
            )
        if name == "broadcast_in_dim":
            axes: list[Axis] = [(Part(size, "free"),) if size > 1 else () for size in shape]
            for place, target in enumerate(settings["broadcast_dimensions"]):
                if _length(first.axes[place]) == shape[target]:
                    axes[target] = first.axes[place]
            return first._replace(axes=tuple(axes))
        if name == "reshape":
            return _reshaped(first, shape)
        if name == "dot_general":
            return self.product(settings["dimension_numbers"], known[0], known[1])
        if name == "conv_general_dilated":
            return self.convolved(settings["dimension_numbers"], known, shape)
        if name == "concatenate":
            return self.joined(settings["dimension"], known, shape)
        # A look-up in a table of parameters: one row for each position, and nothing that was ever channels first.
        return _unknown(shape, "last") if first.leaves else _lost(known, shape)

    def note(self, leaves: frozenset[str] | None, axis: Axis, layout: str, split: bool = False) -> None:
        for leaf in leaves or ():
            self.met.setdefault(leaf, []).append(Met(axis, layout, split))

    def elementwise(self, known: list[_Value], shape: tuple[int, ...]) -> _Value:
        whole = [value for value in known if len(value.axes) == len(shape)]
        data = [value for value in whole if value.leaves is None]
        if not data:  # data is a scalar, as a mean over all is
            return _unknown(shape, "unsure")
        result = data[0]
        for other in data[1:]:
            result = _both(result, other)
        axes = list(result.axes)
        for place, axis in enumerate(axes):
            met = frozenset[str]()
            for value in whole:
                if value.leaves and value.axes[place]:
                    met |= value.leaves
                elif value.leaves is None and value.axes[place]:
                    met |= value.axes[place][0].leaves
            if _is_free(axis):
                axes[place] = (Part(shape[place], "free", met),) if shape[place] > 1 else ()
            else:
                others = [part.role for at, other in enumerate(result.axes) if at != place for part in other]
                self.note(met, axis, result.layout, "channel" in others and axis[0].role == "channel")
                # A layer that acts on the channels alone has them last in PyTorch too.
                if met & set(self.last) and result.layout == "first" and all(part.role != "space" for part in axis):
                    result = result._replace(layout="unsure")
        return result._replace(axes=tuple(axes))

    def product(self, dimensions: Any, left: _Value, right: _Value) -> _Value:
        (left_sum, right_sum), (left_batch, right_batch) = dimensions
        for value, other, sums, others in ((left, right, left_sum, right_sum), (right, left, right_sum, left_sum)):
            if value.leaves and other.leaves is None:
                # In the order of the parameter's own axes: a flattened kernel has its rows so.
                pairs = sorted(zip(sums, others, strict=True))
                self.note(value.leaves, tuple(part for _, one in pairs for part in other.axes[one]), other.layout)
        batch = [left.axes[place] for place in left_batch]
        free: list[Axis] = []
        along_space = False
        for value, other, sums, skipped, others in (
            (left, right, left_sum, left_batch, right_sum),
            (right, left, right_sum, right_batch, left_sum),
        ):
            for place, axis in enumerate(value.axes):
                if place in sums or place in skipped:
                    continue
                if value.leaves is not None and other.leaves is None:
                    # A layer's outputs are channels; a matrix of constants, as resizing has it, leaves the axis its role.
                    role = (
                        other.axes[others[0]][0].role if not value.leaves and others and other.axes[others[0]] else ""
                    )
                    if value.leaves and len(others) == 1 and {part.role for part in other.axes[others[0]]} == {"space"}:
                        role, along_space = "space", True
                    free.append((Part(_length(axis), role or "channel"),) if axis else ())
                else:
                    free.append(axis)
        layouts = {value.layout for value in (left, right) if value.leaves is None} - {"any"}
        constant = any(value.leaves is not None and not value.leaves for value in (left, right))
        spatial = sum(any(part.role == "space" for part in axis) for axis in free)
        if constant and len(layouts) == 1:
            layout = layouts.pop()
        elif along_space and layouts != {"last"}:
            layout = "unsure"
        elif layouts <= {"last"} or (len(layouts) == 1 and spatial <= 1 and (left.leaves or right.leaves)):
            layout = "last"  # torch.nn.Linear acts on the last axis
        else:
            layout = "unsure"
        return _Value((*batch, *free), layout, None)

    def convolved(self, numbers: Any, known: list[_Value], shape: tuple[int, ...]) -> _Value:
        inputs = known[0]
        _, channel, *space = numbers.lhs_spec
        roles = {part.role for place in space for part in inputs.axes[place]}
        own = {part.role for part in inputs.axes[channel]}
        if known[1].leaves and ((own and "channel" in roles) or own & {"space", "mixed"} or "mixed" in roles):
            self.refused.append(min(known[1].leaves))
        batch, channel, *_ = numbers.out_spec
        named = {batch: "batch", channel: "channel"}
        return _Value(
            tuple((Part(size, named.get(place, "space")),) if size > 1 else () for place, size in enumerate(shape)),
            "first",
            None,
        )

    def joined(self, along: int, known: list[_Value], shape: tuple[int, ...]) -> _Value:
        data = [value for value in known if value.leaves is None]
        result = _resized(data[0], shape)
        for other in data[1:]:
            result = _both(result, _resized(other, shape))
        roles = {part.role for value in data for part in value.axes[along]} or {"free"}
        role = roles.pop() if len(roles) == 1 else "mixed"
        axes = list(result.axes)
        axes[along] = (Part(shape[along], role),)
        return result._replace(axes=tuple(axes))


def orders(
    program: Any, leaves: Sequence[str], inputs: Sequence[tuple[tuple[int, ...], bool]], last: Collection[str] = ()
) -> tuple[dict[str, list[Met]], list[str]]:
    """For each parameter by path, all that it met; and the convolutions whose inputs mix channels and positions.

    Args:
      program: a closed jaxpr of (the parameters, the inputs).
      leaves: the parameters' paths, in the program's order.
      inputs: each input's shape, and whether it may be a map: floating-point numbers.
      last: the parameters that PyTorch has only of values channels last, such as LayerNorm's.
    """
    follower = _Follower(last)
    count = len(leaves)
    shapes = [np.shape(one.aval) for one in program.jaxpr.invars[:count]]
    given = [_parameter(shape, frozenset([path])) for path, shape in zip(leaves, shapes, strict=True)]
    for shape, is_map in inputs:
        plain = len(shape) < 3 or not is_map
        value = _unknown(shape, "first" if len(shape) > 3 else "unsure")
        given.append(
            _Value(tuple((Part(n, "free"),) if n > 1 else () for n in shape), "any", None) if plain else _settled(value)
        )
    constants = [_parameter(np.shape(one), frozenset()) for one in program.consts]
    follower.walk(program.jaxpr, constants, given)
    return follower.met, follower.refused


def _parameter(shape: Sequence[int], leaves: frozenset[str]) -> _Value:
    return _Value(tuple((Part(size, "weight"),) if size > 1 else () for size in shape), "any", leaves)


def _unknown(shape: Sequence[int], layout: str) -> _Value:
    """Nothing is known but the usual places: the batch comes first and the channels last."""
    roles = ["batch", *["space"] * (len(shape) - 2), "channel"][-len(shape) :] if shape else []
    axes = tuple((Part(size, role),) if size > 1 else () for size, role in zip(shape, roles, strict=True))
    return _Value(axes, layout, None)


def _lost(known: Sequence[_Value], shape: Sequence[int]) -> _Value:
    """What an operation gives that is not followed: its last axis is channels only where an axis of channels came in."""
    value = _unknown(shape, "unsure")
    came = {axis for one in known if one.leaves is None for axis in one.axes}
    apart = all(part.role not in ("space", "mixed") for axis in came for part in axis)
    channels = {_length(axis) for axis in came if {part.role for part in axis} == {"channel"}}
    if apart or not value.axes or shape[-1] == 1 or shape[-1] in channels:
        return value
    return value._replace(axes=(*value.axes[:-1], (Part(shape[-1], "mixed"),)))


def _settled(value: _Value) -> _Value:
    """Without positions there is no layout."""
    positions = any(part.role in ("space", "mixed") for axis in value.axes for part in axis)
    return value if positions else value._replace(layout="any")


def _length(axis: Axis) -> int:
    return math.prod(part.size for part in axis)


def _shape(value: _Value) -> tuple[int, ...]:
    return tuple(map(_length, value.axes))


def _resized(value: _Value, shape: tuple[int, ...]) -> _Value:
    """Windows, cuts and padding: an axis of another length keeps its role, and a merged one is lost."""
    axes = []
    for axis, size in zip(value.axes, shape, strict=True):
        roles = {part.role for part in axis} or {"free"}
        new = (Part(size, roles.pop() if len(roles) == 1 else "mixed"),) if size > 1 else ()
        axes.append(axis if _length(axis) == size else new)
    return value._replace(axes=tuple(axes))


def _both(one: _Value, other: _Value) -> _Value:
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
            axes.append((Part(_length(mine), roles.pop()),))  # groups of channels, and the channels again
        else:
            layout = layout if _is_free(mine) or _is_free(theirs) else "unsure"
            axes.append(theirs if _is_free(mine) or (len(theirs) > len(mine) and not _is_free(theirs)) else mine)
    return _Value(tuple(axes), layout, None)


def _is_free(axis: Axis) -> bool:
    return all(part.role == "free" for part in axis)


def _agree(one: Part, other: Part) -> bool:
    return one.role == other.role or "free" in (one.role, other.role)


def _reshaped(value: _Value, shape: tuple[int, ...]) -> _Value:
    rest = [part for axis in value.axes for part in axis]
    layout, axes = value.layout, []
    for size in shape:
        axis: list[Part] = []
        while (have := _length(tuple(axis))) < size:
            part = rest.pop(0)
            want = size // have
            if size % have or (part.size > want and part.size % want) or (part.size <= want and want % part.size):
                return _lost([value], shape)._replace(leaves=value.leaves)
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
    return _Value(tuple(axes), layout, value.leaves)
