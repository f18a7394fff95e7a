"""What the processes of one program tell each other, and how an array that each of them holds comes to lie on all.

With one process, each function here is the plain thing it stands for. With several, all must call it, in the same order.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def is_first() -> bool:
    """Whether this is the one process that does what must be done once."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Whether it is so in at least one process. All wait here for the last."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def wait() -> None:
    """Until all processes have come this far."""
    anywhere(False)


def differing(digests: Mapping[str, str]) -> list[str]:
    """The names whose digest, hexadecimal, is not the same in all processes.

    How many there are must be: the numbers travel as one array.
    """
    if jax.process_count() == 1 or not digests:
        return []
    rows = np.stack([np.frombuffer(bytes.fromhex(digest), np.uint8) for digest in digests.values()])
    same = (multihost_utils.process_allgather(rows) == rows).all(axis=(0, 2))
    return [name for name, equal in zip(digests, same, strict=True) if not equal]


def on_host(array: Any) -> np.ndarray:
    """The whole array, gathered where this process cannot see all of it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def place(array: Any, sharding: Sharding) -> jax.Array:
    """An array that every process holds whole, or that lies on several already, placed as `sharding` says."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.jit(lambda same: same, out_shardings=sharding)(array)
    # Not device_put: it knows no typed keys here, takes NaN for a difference between processes, and sends every array.
    whole = array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
