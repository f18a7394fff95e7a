"""Features of other sizes: pooling, resizing and flattening, the bricks without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import AnyArray
from kdjax.losses import _math

MAP = "[batch, height, width, channels]"


def average_to_vector(x: Float[Array, "batch *positions channels"]) -> Float[Array, " batch *rest"]:
    """Maps [batch, height, width, channels] averaged over their positions, [batch, channels]; anything else as it is.

    Example:
      >>> average_to_vector(jnp.ones((2, 4, 4, 3))).shape, average_to_vector(jnp.ones((2, 3))).shape
      ((2, 3), (2, 3))
    """
    return jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x


def average_to_size(
    x: Float[Array, "batch height width channels"], height: int, width: int
) -> Float[Array, "batch {height} {width} channels"]:
    """Maps averaged down to a size, in float32 at least; where sizes do not divide, neighbouring windows overlap.

    Raises:
      ValueError: `x` is no map, a size is not a whole number above 0, or `x` is smaller than that.

    Example:
      >>> average_to_size(jnp.arange(4.0).reshape(1, 1, 4, 1), 1, 2)[0, 0, :, 0].tolist()
      [0.5, 2.5]
    """
    _checks.rank("x", x, 4, MAP)
    for name, new, old in (("height", height, x.shape[1]), ("width", width, x.shape[2])):
        _checks.whole(name, new, 1)
        if new > old:
            raise ValueError(f"{name} must be at most that of x, {old}; got {new}.")
    return _math.adaptive_average_pool(at_least_float32(x), height, width)


def average_to_one_size(
    first: Float[Array, "batch *first_positions first_channels"],
    second: Float[Array, "batch *second_positions second_channels"],
) -> tuple[Array, Array]:
    """Two maps of one size, the smaller height and the smaller width of the two, in float32 at least.

    Raises:
      ValueError: one of them is no map.

    Example:
      >>> [x.shape for x in average_to_one_size(jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 6)))]
      [(2, 4, 4, 3), (2, 4, 4, 6)]
    """
    _checks.rank("first", first, 4, MAP)
    _checks.rank("second", second, 4, MAP)
    return _math.averaged_to_one_size(at_least_float32(first), at_least_float32(second))


def resize(
    x: Float[Array, "batch height width channels"], height: int, width: int, *, method: str = "linear"
) -> Float[Array, "batch {height} {width} channels"]:
    """Maps at another size, in float32 at least.

    Args:
      x: maps.
      height: the new one.
      width: the new one.
      method: ``"linear"``, between the centres of cells, and where maps shrink a weighted mean of what a new cell covers, as
        `jax.image.resize` does it; or ``"nearest"``: row i is row ⌊i · old / new⌋ of the old.

    Raises:
      ValueError: `x` is no map, a size is not a whole number above 0, or `method` is none of these.

    Example:
      >>> resize(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1), 1, 4, method="nearest").ravel().tolist()
      [1.0, 1.0, 2.0, 2.0]
    """
    _checks.rank("x", x, 4, MAP)
    _checks.whole("height", height, 1)
    _checks.whole("width", width, 1)
    _checks.one_of("method", method, ("linear", "nearest"))
    x = at_least_float32(x)
    if x.shape[1:3] == (height, width):
        return x
    if method == "linear":
        return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear")
    for axis, new in ((1, height), (2, width)):
        x = jnp.take(x, jnp.arange(new) * x.shape[axis] // new, axis=axis)
    return x


def flatten(x: Float[Array, " batch *rest"]) -> Float[Array, "batch dim"]:
    """Each example's feature as one vector.

    Example:
      >>> flatten(jnp.ones((2, 4, 4, 3))).shape
      (2, 48)
    """
    return x.reshape(x.shape[0], -1)


def at_least_float32(x: AnyArray) -> Array:
    """Half precision widened to float32; anything else as it is.

    Example:
      >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
