"""A small U-Net, for a class at every pixel, and a plain CNN of the same blocks, for a whole picture."""

import jax
from flax import linen as nn

from kdjax import Outputs


class UNet(nn.Module):
    """Two levels down and up again: [batch, height, width, channels] to logits [batch, height, width, classes]."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        def block(maps: jax.Array, width: int, strides: int = 1) -> jax.Array:
            return nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(width, (3, 3), strides)(maps)))

        fine = block(images, self.width)
        middle = block(fine, 2 * self.width, strides=2)
        coarse = block(middle, 4 * self.width, strides=2)
        for _ in range(2):  # so that each place sees a whole digit
            coarse = block(coarse, 4 * self.width)
        up = nn.relu(nn.ConvTranspose(2 * self.width, (2, 2), strides=(2, 2))(coarse)) + middle
        up = nn.relu(nn.ConvTranspose(self.width, (2, 2), strides=(2, 2))(up)) + fine
        return Outputs(nn.Conv(self.classes, (1, 1))(up), {"coarse": coarse})


class Whole(nn.Module):
    """Three convolutions and a mean: [batch, height, width, channels] to logits [batch, labels]."""

    labels: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        maps = images
        for factor in (1, 2, 4):
            maps = nn.relu(nn.Conv(factor * self.width, (3, 3), strides=2)(maps))
        return Outputs(nn.Dense(self.labels)(nn.relu(nn.Dense(8 * self.width)(maps.reshape(len(maps), -1)))), {})
