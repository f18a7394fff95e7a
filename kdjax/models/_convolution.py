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
Borders = tuple[tuple[int, int], tuple[int, int]]

FEW, TAPS = 3, 9
"""Inputs of so few channels, pictures that is, are convolved by shifting them, where the kernel has so few taps."""
WIDE = 3 * 3 * 64 * 128
"""A kernel of so many numbers gets its gradient by taps; with fewer channels the products are too thin to pay."""
COPIED = 3 * 2**18
"""So many numbers at most are copied for one product of a kernel's gradient in blocks of images: they stay in the cache."""


def convolve(inputs: Images, kernel: Kernel, padding: str, *, stride: int = 1, in_blocks: bool = False) -> Convolved:
    """The cross-correlation that neural networks call convolution.

    out[b, y, x, o] = Σ_{i, j, c} in[b, s·y + i − p, s·x + j − q, c] · kernel[i, j, c, o], zero outside the image; s is the
    stride, and p and q are (rows − 1) // 2 and (columns − 1) // 2 with ``"SAME"`` padding and 0 with ``"VALID"``.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [rows, columns, channels, channels_out].
      padding: ``"SAME"`` or ``"VALID"``.
      stride: how far the kernel is moved at a time; another one than 1 needs `in_blocks`.
      in_blocks: whether the gradient of the kernel, also of a smaller one than `WIDE`, is computed some images at a time.

    Note:
      Value and gradients are those of ``lax.conv_general_dilated``. Three forms make a step faster on a CPU, the last two
      measured in `benchmarks/`: a kernel of one tap is a matrix product; inputs of at most `FEW` channels are shifted, once
      for each of at most `TAPS` taps, and added up; and the gradient of a kernel of `WIDE` numbers or more is computed as
      one matrix product a tap, or, where the network asks for it, as one a block of images. The latter two have no
      forward-mode derivative: `jax.jvp` raises for such kernels.

    Raises:
      ValueError: if the stride is not 1 and `in_blocks` is not set.
    """
    if stride != 1 and not in_blocks:
        raise ValueError(f"in_blocks must be True where stride is not 1; got stride {stride!r}.")
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return lax.platform_dependent(inputs, kernel, cpu=_of_one_tap, default=partial(_convolve, padding=padding))
    if kernel.shape[2] <= FEW and kernel.shape[0] * kernel.shape[1] <= TAPS and stride == 1:
        return _of_few_channels(inputs, kernel, padding)
    if kernel.size < WIDE and not in_blocks:
        return _convolve(inputs, kernel, padding)
    return _with_gradient(inputs, as_of_one_device(kernel, inputs), padding, stride if in_blocks else None)


def as_of_one_device(param: Array, inputs: Array) -> Array:
    """`param` itself, always, for a function whose gradient is written by hand.

    Under `jax.shard_map` devices share `param` and not `inputs`. It now counts as one a device, as its gradient is; the
    gradient of this function sums those.
    """
    one = inputs[(0,) * inputs.ndim] if inputs.size else jnp.sum(inputs)
    return lax.select(False, jnp.full_like(param, lax.stop_gradient(one)), param)


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
    return jnp.pad(images, ((0, 0), *_borders((rows, columns), "SAME"), (0, 0)))


def _borders(taps: tuple[int, ...], padding: str) -> Borders:
    """How many zeros stand above and below the image, and to its left and right."""
    if padding == "VALID":
        return (0, 0), (0, 0)
    rows, columns = taps
    above, left = (rows - 1) // 2, (columns - 1) // 2
    return (above, rows - 1 - above), (left, columns - 1 - left)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_gradient(inputs: Array, kernel: Array, padding: str, stride: int | None) -> Array:
    """With its kernel's gradient by taps where the stride is None, and in blocks otherwise."""
    return _convolve(inputs, kernel, padding, stride)


