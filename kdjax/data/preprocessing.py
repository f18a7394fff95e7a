"""How a whole data set gets to the device, and the ranges that networks want their inputs in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax._types import AnyArray, Tree
from kdjax.data.dataset import Dataset


def on_device(dataset: Dataset, preprocess: Callable[[Array], Array]) -> dict[str, Array]:
    """Put a whole data set on the default device, preprocessed once; uint8 travels, float32 stays.

    Args:
      dataset: as `load` gives it.
      preprocess: a pure function from inputs to inputs in float32, each from its own alone, such as `unit_range`; it runs
        jitted, there.

    Returns:
      ``{"inputs": float32 [examples, ...], "labels": int32 [examples]}``, ready for `take`.

    Raises:
      ValueError: if preprocess does not give float32, one row for each example, or the first example
        depends on the others.
    """
    inputs = preprocessed(preprocess, jnp.asarray(dataset.inputs))
    if inputs.dtype != jnp.float32 or inputs.shape[:1] != dataset.labels.shape:
        raise ValueError(
            f"preprocess must give float32 inputs, one for each of {len(dataset.labels)} examples; "
            f"got shape {inputs.shape} and dtype {inputs.dtype}."
        )
    return {"inputs": inputs, "labels": jnp.asarray(dataset.labels)}


def preprocessed(preprocess: Callable[[Any], Any], inputs: Tree) -> Any:
    """All inputs as the networks see them.

    Raises:
      ValueError: if the first example's result changes when the others are removed, as it does where their mean is taken:
        training data, test data and the pictures that an exported network meets would each be changed by another.
    """
    jitted = jax.jit(preprocess)
    found = jitted(inputs)
    if preprocess in (unit_range, symmetric_range):
        return found
    try:
        alone = jitted(jax.tree.map(lambda array: array[:1], inputs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"preprocess must take any number of examples; of one alone it says: {error}") from error
    for whole, own in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        if not jnp.issubdtype(own.dtype, jnp.number) or jnp.issubdtype(own.dtype, jnp.complexfloating) or not own.ndim:
            continue
        first, one = (np.asarray(array, np.float64) for array in (whole[:1], own))
        near = 1e-3 * np.abs(one).max(initial=0, where=np.isfinite(one))
        if first.shape == one.shape and not np.allclose(first, one, rtol=1e-3, atol=near, equal_nan=True):
            raise ValueError(
                "preprocess must change each example by itself; the first one's result changes when the others are removed. "
                "Take means and the like from the training data once, outside, and let preprocess use those numbers."
            )
    return found


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
