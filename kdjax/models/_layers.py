"""The layers that the networks here share, in the forms that are fast on a CPU and right on a split batch."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Convolved = Float[Array, "batch height_out width_out channels_out"]
Kernel = Float[Array, "rows columns channels channels_out"]
Pooled = Float[Array, "batch height//2 width//2 channels"]

WIDE = 3 * 3 * 64 * 128
"""A kernel of so many numbers gets its gradient by taps; with fewer channels the products are too thin to pay."""


def convolve(inputs: Images, kernel: Kernel, padding: str) -> Convolved:
    """The cross-correlation that neural networks call convolution, with stride 1.

    out[b, y, x, o] = Σ_{i, j, c} in[b, y + i − p, x + j − q, c] · kernel[i, j, c, o], zero outside the image; p and q are
    (rows − 1) // 2 and (columns − 1) // 2 with ``"SAME"`` padding and 0 with ``"VALID"``.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [rows, columns, channels, channels_out].
      padding: ``"SAME"`` or ``"VALID"``.

    Note:
      Value and gradients are those of ``lax.conv_general_dilated``. On a CPU, the gradient of a kernel of `WIDE` numbers or
      more is computed as one matrix product a tap, which makes the step of such a network faster (`benchmarks/`). A
      function with its own gradient has no forward-mode derivative: `jax.jvp` raises for such kernels.
    """
    if kernel.size < WIDE:
        return _convolve(inputs, kernel, padding)
    # The kernel itself, always. But under `jax.shard_map`, where devices share a kernel and not the inputs, it now counts as
    # one a device, as its hand-written gradient is; the gradient of this line sums those.
    kernel = jnp.where(False, lax.stop_gradient(inputs[0, 0, 0, 0]), kernel)
    return _with_gradient(inputs, kernel, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_gradient(inputs: Array, kernel: Array, padding: str) -> Array:
    return _convolve(inputs, kernel, padding)


def _convolve(inputs: Array, kernel: Array, padding: str) -> Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(inputs: Array, kernel: Array, padding: str) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(inputs, kernel, padding), (inputs, kernel)


def _backward(padding: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    _, to_inputs = jax.vjp(lambda moved: _convolve(moved, kernel, padding), inputs)

    def from_xla(inputs: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda moved: _convolve(inputs, moved, padding), kernel)[1](cotangent)[0]

    def by_taps(inputs: Array, cotangent: Array) -> Array:
        # The barrier keeps XLA from computing the cotangent anew in each of the products.
        return _kernel_gradient(inputs, lax.optimization_barrier(cotangent), kernel.shape[:2], padding)

    return *to_inputs(cotangent), lax.platform_dependent(inputs, cotangent, cpu=by_taps, default=from_xla)


def _kernel_gradient(inputs: Array, cotangent: Array, taps: tuple[int, ...], padding: str) -> Array:
    rows, columns = taps
    height, width, channels_out = cotangent.shape[1:]
    if padding == "SAME":
        above, left = (rows - 1) // 2, (columns - 1) // 2
        inputs = jnp.pad(inputs, ((0, 0), (above, rows - 1 - above), (left, columns - 1 - left), (0, 0)))
    flat = cotangent.reshape(-1, channels_out)
    products = [
        inputs[:, i : i + height, j : j + width].reshape(flat.shape[0], -1).T @ flat
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.stack(products).reshape(rows, columns, -1, channels_out)


_with_gradient.defvjp(_forward, _backward)


def max_pool(inputs: Images) -> Pooled:
    """The largest of each 2 × 2 window; an odd last row or column is dropped, as common max-pooling does.

    Four strided slices and three comparisons: on a CPU faster than ``lax.reduce_window``, forwards and backwards. Of equal
    values the first takes the whole gradient, as in ``reduce_window``'s and PyTorch's; a NaN stays a NaN.

    Example:
      >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1)).ravel().tolist()
      [4.0]
    """
    height, width = inputs.shape[1] // 2 * 2, inputs.shape[2] // 2 * 2
    inputs = inputs[:, :height, :width]
    top = _larger(inputs[:, ::2, ::2], inputs[:, ::2, 1::2])
    bottom = _larger(inputs[:, 1::2, ::2], inputs[:, 1::2, 1::2])
    return _larger(top, bottom)


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
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.make_rng("dropout"), first + jnp.arange(batch))
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, inputs.shape[1:]))(keys)
        return jnp.where(kept, inputs / (1 - self.rate), 0)