def _convolve(inputs: Array, kernel: Array, padding: str, stride: int | None = None) -> Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (stride or 1,) * 2,
        _borders(kernel.shape[:2], padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(inputs: Array, kernel: Array, padding: str, stride: int | None) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(inputs, kernel, padding, stride), (inputs, kernel)


def _backward(padding: str, stride: int | None, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    _, to_inputs = jax.vjp(lambda moved: _convolve(moved, kernel, padding, stride), inputs)

    def from_xla(inputs: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda moved: _convolve(inputs, moved, padding, stride), kernel)[1](cotangent)[0]

    def by_taps(inputs: Array, cotangent: Array) -> Array:
        # The barrier keeps XLA from computing the cotangent anew in each of the products.
        return _kernel_gradient(inputs, lax.optimization_barrier(cotangent), kernel.shape[:2], padding)

    def by_blocks(inputs: Array, cotangent: Array) -> Array:
        return _in_blocks(inputs, cotangent, kernel.shape[:2], padding, stride or 1)

    ours = by_taps if stride is None else by_blocks
    return *to_inputs(cotangent), lax.platform_dependent(inputs, cotangent, cpu=ours, default=from_xla)


def _kernel_gradient(inputs: Array, cotangent: Array, taps: tuple[int, ...], padding: str) -> Array:
    rows, columns = taps
    height, width, channels_out = cotangent.shape[1:]
    if padding == "SAME":
        inputs = _bordered(inputs, rows, columns)
    flat = cotangent.reshape(-1, channels_out)
    products = [
        inputs[:, i : i + height, j : j + width].reshape(flat.shape[0], inputs.shape[-1]).T @ flat
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.stack(products).reshape(rows, columns, -1, channels_out)


def _in_blocks(inputs: Array, cotangent: Array, taps: tuple[int, ...], padding: str, stride: int) -> Array:
    """By one product for each block of images, of as many as divide the batch and need no more than `COPIED` numbers."""
    rows, columns = taps
    channels, channels_out = inputs.shape[-1], cotangent.shape[-1]
    borders = _borders(taps, padding)
    places = inputs.shape[1] * inputs.shape[2] if stride == 1 else rows * cotangent.shape[1] * cotangent.shape[2]
    most = COPIED // (places * (columns * channels + rows * channels_out))
    size = next(size for size in range(max(1, min(most, len(inputs))), 0, -1) if len(inputs) % size == 0)
    wide = jnp.promote_types(inputs.dtype, jnp.float32)

    def add(total: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        seen, given = block
        sides = _shifted(seen, given, taps, borders) if stride == 1 else _patches(seen, given, taps, borders, stride)
        left, right = lax.optimization_barrier(sides)
        product = lax.dot_general(left, right, (((0, 1, 2), (0, 1, 2)), ((), ())), preferred_element_type=wide)
        return total + product.reshape(total.shape), None

    blocks = tuple(array.reshape(-1, size, *array.shape[1:]) for array in (inputs, cotangent))
    shape = (columns, channels, rows, channels_out) if stride == 1 else (rows, columns, channels, channels_out)
    total, _ = lax.scan(add, as_of_one_device(jnp.zeros(shape, wide), inputs), blocks)
    return (total.transpose(2, 0, 1, 3) if stride == 1 else total).astype(inputs.dtype)


def _shifted(inputs: Array, cotangent: Array, taps: tuple[int, ...], borders: Borders) -> tuple[Array, Array]:
    """The two sides of Σ_{b, u, x} in[b, u, x + j − q, c] · d[b, u − i + p, x, o], which is the gradient for stride 1.

    Columns are shifted in the inputs, and rows in the cotangent: each is copied once for every column or row of the kernel,
    and neither for every tap.
    """
    rows, columns = taps
    (above, below), beside = borders
    height, width = inputs.shape[1], cotangent.shape[2]
    inputs = jnp.pad(inputs, ((0, 0), (0, 0), beside, (0, 0)))
    cotangent = jnp.pad(cotangent, ((0, 0), (rows - 1 - above, rows - 1 - below), (0, 0), (0, 0)))
    left = [inputs[:, :, j : j + width] for j in range(columns)]
    right = [cotangent[:, rows - 1 - i : rows - 1 - i + height] for i in range(rows)]
    return jnp.concatenate(left, axis=-1), jnp.concatenate(right, axis=-1)


def _patches(
    inputs: Array, cotangent: Array, taps: tuple[int, ...], borders: Borders, stride: int
) -> tuple[Array, Array]:
    """The two sides of the gradient for another stride: the inputs are copied for every tap, at few places each."""
    height, width = (stride * (size - 1) + 1 for size in cotangent.shape[1:3])
    inputs = jnp.pad(inputs, ((0, 0), *borders, (0, 0)))
    left = [inputs[:, i : i + height : stride, j : j + width : stride] for i in range(taps[0]) for j in range(taps[1])]
    return jnp.concatenate(left, axis=-1), cotangent


_with_gradient.defvjp(_forward, _backward)
