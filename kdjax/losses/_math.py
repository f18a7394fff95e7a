"""The arithmetic that losses share, safe where the plain form gives NaN, infinity or rounding noise.

Two rules hold throughout. A forbidden operand is replaced *before* the operation and its result masked after: a mask
after alone leaves NaN in the gradient. And a mask asks for the case to be masked (x ≤ 0), never for its opposite
(x > 0), so that a NaN that comes in goes out and is seen.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.lax import Precision
from jaxtyping import Array, Bool, Float

from kdjax import _checks

# Of eˣ − 1 the powers of x beyond the first, of log((1 + s)/(1 − s)) those of s² beyond it; half are enough for float32.
# The sums end with the first power, not with a product: that would be fused with a subtraction, and equals would differ.
_EXPM1 = [1 / math.factorial(power) for power in range(2, 18)]
_LOG_IN_SQUARES = [2 / (2 * power + 1) for power in range(1, 17)]


def widened(student: Any, teacher: Any) -> tuple[Array, Array]:
    """Both in their common floating type, float32 at least: float16 knows neither 1e-8 nor 65,520."""
    _checks.floating("student", student)
    _checks.floating("teacher", teacher)
    dtype = jnp.result_type(student, teacher, jnp.float32)
    return jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)


def per_example_mean(values: Float[Array, " batch *rest"]) -> Float[Array, " batch"]:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


@jax.custom_jvp
def squared_difference(first: Float[Array, "*shape"], second: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(a − b)²; of large arrays XLA writes no difference to memory, which costs more than the whole rest."""
    return (first - second) ** 2


@partial(squared_difference.defjvp, symbolic_zeros=True)
def _slope_of_squares(given: tuple[Array, Array], moved: tuple[Any, Any]) -> tuple[Array, Array]:
    first, second = given
    # Taken the other way round: XLA would keep a difference that it has seen.
    slope = 2.0 * (second - first)
    value = squared_difference(first, second)
    return value, along((-slope, slope), moved, value)


def smooth_l1(difference: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """d²/2 where |d| < 1, |d| − 1/2 beyond."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * difference * difference, size - 0.5)


def safe_sqrt(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """√x; at x ≤ 0 the value and the gradient are 0."""
    zero = values <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, values)))


def safe_reciprocal(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1/x; at x = 0 the value and the gradient are 0."""
    zero = values == 0
    return jnp.where(zero, 0.0, 1.0 / jnp.where(zero, 1.0, values))


def safe_power(values: Float[Array, "*shape"], power: Any) -> Float[Array, "*shape"]:
    """xᵖ for x ≥ 0; at x = 0 the value and the gradient are 0, for any p > 0."""
    zero = values <= 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, values) ** power)


