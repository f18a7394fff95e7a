"""How a module's leaves must lie: the rows of each, rearranged from where PyTorch has them, or an error that asks."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks, _trees
from kdjax._types import Tree, Weights
from kdjax.networks import _channel_order, _torch_layers

_READERS = ("linear", "normalisation", "batch normalisation", "parameter", "embedding")


class Layouts:
    """What the module's leaves meet, and so how the rows of each must be arranged."""

    def __init__(
        self,
        apply: Any,
        structure: Weights,
        inputs: Tree,
        last: Sequence[str],
        flattened: Mapping[str, str] | None,
        kept: Collection[str],
    ) -> None:
        self.given = dict(flattened or {})
        for path, layout in self.given.items():
            _checks.one_of(f"flattened[{path!r}]", layout, ("first", "last"))
        paths = [_torch_layers.without_collection(path) for path in _trees.by_path(structure)]
        self.known = {*paths, *(path.rpartition("/")[0] for path in paths)}
        for path in self.given:
            _checks.one_of("flattened", path, sorted(self.known))
        self.groups: dict[str, int] = {}
        with _torch_layers.ungrouped(self.groups, {_torch_layers.without_collection(path) for path in kept}):
            program = jax.make_jaxpr(lambda *two: apply(*two[0], two[1], train=False)[0].logits)(structure, inputs)
        shapes = [(one.shape, bool(jnp.issubdtype(one.dtype, jnp.floating))) for one in jax.tree.leaves(inputs)]
        self.idle = {*self.given}
        self.met, self.mixed = _channel_order.orders(program, list(_trees.by_path(structure)), shapes, last)

    def arranged(self, target: _torch_layers.Target, path: str, array: np.ndarray) -> tuple[np.ndarray, str]:
        """The leaf with its rows as Flax has them, and what was done."""
        own_path = _torch_layers.without_collection(path)
        kind, layout = target.key[0], self.given.get(target.path, self.given.get(own_path))
        if kind in _READERS or layout != "first":
            self.idle -= {target.path, own_path}
        met = self.met.get(path, [])
        asked = f"flattened must tell of {target.path} whether PyTorch holds what it reads channels first: "
        if kind == "linear" and path.endswith("/bias"):
            return array, ""
        if path in self.mixed and layout != "last":
            raise ValueError(
                f"module must give {target.path} a map whose channels and positions are kept apart; they were one axis, or "
                'come from one, and PyTorch has them in another order. Reorder the source yourself and say "last" for '
                f"{target.path} in flattened."
            )
        own = [size for size in array.shape if size > 1]
        alike = kind == "parameter" and len(own) > 1 and len({*own}) == 1
        if (kind == "batch normalisation" and any(one.split for one in met)) or (
            alike and any(one.layout in ("first", "unsure") for one in met)
        ):
            if layout != "last":
                raise ValueError(
                    f'flattened must be "last" for {target.path}: whether PyTorch has its axes in another order cannot be '
                    "told from their sizes. Bring its numbers in the source as Flax has them."
                )
            return array, ""
        if kind not in _READERS:
            return array, ""
        if layout == "first" and (any(one.unknown for one in met) or (kind == "linear" and not met)):
            raise ValueError(
                f'flattened must be "last" for {target.path}: which of its rows are channels cannot be told. Reorder them '
                "in the source yourself, as Flax has them."
            )
        if not layout and ((kind == "linear" and not met) or any(one.unsure for one in met)):
            axis = met[0].axis if met else ()
            read = " × ".join(str(part.size) for part in axis)
            shown = f" It reads {read}, of which the last are taken for channels." if len(axis) > 1 else ""
            raise ValueError(
                f'{asked}{{{target.path!r}: "first"}} or "last"; it cannot be told from the module.{shown} A picture that '
                'has no axis of channels is "last".'
            )
        ways = {None if rows is None else tuple(rows.tolist()): one for one in met for rows in [one.rows(layout)]}
        if len(ways) > 1 and not (kind == "parameter" and set(ways) == {None}):
            raise ValueError(f"module must use {target.path} on maps of one shape alone; it reads several, flattened.")
        if not any(ways):
            return array, ""
        if groups := self.groups.get(target.path):
            raise ValueError(
                f"module must not normalise a flattened map in {groups} groups, as {target.path} does: in PyTorch's order "
                'other numbers make a group. Say "last" for it in flattened if PyTorch holds the map as Flax does.'
            )
        order, one = next(iter(ways.items()))
        rows = np.array(order)
        inputs = target.key[1][0]
        if len(rows) != inputs or kind == "embedding" or (kind == "parameter" and len(target.key[1]) > 1):
            raise ValueError(f"module must read no flattened map by {target.path}, a {kind}; it cannot be reordered.")
        sizes = " × ".join(str(part.size) for part in one.axis)
        taken = array.reshape(inputs, -1)[rows].reshape(array.shape)
        return taken, f"rows reordered from channels first to last: {sizes}"

    def refuse_idle(self, kept: Collection[str]) -> None:
        """What was said of a layer that reads no flattened map, whatever its inputs."""
        without = [_torch_layers.without_collection(path) for path in kept]
        idle = {one for one in self.idle if not any(f"{path}/".startswith(f"{one}/") for path in without)}
        if idle:
            raise ValueError(f"flattened must name layers that may read a flattened map; {min(idle)} does not.")
