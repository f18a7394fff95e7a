"""Two examples as one, mixup and cutmix; and views put together to one function of a key and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Batch, Number
from kdjax.data.augmentation import example_keys

Share = Float[Array, ""]
Augment = Callable[[PRNGKeyArray, Batch], dict[str, Any]]


def mixup(
    key: PRNGKeyArray,
    image: Float[Array, "*shape"],
    partner: Float[Array, "*shape"],
    *,
    alpha: Number = 1.0,
) -> tuple[Float[Array, "*shape"], Share]:
    """Average two examples: λ x + (1 − λ) x′, with λ from Beta(α, α).

    Args:
      key: of this example.
      image: x, floating-point.
      partner: x′.
      alpha: α > 0. 1 makes λ uniform in [0, 1], as aggressive as function matching wants it; 0.2 leaves most examples nearly
        alone.

    Returns:
      The mixed example, and λ, the share of `image` in it.

    Raises:
      ValueError: if alpha is not above 0, or the two are not floating-point of one shape.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> mixed, share = mixup(jax.random.key(0), jnp.ones((2, 2, 1)), jnp.zeros((2, 2, 1)))
      >>> bool((mixed == share).all())
      True

    Note:
      Common code draws one λ for the whole batch; here each example has its own.

    Reference:
      Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, 2018, section 2.
      https://arxiv.org/abs/1710.09412
    """
    share = _drawn_share(key, image, partner, alpha)
    wide = jnp.promote_types(image.dtype, jnp.float32)
    mixed = share * image.astype(wide) + (1 - share) * partner.astype(wide)
    return mixed.astype(image.dtype), share


def cutmix(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    partner: Float[Array, "height width channels"],
    *,
    alpha: Number = 1.0,
) -> tuple[Float[Array, "height width channels"], Share]:
    """Put a box of one image into another.

    λ from Beta(α, α); the box's sides are √(1 − λ) of the image's, rounded to whole pixels, its middle is uniform in the
    image, and what lies outside of the image is cut off. The share is then counted: 1 − pixels of the box / pixels.

    Args:
      key: of this example.
      image: [height, width, channels], floating-point.
      partner: the image that the box is cut from.
      alpha: α > 0; 1 makes λ uniform.

    Returns:
      The mixed image, and the share of `image` in it, exact in the number of pixels.

    Raises:
      ValueError: as in `mixup`, or if the arrays are not [height, width, channels].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> mixed, share = cutmix(jax.random.key(0), jnp.ones((8, 8, 1)), jnp.zeros((8, 8, 1)))
      >>> round(float(64 * mixed.mean()), 3) == round(float(64 * share), 3)
      True

    Note:
      Common code loses a pixel of every odd side, by halving it twice.

    Reference:
      Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019, section 3.1.
      https://arxiv.org/abs/1905.04899
    """
    _checks.rank("image", image, 3, "[height, width, channels], one image; jax.vmap takes a batch")
    of_share, of_rows, of_columns = jax.random.split(key, 3)
    part = jnp.sqrt(1 - _drawn_share(of_share, image, partner, alpha))
    rows = _stretch(of_rows, image.shape[0], part)
    columns = _stretch(of_columns, image.shape[1], part)
    inside = rows[:, None, None] & columns[None, :, None]
    pixels = image.shape[0] * image.shape[1]
    share = (pixels - jnp.sum(inside)).astype(jnp.float32) / pixels
    return jnp.where(inside, partner, image), share


def make_views(*views: Callable[[PRNGKeyArray, Array], Array], mix: Callable[..., Any] | None = None) -> Augment:
    """Build ``augment(key, batch) -> batch`` from functions of one image: each view in turn, then the mixing.

    Args:
      *views: ``view(key, image) -> image``, such as `horizontal_flip`, or ``partial(random_crop, padding=2)``.
      mix: ``mix(key, image, partner) -> (image, share)``, `mixup` or `cutmix`; None: no mixing. **The partner is the
        example before it in the batch**, the first one's is the last; it is mixed as its own views left it.

    Returns:
      A function of a key and a batch with ``"inputs"`` and ``"indices"``, the examples' places in the data set. It changes
      the inputs. With `mix` it adds ``"share"``, float32 [batch], and, where there are labels, ``"partner_labels"``, for
      `kdjax.objectives.mixed_cross_entropy`; ``"labels"`` stay those of the first of each pair.

    Raises:
      ValueError: later, if the batch has no indices, with `mix` if it has a mask, or as a view says.

    Example:
      >>> from functools import partial
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.batches import view_key
      >>> from kdjax.data import horizontal_flip, make_views, mixup, random_crop
      >>> augment = make_views(partial(random_crop, padding=1), horizontal_flip, mix=mixup)
      >>> batch = {"inputs": jnp.ones((3, 4, 4, 1)), "labels": jnp.arange(3), "indices": jnp.array([5, 0, 2])}
      >>> seen = jax.jit(augment)(view_key(jax.random.key(0), 1), batch)
      >>> sorted(seen), seen["partner_labels"].tolist()
      (['indices', 'inputs', 'labels', 'partner_labels', 'share'], [2, 0, 1])

    Note:
      Without `mix` the view of an example depends on the key and its index alone. With `mix` it depends on its partner too,
      hence on the batch: with `kdjax.training.jit_step` on the whole one, under `jax.pmap` and `jax.shard_map` on
      the device's part of it.
    """

    def augment(key: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        if "indices" not in batch:
            raise ValueError(
                f'batch must have "indices", the examples\' places in the data set; it has {sorted(batch)}.'
            )
        if mix is not None and (left_out := {"mask", "labelled"} & batch.keys()):
            raise ValueError(
                f'batch must have no "{min(left_out)}" where examples are mixed: a partner may be one that does not count. '
                "Leave such examples out before they are in a batch."
            )
        keys = example_keys(key, batch["indices"])
        seen = dict(batch)
        for number, view in enumerate(views):
            seen["inputs"] = jax.vmap(view)(_for(keys, number), seen["inputs"])
        if mix is not None:
            seen["inputs"], seen["share"] = jax.vmap(mix)(
                _for(keys, len(views)), seen["inputs"], _partners(seen["inputs"])
            )
            if "labels" in batch:
                seen["partner_labels"] = _partners(batch["labels"])
        return seen

    return augment


def _drawn_share(key: PRNGKeyArray, image: Array, partner: Array, alpha: Number) -> Share:
    _checks.positive("alpha", alpha)
    _checks.floating("image", image)
    _checks.same_shape("image", image, "partner", partner)
    if isinstance(alpha, int | float) and alpha == 1:
        # The same distribution, without the loops that draw any other.
        return jax.random.uniform(key, dtype=jnp.float32)
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _stretch(key: PRNGKeyArray, size: int, part: Share) -> Bool[Array, " {size}"]:
    """Which pixels along one axis the box covers."""
    side = jnp.round(size * part).astype(jnp.int32)
    start = jax.random.randint(key, (), 0, size) - side // 2
    place = jnp.arange(size)
    return (place >= start) & (place < start + side)


def _partners(array: Any) -> Array:
    return jnp.roll(jnp.asarray(array), 1, axis=0)


def _for(keys: Key[Array, " batch"], number: int) -> Key[Array, " batch"]:
    """Each view draws from a key of its own."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
