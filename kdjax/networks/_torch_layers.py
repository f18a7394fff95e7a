"""Layers on both sides: what a state dict has, what a Linen module wants, and how the numbers are laid out in each."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _trees

Key = tuple[str, tuple[int, ...], frozenset[str]]  # kind, shape as Flax has it, and which of weight, bias, mean, var


class Entry(NamedTuple):
    """An array of the source, or some rows of one: its name there, and which part, in words."""

    name: str
    array: np.ndarray
    why: str = ""


class Source(NamedTuple):
    """A layer of the state dict: what it may be, by `keys`, the likeliest first."""

    name: str
    entries: dict[str, Entry]
    keys: tuple[Key, ...]


class Target(NamedTuple):
    """A layer of the module: the paths of its leaves, by weight, bias, mean and var."""

    path: str
    key: Key
    leaves: dict[str, str]
    remark: str = ""


_MEMBERS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias", "mean": "mean", "var": "var"}
_PARTS = ("query", "key", "value")


def sources(entries: Mapping[str, np.ndarray], alone: Sequence[str]) -> list[Source]:
    """The state dict's layers in its order. Entries in `alone` are taken by themselves, as they are."""
    grouped: dict[str, dict[str, Entry]] = {}
    for name, array in entries.items():
        prefix, _, member = name.rpartition(".")
        if name in alone:
            grouped[name] = {"alone": Entry(name, array)}
        elif member in ("in_proj_weight", "in_proj_bias") and array.shape[0] % 3 == 0:
            # torch.nn.MultiheadAttention stacks the three projections.
            size = array.shape[0] // 3
            for place, part in enumerate(_PARTS):
                why = f"rows {place * size} to {(place + 1) * size - 1} of {3 * size}"
                own = grouped.setdefault(f"{prefix}.{part}".lstrip("."), {})
                own[member.removeprefix("in_proj_")] = Entry(name, array[place * size : (place + 1) * size], why)
        elif member in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            part = next(part for part in _PARTS if part[0] == member[0])
            grouped.setdefault(f"{prefix}.{part}".lstrip("."), {})["weight"] = Entry(name, array)
        elif member in _MEMBERS:
            grouped.setdefault(prefix, {})[_MEMBERS[member]] = Entry(name, array)
        else:
            grouped[name] = {"weight": Entry(name, array)}
    found = []
    for name, own in grouped.items():
        if "alone" in own:
            own = {"weight": own["alone"]}
            keys: tuple[Key, ...] = (_alone(own["weight"].array.shape),)
        else:
            keys = _keys(own)
        found.append(Source(name, own, keys))
    return found


def _alone(shape: Sequence[int]) -> Key:
    """A bare parameter; axes of length 1 that come first do not count."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return "parameter", tuple(shape), frozenset(["weight"])


def _keys(entries: Mapping[str, Entry]) -> tuple[Key, ...]:
    has = frozenset(entries)
    shape = entries["weight"].array.shape if "weight" in entries else entries[min(has)].array.shape
    keys: list[Key] = []
    outputs = entries["bias"].array.shape if "bias" in entries else None
    if {"mean", "var"} <= has:
        if all(entry.array.shape == shape for entry in entries.values()) and len(shape) == 1:
            keys.append(("batch normalisation", shape, has))
    elif "weight" in has:
        if len(shape) == 1 and outputs in (None, shape):
            keys.append(("normalisation", shape, has))
        if len(shape) == 2 and outputs in (None, shape[:1]):
            keys.append(("linear", shape[::-1], has))
        if 3 <= len(shape) <= 5 and outputs in (None, shape[:1]):
            keys.append(("convolution", (*shape[2:], shape[1], shape[0]), has))
        if 3 <= len(shape) <= 5 and outputs in (None, shape[1:2]):
            keys.append(("transposed convolution", (*shape[2:], shape[0], shape[1]), has))
        if has == {"weight"}:
            bare = _alone(shape)
            keys += [("embedding", bare[1], has)] if len(bare[1]) == 2 else []
            keys.append(bare)
    return tuple(keys)


def targets(shapes: Mapping[str, Any], modules: Mapping[str, Any], nn: Any) -> tuple[list[Target], list[str]]:
    """The module's layers in the order of their first call, and the leaves that PyTorch has only channels last.

    Args:
      shapes: all leaves to fill, by path in `Weights`.
      modules: bound modules by path, in the order of their first call.
      nn: flax.linen.
    """
    by_module: dict[str, dict[str, str]] = {}
    for path in shapes:
        where = "/".join(without_collection(path).split("/")[:-1])
        by_module.setdefault(where, {})[path.rpartition("/")[2]] = path
    found: list[Target] = []
    last: list[str] = []
    bare: list[str] = []
    for where in [*modules, *(set(by_module) - set(modules))]:
        own = by_module.get(where, {})
        module = modules.get(where)
        kind = _kind(module, nn)
        taken = {name: path for name, path in own.items() if kind is None or name not in _LEAVES}
        bare += taken.values()
        rest = {_LEAVES[name]: path for name, path in own.items() if name not in taken}
        if rest:
            found.append(_target(where, module, str(kind), rest, shapes))
        if kind == "normalisation" and not isinstance(module, nn.GroupNorm):
            last += rest.values()
    last += [path for path in bare if len(shapes[path].shape) > 1]
    found += [Target(without_collection(path), _alone(shapes[path].shape), {"weight": path}) for path in sorted(bare)]
    return found, last


def without_collection(path: str) -> str:
    """A leaf's path in the module, of one in `Weights`."""
    return re.sub(r"^(params|model_state/[^/]*)/", "", path)


