"""In which order a flattened map lies where weights meet it: found by following the axes through the traced program.

PyTorch holds a map channels first, [batch, channels, height, width]; Flax holds it channels last. Flattened, the same
numbers stand in another order, and so must the rows of the layer that reads them. Every axis is followed as the
parts that it was merged from, and every value by whether PyTorch would hold it channels first.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.networks._axes import (
    Axis,
    Met,
    Part,
    Value,
    both,
    is_free,
    length,
    lost,
    parameter,
    reshaped,
    resized,
    settled,
    shape_of,
    unknown,
)

# Each acts on each number by itself, so that axes pass through.
_NAMES = (
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow "
    "reduce_precision rem round rsqrt select_n shift_left sign sin sqrt square stop_gradient sub tan tanh xor"
)
# Running sums keep an axis's order, unless channels and positions share it.
_CUMULATIVE = frozenset(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"])
_ELEMENTWISE = frozenset(_NAMES.split()) | _CUMULATIVE
_RESIZING = {"slice", "dynamic_slice", "split", "pad", "reduce_window", "reduce_window_sum", "reduce_window_max"}
_FOLLOWED = {"transpose", "broadcast_in_dim", "squeeze", "reshape"}


class _Follower:
    """Walks a program once and notes what each parameter meets."""

    def __init__(self, last: Collection[str]) -> None:
        self.last = last
        self.met: dict[str, list[Met]] = {}
        self.refused: list[str] = []

    def walk(self, program: Any, constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        values: dict[Any, Value] = dict(zip(program.constvars, constants, strict=True))
        values |= zip(program.invars, inputs, strict=True)

        def read(atom: Any) -> Value:
            return values[atom] if atom in values else parameter(np.shape(atom.aval), frozenset())

        for equation in program.eqns:
            known = [
                parameter(np.shape(atom.val), frozenset()) if hasattr(atom, "val") else read(atom)
                for atom in equation.invars
            ]
            shapes = [np.shape(out.aval) for out in equation.outvars]
            results = self.results(equation, known, shapes)
            for out, result, shape in zip(equation.outvars, results, shapes, strict=True):
                sound = shape_of(result) == shape
                values[out] = settled(result if sound else lost(known, shape)._replace(leaves=result.leaves))
        return [
            parameter(np.shape(atom.val), frozenset()) if hasattr(atom, "val") else read(atom)
            for atom in program.outvars
        ]

    def results(self, equation: Any, known: list[Value], shapes: list[tuple[int, ...]]) -> list[Value]:
        name, settings = equation.primitive.name, equation.params
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            inner = settings.get(key)
            if inner is not None and name not in ("scan", "while", "pallas_call"):
                closed = getattr(inner, "jaxpr", inner)
                if len(closed.invars) == len(known):
                    consts = [parameter(np.shape(one), frozenset()) for one in getattr(inner, "consts", ())]
                    return self.walk(closed, consts, known)
        if name == "cond" and settings.get("branches_platforms") is not None:
            # jax.lax.platform_dependent: all compute the same, and the form for any platform is the plainest.
            platforms = settings["branches_platforms"]
            body = settings["branches"][platforms.index(None) if None in platforms else 0]
            consts = [parameter(np.shape(one), frozenset()) for one in body.consts]
            return self.walk(body.jaxpr, consts, known[1:])
        data = [value for value in known if value.leaves is None]
        if not data:
            leaves = frozenset().union(*(value.leaves or () for value in known))
            same = next((value for value in known if len(value.axes) == len(shapes[0])), None)
            if name in _FOLLOWED:
                return [self.rule(name, settings, known, shapes[0])._replace(leaves=leaves)]
            if same is not None and shape_of(same) == shapes[0] and name in _ELEMENTWISE:
                return [same._replace(leaves=leaves)]
            return [parameter(shape, leaves) for shape in shapes]
        if name in _CUMULATIVE and len(known[0].axes[settings["axis"]]) > 1:
            return [lost(known, shapes[0])]
        if name in _ELEMENTWISE:
            return [self.elementwise(known, shapes[0])]
        if name in _RESIZING and known[0].leaves is None:
            return [resized(known[0], shape) for shape in shapes]
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
        return [lost(known, shape) for shape in shapes]

    def rule(self, name: str, settings: Mapping[str, Any], known: list[Value], shape: tuple[int, ...]) -> Value:
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
                if length(first.axes[place]) == shape[target]:
                    axes[target] = first.axes[place]
            return first._replace(axes=tuple(axes))
        if name == "reshape":
            return reshaped(first, shape)
        if name == "dot_general":
            return self.product(settings["dimension_numbers"], known[0], known[1])
        if name == "conv_general_dilated":
            return self.convolved(settings["dimension_numbers"], known, shape)
        if name == "concatenate":
            return self.joined(settings["dimension"], known, shape)
        # A look-up in a table of parameters: one row for each position, and nothing that was ever channels first.
        return unknown(shape, "last") if first.leaves else lost(known, shape)

    def note(self, leaves: frozenset[str] | None, axis: Axis, layout: str, split: bool = False) -> None:
        for leaf in leaves or ():
            self.met.setdefault(leaf, []).append(Met(axis, layout, split))

    def elementwise(self, known: list[Value], shape: tuple[int, ...]) -> Value:
        whole = [value for value in known if len(value.axes) == len(shape)]
        data = [value for value in whole if value.leaves is None]
        if not data:  # data is a scalar, as a mean over all is
            return unknown(shape, "unsure")
        result = data[0]
        for other in data[1:]:
            result = both(result, other)
        axes = list(result.axes)
        for place, axis in enumerate(axes):
            met = frozenset[str]()
            for value in whole:
                if value.leaves and value.axes[place]:
                    met |= value.leaves
                elif value.leaves is None and value.axes[place]:
                    met |= value.axes[place][0].leaves
            if is_free(axis):
                axes[place] = (Part(shape[place], "free", met),) if shape[place] > 1 else ()
            else:
                others = [part.role for at, other in enumerate(result.axes) if at != place for part in other]
                self.note(met, axis, result.layout, "channel" in others and axis[0].role == "channel")
                # A layer that acts on the channels alone has them last in PyTorch too.
                if met & set(self.last) and result.layout == "first" and all(part.role != "space" for part in axis):
                    result = result._replace(layout="unsure")
        return result._replace(axes=tuple(axes))

    def product(self, dimensions: Any, left: Value, right: Value) -> Value:
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
                    free.append((Part(length(axis), role or "channel"),) if axis else ())
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
        return Value((*batch, *free), layout, None)

    def convolved(self, numbers: Any, known: list[Value], shape: tuple[int, ...]) -> Value:
        inputs = known[0]
        _, channel, *space = numbers.lhs_spec
        roles = {part.role for place in space for part in inputs.axes[place]}
        own = {part.role for part in inputs.axes[channel]}
        if known[1].leaves and ((own and "channel" in roles) or own & {"space", "mixed"} or "mixed" in roles):
            self.refused.append(min(known[1].leaves))
        batch, channel, *_ = numbers.out_spec
        named = {batch: "batch", channel: "channel"}
        return Value(
            tuple((Part(size, named.get(place, "space")),) if size > 1 else () for place, size in enumerate(shape)),
            "first",
            None,
        )

    def joined(self, along: int, known: list[Value], shape: tuple[int, ...]) -> Value:
        data = [value for value in known if value.leaves is None]
        result = resized(data[0], shape)
        for other in data[1:]:
            result = both(result, resized(other, shape))
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
    given = [parameter(shape, frozenset([path])) for path, shape in zip(leaves, shapes, strict=True)]
    for shape, is_map in inputs:
        plain = len(shape) < 3 or not is_map
        value = unknown(shape, "first" if len(shape) > 3 else "unsure")
        given.append(
            Value(tuple((Part(n, "free"),) if n > 1 else () for n in shape), "any", None) if plain else settled(value)
        )
    constants = [parameter(np.shape(one), frozenset()) for one in program.consts]
    follower.walk(program.jaxpr, constants, given)
    return follower.met, follower.refused
