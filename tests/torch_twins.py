"""The networks of torch_files.py in Flax Linen, with names of Flax's own or, where asked, of PyTorch's."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

FOLDER = Path(__file__).parent / "golden" / "torch"
OUTPUTS = np.load(FOLDER / "outputs.npz")
IMAGES, TOKENS = OUTPUTS["images"], OUTPUTS["tokens"]


class Convolutional(nn.Module):
    classes: int = 5

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(nn.Conv(8, (3, 3), feature_group_count=2, use_bias=False)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        # Flax numbers layers as they are made, here from the outer one in; only the order of the calls tells.
        return nn.Dense(self.classes)(nn.relu(nn.Dense(12)(x)))


class Block(nn.Module):
    width: int
    stride: int
    shortcut_first: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        def shortcut():
            if self.stride == 1 and x.shape[-1] == self.width:
                return x
            return norm()(nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x))

        def norm():
            return nn.BatchNorm(not train)

        def conv(stride):
            return nn.Conv(self.width, (3, 3), stride, [(1, 1), (1, 1)], use_bias=False)

        before = shortcut() if self.shortcut_first else None
        y = norm()(conv(1)(nn.relu(norm()(conv(self.stride)(x)))))
        return nn.relu(y + (before if self.shortcut_first else shortcut()))


class Residual(nn.Module):
    shortcut_first: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), padding=[(1, 1), (1, 1)], use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(not train)(x))
        for width, stride in ((4, 1), (4, 1), (8, 2), (8, 1)):
            x = Block(width, stride, self.shortcut_first)(x, train)
        return nn.Dense(5)(x.mean((1, 2)))


class TransformerBlock(nn.Module):
    epsilon: float = 1e-5
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(self.epsilon)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y)
        y = nn.LayerNorm(self.epsilon)(x)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(y), approximate=False))


class Transformer(nn.Module):
    epsilon: float = 1e-5
    heads: int = 2

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens) + self.param("position", nn.initializers.zeros, (1, 6, 8))
        for _ in range(2):
            x = TransformerBlock(self.epsilon, self.heads)(x)
        return nn.Dense(5)(jnp.mean(nn.LayerNorm(self.epsilon)(x), 1))


TWINS = {"cnn": (Convolutional(), IMAGES), "residual": (Residual(), IMAGES), "transformer": (Transformer(), TOKENS)}
