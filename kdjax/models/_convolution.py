"""The convolution of the networks here: XLA's on a GPU and a TPU, and on a CPU in the forms that are faster there."""
# mypy: disable-error-code="untyped-decorator"

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Convolved = Float[Array, "batch height_out width_out channels_out"]
Kernel = Float[Array, "rows columns channels channels_out"]

FEW, TAPS = 3, 9
"""Inputs of so few channels, pictures that is, are convolved by shifting them, where the kernel has so few taps."""
WIDE = 3 * 3 * 64 * 128
"""A kernel of so many numbers gets its gradient by taps; with fewer channels the products are too thin to pay."""
BLOCK = 8
"""Images of which the kernel's gradient is computed at a time: what is copied for their product stays in the cache."""


def convolve(inputs: Images, kernel: Kernel, padding: str, *, in_blocks: bool = False) -> Convolved:
    """The cross-correlation that neural networks call convolution, with stride 1.

    out[b, y, x, o] = Σ_{i, j, c} in[b, y + i − p, x + j − q, c] · kernel[i, j, c, o], zero outside the image; p and q are
    (rows − 1) // 2 and (columns − 1) // 2 with ``"SAME"`` padding and 0 with ``"VALID"``.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [rows, columns, channels, channels_out].
      padding: ``"SAME"`` or ``"VALID"``.
      in_blocks: whether the gradient of the kernel, also of a smaller one than `WIDE`, is computed `BLOCK` images at a time.

    Note:
      Value and gradients are those of ``lax.conv_general_dilated``. Two forms make a step faster on a CPU (`benchmarks/`):
      inputs of at most `FEW` channels are shifted, once for each of at most `TAPS` taps, and added up; and the gradient of
      a kernel of `WIDE` numbers or more is computed as one matrix product a tap, or, where the network asks for it, as
      one a block of images. The latter two have no forward-mode derivative: `jax.jvp` raises for such kernels.
    """
    if kernel.shape[2] <= FEW and kernel.shape[0] * kernel.shape[1] <= TAPS:
        return _of_few_channels(inputs, kernel, padding)
    if kernel.size < WIDE and not in_blocks:
        return _convolve(inputs, kernel, padding)
    return _with_gradient(inputs, as_of_one_device(kernel, inputs), padding, in_blocks)


def as_of_one_device(param: Array, inputs: Array) -> Array:
    """`param` itself, always, for a function whose gradient is written by hand.

    Under `jax.shard_map` devices share `param` and not `inputs`. It now counts as one a device, as its gradient is; the
    gradient of this function sums those.
    """
    return lax.select(False, jnp.full_like(param, lax.stop_gradient(inputs[(0,) * inputs.ndim])), param)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_few_channels(inputs: Array, kernel: Array, padding: str) -> Array:
    by_shifts, from_xla = partial(_by_shifts, padding=padding), partial(_convolve, padding=padding)
    return lax.platform_dependent(inputs, kernel, cpu=by_shifts, default=from_xla)


