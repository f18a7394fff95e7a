"""The device axis: what a step that holds a part of the batch shares with the others."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kdjax._apply import map_examples
from kdjax._types import Tree


def gather(tree: Tree, axis_name: str | None) -> Tree:
    """Every device's examples on every device, in order. What no term reads is dropped by the compiler."""
    if axis_name is None:
        return tree
    return map_examples(lambda array: lax.all_gather(array, axis_name, tiled=True), tree)


def mean_over(axis_name: str | None, tree: Tree) -> Tree:
    """Averages floating-point leaves over the device axis; what is the same on all devices by its type stays."""
    if axis_name is None:
        return tree
    # Only where types tell: elsewhere no array varies by its type, not even a device's own number.
    typed = _varies(lax.axis_index(axis_name), axis_name)

    def mean(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or (typed and not _varies(leaf, axis_name)):
            return leaf
        averaged: Array = lax.pmean(leaf, axis_name)
        return averaged

    return jax.tree.map(mean, tree)


def _varies(leaf: Array, axis_name: str) -> bool:
    """Whether an array's type says that it differs between devices. A JAX whose types are others says so of none."""
    return axis_name in getattr(getattr(jax.typeof(leaf), "manual_axis_type", None), "varying", ())


def agreed(axis_name: str | None, new: Tree, old: Tree) -> Tree:
    """What every device computed alike from the whole batch, in a type that says so; what did not change stays."""
    if axis_name is None:
        return new
    return jax.tree.map(lambda leaf, before: leaf if leaf is before else lax.pmax(leaf, axis_name), new, old)