def _kind(module: Any, nn: Any) -> str | None:
    kinds = (
        ((nn.Dense, nn.DenseGeneral), "linear"),
        (nn.Conv, "convolution"),
        (nn.ConvTranspose, "transposed convolution"),
        (nn.BatchNorm, "batch normalisation"),
        ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm), "normalisation"),
        (nn.Embed, "embedding"),
    )
    return next((kind for classes, kind in kinds if isinstance(module, classes)), None)


def _target(where: str, module: Any, kind: str, leaves: dict[str, str], shapes: Mapping[str, Any]) -> Target:
    shape = tuple(shapes[leaves.get("weight", next(iter(leaves.values())))].shape)
    axes = {"linear": 2, "embedding": 2}.get(kind, 1)
    if "convolution" in kind:
        axes = len(np.atleast_1d(module.kernel_size)) + 2
    if hasattr(module, "batch_dims"):  # DenseGeneral
        inputs, outputs = len(np.atleast_1d(module.axis)), len(np.atleast_1d(module.features))
        axes = inputs + outputs
        if module.batch_dims:
            raise ValueError(f"module must have no layer with batch_dims; {where} is a DenseGeneral that has.")
        if len(shape) == axes:
            shape = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
            axes = 2
    if len(shape) != axes and not (kind == "normalisation" and len(shape) > 1):
        raise ValueError(
            f"module must have each layer once; the numbers of {where}, a {type(module).__name__}, are of shape {shape}, "
            f"which has not {axes} axes, as where nn.scan or nn.vmap stacks several. Convert the layer outside."
        )
    if kind == "transposed convolution" and module.transpose_kernel:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return Target(where, (kind, shape, frozenset(leaves)), leaves, _remark(module, kind))


def _remark(module: Any, kind: str) -> str:
    """What the numbers depend on and a state dict does not hold."""
    said = []
    usual = None if type(module).__name__ == "RMSNorm" else 1e-5
    if "normalisation" in kind and module.epsilon != usual:
        theirs = f"PyTorch's default {usual:g}" if usual else "in PyTorch by default the dtype's own"
        said.append(f"epsilon is {module.epsilon:g}, {theirs}")
    if type(module).__name__ == "GroupNorm":
        said.append(
            f"in {module.num_groups or f'groups of {module.group_size}'} groups, which the source does not tell"
        )
    return ", ".join(said)


def converted(source: Source, target: Target, shapes: Mapping[str, Any], turned: bool) -> dict[str, tuple[Any, str]]:
    """By path: the source's numbers as the leaf has them, and what was done; `turned` by Flax's ``transpose_kernel``."""
    kind = target.key[0]
    done = {}
    for member, path in target.leaves.items():
        entry = source.entries[member]
        array, shape, why = entry.array, tuple(shapes[path].shape), [entry.why]
        if member == "weight" and kind == "linear":
            array = array.T
            why.append("transposed")
        elif member == "weight" and kind == "convolution":
            array = np.moveaxis(array, (0, 1), (-1, -2))
            why.append("output and input channels last")
        elif member == "weight" and kind == "transposed convolution":
            # As a convolution of a dilated map PyTorch's kernel is mirrored; Flax mirrors it where transpose_kernel is set.
            array = np.moveaxis(array, (0, 1), (-1, -2) if turned else (-2, -1))
            if not turned:
                array = np.flip(array, tuple(range(array.ndim - 2)))
            why.append("input and output channels last" + ("" if turned else ", mirrored"))
        if array.shape != shape:
            why.append(f"shape {array.shape} to {shape}")
        done[path] = (array.reshape(shape), ", ".join(filter(None, why)))
    return done


def called(module: Any, trace: Any) -> tuple[Any, dict[str, Any]]:
    """What `trace` gives, and the bound modules that it called, by path, in the order of their first call."""
    from flax import linen as nn

    seen: dict[str, Any] = {}

    def noted(call: Any, arguments: Any, settings: Any, context: Any) -> Any:
        # Only what is used as a function has an order; a module's setup comes before its parent's first layer.
        if context.method_name != "setup" and context.module.scope is not None:
            seen.setdefault("/".join(context.module.path), context.module)
        return call(*arguments, **settings)

    with nn.intercept_methods(noted):
        result = jax.eval_shape(trace)
    return result, seen


def ungrouped(groups: dict[str, int], kept: Collection[str]) -> Any:
    """A context in which GroupNorm only scales and shifts, which is all that the order of channels shows; notes its groups.

    Its statistics are of a part of the channels, which by themselves look like a part of a map.

    Args:
      groups: gets the number of groups of each GroupNorm of more than one, by path.
      kept: paths of leaves that are not paired. A GroupNorm that has no others is run: nobody would ask what it acts on.
    """
    from flax import linen as nn

    def plain(call: Any, arguments: Any, settings: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.GroupNorm) or context.method_name != "__call__":
            return call(*arguments, **settings)
        leaves = [name for name in ("scale", "bias") if getattr(module, f"use_{name}")]
        if all("/".join((*module.path, name)) in kept for name in leaves):
            return call(*arguments, **settings)
        result = arguments[0] if arguments else settings["x"]
        count = module.num_groups or result.shape[-1] // module.group_size
        if count > 1:
            groups["/".join(module.path)] = count
        for name in leaves:
            leaf = jnp.reshape(module.get_variable("params", name), (1,) * (result.ndim - 1) + (-1,))
            result = result * leaf if name == "scale" else result + leaf
        return result if module.dtype is None else result.astype(module.dtype)

    return nn.intercept_methods(plain)


def described(path_or_name: str, shape: Sequence[int]) -> str:
    return f"{path_or_name} {tuple(shape)}"


def listed(rows: Sequence[str]) -> str:
    return _trees.listed(list(rows)) if rows else "nothing"
