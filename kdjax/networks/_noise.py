"""The keys of a network's noise: of a device, of each example, and of NNX's streams."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from kdjax._types import Tree
from kdjax.batches import keys_of_each


def seeded(streams: Tree, rng: PRNGKeyArray) -> Tree:
    """NNX's random streams, each started anew from its own key: pure functions of `rng`."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)  # NNX's streams hold typed keys
    leaves, structure = jax.tree.flatten(streams)
    fresh = [
        jax.random.split(jax.random.fold_in(rng, i), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)  # how often the stream was drawn from
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def key_of_device(rng: PRNGKeyArray, axis_name: str | None) -> PRNGKeyArray:
    return rng if axis_name is None else jax.random.fold_in(rng, lax.axis_index(axis_name))


def key_per_example(rng: PRNGKeyArray, batch: int, axis_name: str | None) -> Array:
    """[batch] keys, each of its example's number in the whole batch."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return keys_of_each(rng, first + jnp.arange(batch))