def log_quotient(difference: Float[Array, "*shape"], total: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(a/b) of a − b and a + b, with all its digits where a/b is between 2/3 and 2; a few products, no logarithm."""
    ratio = difference / total
    squares = ratio * ratio
    return 2.0 * ratio + ratio * squares * _series(_LOG_IN_SQUARES, squares)


def expm1_of_little(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """eˣ − 1 for |x| ≤ 1/2, with all its digits."""
    return values + values * values * _series(_EXPM1, values)


def _series(coefficients: list[float], values: Array) -> Array:
    """Σ cₖ xᵏ, as far as the type has digits for."""
    enough = coefficients[: len(coefficients) // 2] if values.dtype == jnp.float32 else coefficients
    total = jnp.full_like(values, enough[-1])
    for coefficient in reversed(enough[:-1]):
        total = total * values + coefficient
    return total


def along(slopes: tuple[Array, ...], moved: tuple[Any, ...], value: Array) -> Array:
    """The sum of slope times tangent, without the tangents that are known to be 0."""
    total = jnp.zeros_like(value)
    for slope, tangent in zip(slopes, moved, strict=True):
        if not isinstance(tangent, SymbolicZero):
            total = total + slope * tangent
    return total


def kept(rows: Float[Array, "*shape"], where: Any) -> Float[Array, "*shape"]:
    """The rows where `where` holds, 0 elsewhere, through which no gradient passes; all where it is None."""
    if where is None:
        return rows
    return jnp.where(where.reshape(where.shape + (1,) * (rows.ndim - where.ndim)), rows, 0.0)


def spread(where: Any, shape: tuple[int, ...]) -> Any:
    """`where` for every entry of `shape`, of which it has the first axes: of an example that counts, all positions do."""
    return (
        where
        if where is None
        else jnp.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - where.ndim)), shape)
    )


def count(rows: Array, where: Any) -> Any:
    """How many rows there are, or hold in `where`: 1 at least."""
    return rows.shape[0] if where is None else jnp.maximum(jnp.sum(where), 1).astype(rows.dtype)


def pairs(where: Bool[Array, " batch"]) -> Bool[Array, "batch batch"]:
    """Where both examples of a pair count."""
    return where[:, None] & where[None, :]


def mean_over_others(values: Float[Array, "batch batch"], where: Any) -> Float[Array, " batch"]:
    """Each row's mean over the examples that count; 0 for one that does not."""
    if where is None:
        return jnp.mean(values, axis=1)
    return jnp.sum(jnp.where(pairs(where), values, 0.0), axis=1) / count(values, where)


def over_largest(values: Float[Array, "*shape"], axes: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Divides by max |x|, before what does not depend on the size of x: squares then neither overflow nor vanish."""
    # The result below is the same for any divisor, hence the divisor's gradient is exactly 0 and need not be computed.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(values), axis=axes, keepdims=True))
    return values / jnp.where(largest == 0, 1.0, largest)


def unit(values: Float[Array, "*shape"], axes: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Divides by ‖x‖ over `axes`; a zero vector stays zero and has zero gradient."""
    values = over_largest(values, axes)
    return values * safe_reciprocal(safe_sqrt(jnp.sum(values * values, axis=axes, keepdims=True)))


def gram(rows: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    # Accelerators multiply float32 matrices in fewer bits unless told; differences of these products need them all.
    return jnp.einsum("id,jd->ij", rows, rows, precision=Precision.HIGHEST)


def centred(rows: Float[Array, "batch dim"], where: Any = None) -> Float[Array, "batch dim"]:
    """The same cloud of points about 0 and of size 1, for what depends on neither place nor size.

    Products of far points are large and their differences small: about 0 the difference keeps its digits.
    """
    # As in `over_largest`, the result is the same wherever the cloud is put, hence no gradient of the mean is needed.
    mean = jnp.sum(kept(rows, where), axis=0, keepdims=True) / count(rows, where)
    return over_largest(kept(rows - jax.lax.stop_gradient(mean), where), (0, 1))


def squared_distances(products: Float[Array, "batch batch"]) -> Float[Array, "batch batch"]:
    """‖x_i − x_j‖² from a Gram matrix; exactly 0, with zero gradient, on the diagonal and below rounding noise."""
    squares = jnp.diagonal(products)
    sums = squares[:, None] + squares[None, :]
    distances = sums - 2.0 * products
    noise = 16.0 * float(jnp.finfo(products.dtype).eps) * sums
    return jnp.where((distances <= noise) | _diagonal(products), 0.0, distances)


def _diagonal(matrix: Float[Array, "batch batch"]) -> Bool[Array, "batch batch"]:
    return jnp.eye(matrix.shape[0], dtype=bool)


def adaptive_average_pool(
    maps: Float[Array, "batch height width channels"], height: int, width: int
) -> Float[Array, "batch new_height new_width channels"]:
    """Averages to height × width, no larger than now; where sizes do not divide, neighbouring windows overlap."""
    if maps.shape[1:3] == (height, width):
        return maps
    (rows, heights), (columns, widths) = (
        _windows(old, new, maps.dtype) for old, new in zip(maps.shape[1:3], (height, width), strict=True)
    )
    # Divided after: what cancels in a sum leaves 0, and of shares it would leave rounding, which a unit vector is made of.
    sums = jnp.einsum("bhwc,ih,jw->bijc", maps, rows, columns, precision=Precision.HIGHEST)
    return sums / jnp.outer(heights, widths)[None, :, :, None]


def averaged_to_one_size(
    first: Float[Array, "batch first_height first_width first_channels"],
    second: Float[Array, "batch second_height second_width second_channels"],
) -> tuple[Float[Array, "batch height width first_channels"], Float[Array, "batch height width second_channels"]]:
    """The larger maps averaged down to the smaller, in height and in width."""
    height, width = min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])
    return adaptive_average_pool(first, height, width), adaptive_average_pool(second, height, width)


def _windows(old: int, new: int, dtype: Any) -> tuple[Float[Array, "{new} {old}"], Float[Array, " {new}"]]:
    """Row i is 1 at the cells ⌊i·old/new⌋ … ⌈(i+1)·old/new⌉ − 1 and 0 elsewhere; and how many they are."""
    window, cell = jnp.arange(new)[:, None], jnp.arange(old)[None, :]
    inside = (cell >= window * old // new) & (cell < -(-(window + 1) * old // new))
    return inside.astype(dtype), jnp.sum(inside, axis=1, dtype=dtype)