@partial(_of_few_channels.defjvp, symbolic_zeros=True)
def _tangent(padding: str, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    """A convolution is linear in either argument, and XLA's form has the faster gradients."""
    inputs, kernel = primals
    pairs = (tangents[0], kernel), (inputs, tangents[1])
    parts = [_convolve(x, k, padding) for x, k in pairs if SymbolicZero not in (type(x), type(k))]
    return _of_few_channels(inputs, kernel, padding), reduce(jnp.add, parts)


def _by_shifts(inputs: Array, kernel: Array, padding: str) -> Array:
    """One loop over the outputs, which XLA fuses with the pooling after it. Sums are in float32 at least, as XLA's are."""
    rows, columns, channels = kernel.shape[:3]
    dtype = inputs.dtype
    inputs, kernel = (array.astype(jnp.promote_types(dtype, jnp.float32)) for array in (inputs, kernel))
    if padding == "SAME":
        inputs = _bordered(inputs, rows, columns)
    height, width = inputs.shape[1] - rows + 1, inputs.shape[2] - columns + 1
    shifted = (
        inputs[:, i : i + height, j : j + width, c : c + 1] * kernel[i, j, c][None, None, None]
        for i in range(rows)
        for j in range(columns)
        for c in range(channels)
    )
    return reduce(jnp.add, shifted).astype(dtype)


def _bordered(images: Array, rows: int, columns: int) -> Array:
    """With the zeros of ``"SAME"`` around them."""
    above, left = (rows - 1) // 2, (columns - 1) // 2
    return jnp.pad(images, ((0, 0), (above, rows - 1 - above), (left, columns - 1 - left), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_gradient(inputs: Array, kernel: Array, padding: str, in_blocks: bool) -> Array:
    return _convolve(inputs, kernel, padding)


def _convolve(inputs: Array, kernel: Array, padding: str) -> Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(inputs: Array, kernel: Array, padding: str, in_blocks: bool) -> tuple[Array, tuple[Array, Array]]:
    del in_blocks  # of the gradient alone
    return _convolve(inputs, kernel, padding), (inputs, kernel)


def _backward(padding: str, in_blocks: bool, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    _, to_inputs = jax.vjp(lambda moved: _convolve(moved, kernel, padding), inputs)

    def from_xla(inputs: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda moved: _convolve(inputs, moved, padding), kernel)[1](cotangent)[0]

    def by_taps(inputs: Array, cotangent: Array) -> Array:
        # The barrier keeps XLA from computing the cotangent anew in each of the products.
        return _kernel_gradient(inputs, lax.optimization_barrier(cotangent), kernel.shape[:2], padding)

    def by_blocks(inputs: Array, cotangent: Array) -> Array:
        return _in_blocks(inputs, cotangent, kernel.shape[:2], padding)

    ours = by_blocks if in_blocks else by_taps
    return *to_inputs(cotangent), lax.platform_dependent(inputs, cotangent, cpu=ours, default=from_xla)


def _kernel_gradient(inputs: Array, cotangent: Array, taps: tuple[int, ...], padding: str) -> Array:
    rows, columns = taps
    height, width, channels_out = cotangent.shape[1:]
    if padding == "SAME":
        inputs = _bordered(inputs, rows, columns)
    flat = cotangent.reshape(-1, channels_out)
    products = [
        inputs[:, i : i + height, j : j + width].reshape(flat.shape[0], -1).T @ flat
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.stack(products).reshape(rows, columns, -1, channels_out)


def _in_blocks(inputs: Array, cotangent: Array, taps: tuple[int, ...], padding: str) -> Array:
    """Σ_{b, y, x} in[b, y + i − p, x + j − q, c] · d[b, y, x, o], for each block as one product of (j, c) and (i, o).

    With u = y + i − p the sum is over u and x: columns are shifted in the inputs, and rows in the cotangent. So each is
    copied once for every column or row of the kernel, and neither for every tap.
    """
    rows, columns = taps
    channels, channels_out = inputs.shape[-1], cotangent.shape[-1]
    height, above = inputs.shape[1], (rows - 1) // 2 if padding == "SAME" else 0
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    size = next(size for size in range(BLOCK, 0, -1) if len(inputs) % size == 0)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        seen, given = block
        seen = _bordered(seen, 1, columns) if padding == "SAME" else seen
        given = jnp.pad(given, ((0, 0), (rows - 1 - above, height - given.shape[1] + above), (0, 0), (0, 0)))
        width = given.shape[2]
        left = jnp.concatenate([seen[:, :, j : j + width] for j in range(columns)], axis=-1)
        right = jnp.concatenate([given[:, rows - 1 - i : rows - 1 - i + height] for i in range(rows)], axis=-1)
        left, right = lax.optimization_barrier((left, right))
        product = lax.dot_general(left, right, (((0, 1, 2), (0, 1, 2)), ((), ())), preferred_element_type=wide)
        return total + product, None

    blocks = (array.reshape(-1, size, *array.shape[1:]) for array in (inputs, cotangent))
    none = as_of_one_device(jnp.zeros((columns * channels, rows * channels_out), wide), inputs)
    total = lax.scan(add, none, tuple(blocks))[0].astype(inputs.dtype)
    return total.reshape(columns, channels, rows, channels_out).transpose(2, 0, 1, 3)


_with_gradient.defvjp(_forward, _backward)
