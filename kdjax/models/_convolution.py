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


def convolve(inputs: Images, kernel: Kernel, padding: str) -> Convolved:
    """The cross-correlation that neural networks call convolution, with stride 1.

    out[b, y, x, o] = Σ_{i, j, c} in[b, y + i − p, x + j − q, c] · kernel[i, j, c, o], zero outside the image; p and q are
    (rows − 1) // 2 and (columns − 1) // 2 with ``"SAME"`` padding and 0 with ``"VALID"``.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [rows, columns, channels, channels_out].
      padding: ``"SAME"`` or ``"VALID"``.

    Note:
      Value and gradients are those of ``lax.conv_general_dilated``. Three forms make a step faster on a CPU, the last two
      measured in `benchmarks/`: a kernel of one tap is a matrix product; inputs of at most `FEW` channels are shifted, once
      for each of at most `TAPS` taps, and added up; and the gradient of a kernel of `WIDE` numbers or more is computed as
      one matrix product a tap. The last has no forward-mode derivative: `jax.jvp` raises for such kernels.
    """
    if kernel.shape[:2] == (1, 1):
        return lax.platform_dependent(inputs, kernel, cpu=_of_one_tap, default=partial(_convolve, padding=padding))
    if kernel.shape[2] <= FEW and kernel.shape[0] * kernel.shape[1] <= TAPS:
        return _of_few_channels(inputs, kernel, padding)
    if kernel.size < WIDE:
        return _convolve(inputs, kernel, padding)
    # The kernel itself, always. But under `jax.shard_map`, where devices share a kernel and not the inputs, it now counts as
    # one a device, as its hand-written gradient is; the gradient of this line sums those.
    kernel = lax.select(False, jnp.full_like(kernel, lax.stop_gradient(inputs[0, 0, 0, 0])), kernel)
    return _with_gradient(inputs, kernel, padding)


def convolve_in_groups(
    inputs: Images, kernel: Float[Array, "rows columns read channels_out"], stride: int, groups: int
) -> Convolved:
    """As `convolve`, of runs of channels: run g of the outputs reads run g of the inputs, in rows // 2 zeros.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [rows, columns, channels / groups, channels_out], of as many rows as columns, an odd number.
      stride: of rows and columns of the outputs.
      groups: how many runs of equal length there are; as many as channels in and out: each is filtered by itself.

    Note:
      On a CPU XLA's form has slow gradients, and where each channel is filtered by itself slow values too. There the
      inputs are shifted for each tap and added up, or the groups are convolved one after the other.
    """
    border = (kernel.shape[0] // 2,) * 2

    def from_xla(inputs: Array, kernel: Array, groups: int = groups) -> Array:
        return lax.conv_general_dilated(
            inputs,
            kernel,
            (stride, stride),
            (border, border),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def by_groups(inputs: Array, kernel: Array) -> Array:
        if kernel.shape[-1] == groups == inputs.shape[-1]:
            return _by_shifts(inputs, kernel, "SAME", stride)
        pairs = zip(jnp.split(inputs, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        one = _of_one_tap if kernel.shape[:2] == (1, 1) and stride == 1 else partial(from_xla, groups=1)
        return jnp.concatenate([one(*pair) for pair in pairs], axis=-1)

    return lax.platform_dependent(inputs, kernel, cpu=by_groups, default=from_xla)


def _of_one_tap(inputs: Array, kernel: Array) -> Array:
    sums = jnp.promote_types(inputs.dtype, jnp.float32)
    return jnp.matmul(inputs, kernel[0, 0], preferred_element_type=sums).astype(inputs.dtype)


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


def _by_shifts(inputs: Array, kernel: Array, padding: str, stride: int = 1) -> Array:
    """One loop over the outputs, which XLA fuses with the pooling after it. Sums are in float32 at least, as XLA's are.

    Of a kernel that reads one channel each tap is one product of all inputs, each channel with its own number.
    """
    rows, columns, read, _ = kernel.shape
    dtype = inputs.dtype
    inputs, kernel = (array.astype(jnp.promote_types(dtype, jnp.float32)) for array in (inputs, kernel))
    if padding == "SAME":
        inputs = _bordered(inputs, rows, columns)
    height, width = inputs.shape[1] - rows + 1, inputs.shape[2] - columns + 1
    own = inputs.shape[-1] if read == 1 else 1
    shifted = (
        inputs[:, i : i + height : stride, j : j + width : stride, c : c + own] * kernel[i, j, c][None, None, None]
        for i in range(rows)
        for j in range(columns)
        for c in range(read)
    )
    return reduce(jnp.add, shifted).astype(dtype)


def _bordered(images: Array, rows: int, columns: int) -> Array:
    """With the zeros of ``"SAME"`` around them."""
    above, left = (rows - 1) // 2, (columns - 1) // 2
    return jnp.pad(images, ((0, 0), (above, rows - 1 - above), (left, columns - 1 - left), (0, 0)))


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
        inputs = _bordered(inputs, rows, columns)
    flat = cotangent.reshape(-1, channels_out)
    products = [
        inputs[:, i : i + height, j : j + width].reshape(flat.shape[0], -1).T @ flat
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.stack(products).reshape(rows, columns, -1, channels_out)


_with_gradient.defvjp(_forward, _backward)
