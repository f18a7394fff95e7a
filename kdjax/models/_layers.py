"""The layers that the networks here share, in the forms that are fast on a CPU and right on a split batch."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from kdjax.batches import keys_of_each

Images = Float[Array, "batch height width channels"]
Pooled = Float[Array, "batch height//2 width//2 channels"]


def max_pool(inputs: Images) -> Pooled:
    """The largest of each 2 × 2 window; an odd last row or column is dropped, as common max-pooling does.

    Four strided slices and three comparisons: on a CPU faster than ``lax.reduce_window``, forwards and backwards. Of equal
    values the first takes the whole gradient, as in ``reduce_window``'s and PyTorch's; a NaN stays a NaN.

    Example:
      >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1)).ravel().tolist()
      [4.0]
    """
    batch, height, width, channels = inputs.shape
    end = (batch, height // 2 * 2, width // 2 * 2, channels)
    inputs = lax.slice(inputs, (0, 0, 0, 0), end)

    # With brackets, a batch of no fixed size would be gathered instead, by indices.
    def every_second(row: int, column: int) -> Array:
        return lax.slice(inputs, (0, row, column, 0), end, (1, 2, 2, 1))

    top = _larger(every_second(0, 0), every_second(0, 1))
    bottom = _larger(every_second(1, 0), every_second(1, 1))
    return _larger(top, bottom)


def max_pool_at_inference(inputs: Images) -> Pooled:
    """The values of `max_pool`, by the same operations wherever JAX runs, and by ``reduce_window`` in any other format.

    There, as in ONNX, pooling is one operation, and much faster than slices.
    """
    windows = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="VALID")
    return lax.platform_dependent(inputs, cpu=max_pool, cuda=max_pool, rocm=max_pool, tpu=max_pool, default=windows)


def _larger(first: Array, second: Array) -> Array:
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


class Dropout(nn.Module):
    """Sets each number to 0 with probability `rate` and scales the others by 1 / (1 − rate), while training.

    A mask belongs to an example, not to a device: example i of the whole batch draws from ``fold_in(rng, i)``. A batch that
    is split over devices thus meets exactly the masks that it meets on one.

    Attributes:
      rate: in [0, 1).
      axis_name: the device axis over which the batch is split; None where the module sees the whole batch.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch ..."], *, train: bool) -> Float[Array, "batch ..."]:
        # While parameters are made, the axis does not exist and masks do not matter.
        if not train or self.rate == 0 or self.is_initializing():
            return inputs
        batch = inputs.shape[0]
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * batch
        keys = keys_of_each(self.make_rng("dropout"), first + jnp.arange(batch))
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, inputs.shape[1:]))(keys)
        return jnp.where(kept, inputs / (1 - self.rate), 0)
