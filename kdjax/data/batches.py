"""Which examples make which batch, as pure functions, and how a whole data set gets to the device."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax._types import AnyArray
from kdjax.data.dataset import Dataset


def epoch_indices(
    examples: int, batch_size: int, *, seed: int | Int[Array, ""], epoch: int | Int[Array, ""]
) -> Int[Array, "steps batch"]:
    """Shuffle one epoch: a pure function of (seed, epoch), so that the place in the data is known from three numbers.

    Epoch e is a permutation of all examples, drawn from ``fold_in(key(seed), e)`` and cut into
    ``examples // batch_size`` batches. **The remainder sits this epoch out**: the last ``examples % batch_size`` of the
    permutation. They are others each epoch, so none is lost to the training as a whole, and all batches have one size,
    so that the step compiles once.

    Args:
      examples: how many there are.
      batch_size: how many make a batch.
      seed: a whole number; it may be traced.
      epoch: a whole number, likewise.

    Returns:
      int32 [steps, batch_size]: row s holds the indices of batch s.

    Raises:
      ValueError: if batch_size is less than 1 or more than examples.

    Example:
      >>> from kdjax.data import epoch_indices
      >>> indices = epoch_indices(10, 3, seed=0, epoch=5)
      >>> indices.shape, len(set(indices.ravel().tolist()))
      ((3, 3), 9)
      >>> bool((indices == epoch_indices(10, 3, seed=0, epoch=5)).all())
      True
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size must lie between 1 and the {examples} examples there are; got {batch_size}.")
    return _epoch_indices(examples, batch_size, seed, epoch)


@partial(jax.jit, static_argnums=(0, 1))
def _epoch_indices(examples: int, batch_size: int, seed: int | Array, epoch: int | Array) -> Array:
    steps = examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


def evaluation_indices(examples: int, batch_size: int) -> tuple[Int[Array, "steps batch"], Float[Array, "steps batch"]]:
    """Batches in which every example occurs exactly once, in order; the last one is filled up.

    Args:
      examples: how many there are.
      batch_size: how many make a batch; it may exceed `examples`.

    Returns:
      Indices, int32 [steps, batch_size], and a mask, float32 [steps, batch_size]: 1 for an example, 0 for the filling, whose
      index is 0. Count only what the mask marks, by `where`, and divide by its sum.

    Raises:
      ValueError: if either number is less than 1.

    Example:
      >>> from kdjax.data import evaluation_indices
      >>> indices, mask = evaluation_indices(5, 3)
      >>> indices.tolist(), mask.tolist()
      ([[0, 1, 2], [3, 4, 0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    """
    if examples < 1 or batch_size < 1:
        raise ValueError(f"examples and batch_size must be at least 1; got {examples} and {batch_size}.")
    steps = -(-examples // batch_size)
    position = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)
    real = position < examples
    return jnp.asarray(np.where(real, position, 0)), jnp.asarray(real, jnp.float32)


def on_device(dataset: Dataset, preprocess: Callable[[Array], Array]) -> dict[str, Array]:
    """Put a whole data set on the default device, preprocessed once; uint8 travels, float32 stays.

    Args:
      dataset: as `load` gives it.
      preprocess: a pure function from all inputs to all inputs in float32, such as `unit_range`; it runs jitted, there.

    Returns:
      ``{"inputs": float32 [examples, ...], "labels": int32 [examples]}``, ready for `take`.

    Raises:
      ValueError: if preprocess does not give float32, one row for each example.
    """
    inputs = jax.jit(preprocess)(jnp.asarray(dataset.inputs))
    if inputs.dtype != jnp.float32 or inputs.shape[:1] != dataset.labels.shape:
        raise ValueError(
            f"preprocess must give float32 inputs, one for each of {len(dataset.labels)} examples; "
            f"got shape {inputs.shape} and dtype {inputs.dtype}."
        )
    return {"inputs": inputs, "labels": jnp.asarray(dataset.labels)}


def take(arrays: Mapping[str, Any], indices: Int[AnyArray, " *batch"]) -> dict[str, Any]:
    """One batch: the rows of every array at `indices`, also of arrays in pytrees, such as a teacher's cached outputs.

    An index beyond the end gives NaN in floating-point arrays rather than some other example.

    Args:
      arrays: by name, arrays [examples, ...] or pytrees of such.
      indices: whole numbers of any shape.

    Returns:
      By name, [*indices.shape, ...].

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.data import take
      >>> take({"labels": jnp.array([7, 8, 9])}, jnp.array([2, 0]))["labels"].tolist()
      [9, 7]
    """
    return jax.tree.map(lambda array: jnp.take(array, indices, axis=0), dict(arrays))


def unit_range(inputs: AnyArray) -> Array:
    """Bring uint8 images into [0, 1]: x / 255.

    Args:
      inputs: uint8, any shape.

    Returns:
      float32, the same shape.

    Raises:
      ValueError: for any other dtype; what range floats are in only their owner knows.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.data import unit_range
      >>> unit_range(jnp.array([0, 255], jnp.uint8)).tolist()
      [0.0, 1.0]
    """
    if inputs.dtype != jnp.uint8:
        raise ValueError(
            f"inputs must be uint8 to be divided by 255; got dtype {inputs.dtype}. Give floats a preprocess of their own."
        )
    return jnp.asarray(inputs, jnp.float32) / 255


def symmetric_range(inputs: AnyArray) -> Array:
    """Bring uint8 images into [-1, 1]: (x / 255 - 0.5) / 0.5.

    Args:
      inputs: uint8, any shape.

    Returns:
      float32, the same shape.

    Raises:
      ValueError: for any other dtype, as `unit_range`.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.data import symmetric_range
      >>> symmetric_range(jnp.array([0, 255], jnp.uint8)).tolist()
      [-1.0, 1.0]
    """
    return (unit_range(inputs) - 0.5) / 0.5
