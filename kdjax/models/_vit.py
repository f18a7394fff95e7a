"""Vision transformers for images of 32 × 32 pixels, of the tiny size: a student or teacher of another kind."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import check_images, computing_type

Tokens = Float[Array, "batch tokens width"]
EPSILON = 1e-6
SMALL = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """Attention, then two dense layers with a GELU between; each normalises first, and is added to what it reads."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Tokens) -> Tokens:
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=SMALL)
        batch, tokens, width = inputs.shape
        # One product for queries, keys and values, in this order, each head's numbers side by side.
        qkv = dense(3 * width, name="qkv")(norm(name="norm1")(inputs))
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        half = query.dtype.itemsize < 4
        seen = nn.dot_product_attention(query, key, value, dtype=query.dtype, force_fp32_for_softmax=half)
        x = inputs + dense(width, name="out")(seen.reshape(inputs.shape).astype(query.dtype))
        hidden = nn.gelu(dense(4 * width, name="hidden")(norm(name="norm2")(x)), approximate=False)
        return x + dense(width, name="narrow")(hidden)


class ViT(nn.Module):
    """A vision transformer. As it is by default, the tiny one, for images of 32 × 32 pixels.

    Patches of the image become tokens by a dense layer, a learnt token for the class is put before them, learnt
    positions are added; after `depth` blocks and a normalisation the class's token is what the logits are read from.

    Attributes:
      patch: the height and width of a patch, in pixels.
      width: the numbers of a token; a multiple of heads.
      depth: the number of blocks.
      heads: of the attention.
      classes: the number of logits.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Logits are float32 unless they are float64.

    Features: ``"block1"`` … [batch, tokens, width], each block's output, the class's token first, the patches row by
    row after it; and ``"embedding"`` [batch, width], what the logits are read from. Nothing here depends on other examples
    of the batch, and nothing is drawn: there is no axis to name.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels] whose height and width are multiples of the patch's.

    Note:
      Width, depth and heads are DeiT-Ti's, whose patches of 16 pixels are 4 here, so that an image of 32 × 32 has 64
      of them. Neither dropout nor dropped blocks. The positions are learnt for one size of image: weights for another
      do not fit. The initial weights are normal with deviation 0.02, cut off at two; biases and the class's token are
      zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(ViT(classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["block12"].shape, outputs.features["embedding"].shape
      ((2, 65, 192), (2, 192))

    Reference:
      Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1. https://arxiv.org/abs/2010.11929
      Touvron et al., "Training data-efficient image transformers & distillation through attention", 2021, table 1.
      https://arxiv.org/abs/2012.12877
    """

    patch: int = 4
    width: int = 192
    depth: int = 12
    heads: int = 3
    classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch", "width", "depth", "heads", "classes"):
            _checks.whole(name, getattr(self, name), 1)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, {self.heads}; got {self.width}.")

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs, least=self.patch)
        dtype = computing_type(self)
        if inputs.shape[1] % self.patch or inputs.shape[2] % self.patch:
            raise ValueError(
                f"inputs must have a height and width that are multiples of patch, {self.patch}; "
                f"got shape {tuple(inputs.shape)}."
            )
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, "VALID", kernel_init=SMALL, dtype=dtype, name="patches")(inputs)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width), jnp.float32).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", SMALL, (1, *x.shape[1:]), jnp.float32).astype(x.dtype)
        features: dict[str, Array] = {}
        for number in range(1, self.depth + 1):
            x = features[f"block{number}"] = Block(self.heads, dtype, name=f"block{number}")(x)
        x = features["embedding"] = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name="norm")(x)[:, 0]
        logits = nn.Dense(self.classes, dtype=dtype, kernel_init=SMALL, name="logits")(x)
        return Outputs(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), features)
