"""Transformers for tokens and for patches of a picture, with the features by name that terms read."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax import Outputs


class Block(nn.Module):
    """Attention and a dense layer of four times the width, each after a normalisation and beside a way around."""

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        queries, keys, values = jnp.split(nn.Dense(3 * width, name="attend")(nn.LayerNorm()(x)), 3, axis=-1)
        parts = (*x.shape[:-1], self.heads, width // self.heads)
        seen = jax.nn.dot_product_attention(
            queries.reshape(parts), keys.reshape(parts), values.reshape(parts), is_causal=self.causal
        )
        x = x + nn.Dense(width, name="join")(seen.reshape(x.shape))
        return x + nn.Dense(width, name="down")(nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x))))


class LanguageModel(nn.Module):
    """The next byte after each of [batch, time]: logits [batch, time, 256]."""

    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Outputs:
        time = tokens.shape[1]
        places = self.param("places", nn.initializers.normal(0.02), (time, self.width))
        x = nn.Embed(256, self.width)(tokens) + places[None]
        for number in range(self.layers):
            x = Block(self.heads, causal=True, name=f"block{number}")(x)
        hidden = nn.LayerNorm()(x)
        return Outputs(nn.Dense(256, name="head")(hidden), {"hidden": hidden})


class VisionTransformer(nn.Module):
    """A class token and, for DeiT, a distillation token before the patches of a picture.

    In training the logits are the class token's and the feature ``"distilled"`` the distillation token's; in inference
    the logits are the mean of both, as the paper has it.
    """

    classes: int
    width: int
    layers: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        patches = nn.Conv(self.width, (self.patch, self.patch), strides=self.patch, name="patches")(images)
        patches = patches.reshape(len(images), -1, self.width)
        tokens = self.param("tokens", nn.initializers.normal(0.02), (2, self.width))
        x = jnp.concatenate([jnp.broadcast_to(tokens, (len(images), *tokens.shape)), patches], axis=1)
        x = x + self.param("places", nn.initializers.normal(0.02), x.shape[1:])[None]
        for number in range(self.layers):
            x = Block(self.heads, causal=False, name=f"block{number}")(x)
        x = nn.LayerNorm()(x)
        own, distilled = (
            nn.Dense(self.classes, name="class")(x[:, 0]),
            nn.Dense(self.classes, name="distilled")(x[:, 1]),
        )
        return Outputs(own if train else (own + distilled) / 2, {"distilled": distilled, "embedding": x[:, 0]})
