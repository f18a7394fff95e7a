"""Views of images, as pure functions of a key and one image; `jax.vmap` makes them functions of a batch.

Each example has a key of its own, made from its place in the data set. So what becomes of it depends neither on the batch it
stands in nor on how the batch is split over devices. `kdjax.data.make_views` puts views together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, Shaped

from kdjax import _checks
from kdjax._types import AnyArray, Number
from kdjax.batches import keys_of_each

PADDINGS = {"zero": "constant", "reflect": "reflect", "edge": "edge"}
GREY = (0.299, 0.587, 0.114)
"""How bright red, green and blue look: ITU-R BT.601."""


def example_keys(key: PRNGKeyArray, indices: Int[AnyArray, " batch"]) -> Key[Array, " batch"]:
    """Give each example a key by its own number: whatever the batch, the same.

    Args:
      key: of this step or epoch.
      indices: the examples' places in the data set.

    Returns:
      Keys [batch], of threefry2x32 for any `key`: what keys of rbg draw under `jax.vmap` depends on the first of them.

    Raises:
      ValueError: if indices are not whole numbers [batch].
    """
    if jnp.ndim(indices) != 1 or not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise ValueError(
            "indices must be whole numbers of shape [batch], the examples' places in the data set; "
            f"got shape {jnp.shape(indices)} and dtype {jnp.result_type(indices)}."
        )
    return keys_of_each(key, indices)


def random_crop(
    key: PRNGKeyArray, image: Shaped[Array, "height width channels"], *, padding: int = 4, mode: str = "zero"
) -> Shaped[Array, "height width channels"]:
    """Shift an image by up to `padding` pixels each way: pad it, then cut a window of its old size at a random place.

    Args:
      key: of this example.
      image: [height, width, channels], any dtype.
      padding: pixels on each side. All (2 · padding + 1)² windows are equally likely.
      mode: what is padded with: ``"zero"``; ``"reflect"``, the image mirrored at its outermost pixels; ``"edge"``, those
        pixels repeated.

    Returns:
      The window.

    Raises:
      ValueError: if `mode` is unknown, or `padding` is negative or, with ``"reflect"``, not less than both sides.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> shifted = random_crop(jax.random.key(0), jnp.ones((8, 8, 1)), padding=2, mode="edge")
      >>> shifted.shape, float(shifted.min())
      ((8, 8, 1), 1.0)

    Note:
      Zero is the middle of the range, not the background, for inputs in [-1, 1]: crop before that, or use ``"edge"``.
    """
    _be_image(image)
    _checks.one_of("mode", mode, tuple(PADDINGS))
    largest = min(image.shape[:2]) - 1 if mode == "reflect" else max(image.shape[:2])
    if not (type(padding) is int and 0 <= padding <= largest):
        raise ValueError(
            f"padding must be a whole number between 0 and {largest} for {mode!r} and an image of shape "
            f"{tuple(image.shape)}; got {padding!r}."
        )
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=PADDINGS[mode])
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def horizontal_flip(
    key: PRNGKeyArray, image: Shaped[Array, "height width channels"], *, probability: Number = 0.5
) -> Shaped[Array, "height width channels"]:
    """Turn left and right around, or leave the image as it is.

    Args:
      key: of this example.
      image: [height, width, channels], any dtype.
      probability: of turning, between 0 and 1.

    Returns:
      The image or its mirror image.

    Raises:
      ValueError: if probability is not between 0 and 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> horizontal_flip(jax.random.key(0), jnp.arange(3)[None, :, None], probability=1.0).ravel().tolist()
      [2, 1, 0]

    Note:
      Most letters and digits are no letters and digits any more when turned around.
    """
    _be_image(image)
    _checks.between("probability", probability, 0.0, 1.0)
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def color_jitter(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    brightness: Number = 0.4,
    contrast: Number = 0.4,
    saturation: Number = 0.4,
    bounds: tuple[Number, Number] = (0.0, 1.0),
) -> Float[Array, "height width channels"]:
    """Change an image's brightness, contrast and saturation, each by a random factor.

    With factors b, c, s uniform in [1 − strength, 1 + strength], and g the grey image 0.299 R + 0.587 G + 0.114 B:
    x ← b x, then x ← c x + (1 − c) mean(g), then x ← s x + (1 − s) g, each clipped to the bounds.

    Args:
      key: of this example.
      image: floating-point [height, width, channels], within `bounds`; 3 channels, or 1, whose saturation is none.
      brightness: strength, between 0, which changes nothing, and 1.
      contrast: strength, likewise.
      saturation: strength, likewise.
      bounds: black and white, such as (-1, 1) for `symmetric_range`.

    Returns:
      The changed image, within the bounds.

    Raises:
      ValueError: if the image is not floating-point with 1 or 3 channels, a strength is not between 0 and 1, or bounds
        are not a lower and a higher number, both finite.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> image = jnp.full((2, 2, 3), 0.5)
      >>> changed = color_jitter(jax.random.key(0), image)
      >>> bool((changed != image).all() & (changed >= 0).all() & (changed <= 1).all())
      True

    Note:
      Common code also draws the order of the three; here it is always this one.
    """
    _be_image(image)
    _checks.floating("image", image)
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels for color_jitter; got shape {tuple(image.shape)}.")
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in strengths.items():
        _checks.between(name, value, 0.0, 1.0)
    if not np.iterable(bounds) or len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be a lower and a higher number; got {bounds!r}.")
    _checks.finite("bounds", bounds)
    low, high = bounds
    amounts = jnp.array(list(strengths.values()), jnp.float32)
    bright, contrasted, saturated = 1 + amounts * jax.random.uniform(key, (3,), minval=-1, maxval=1)
    wide = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    x = (wide - low) / (high - low)
    x = jnp.clip(bright * x, 0, 1)
    x = jnp.clip(contrasted * x + (1 - contrasted) * jnp.mean(_grey(x)), 0, 1)
    x = jnp.clip(saturated * x + (1 - saturated) * _grey(x), 0, 1)
    return (low + (high - low) * x).astype(image.dtype)


def _grey(image: Array) -> Array:
    """[height, width, 1]"""
    if image.shape[-1] == 1:
        return image
    return jnp.einsum("hwc,c->hw", image, jnp.array(GREY, image.dtype), precision=jax.lax.Precision.HIGHEST)[..., None]


def _be_image(image: Array) -> None:
    _checks.rank("image", image, 3, "[height, width, channels], one image; jax.vmap takes a batch")
