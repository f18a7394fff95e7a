"""ShuffleNetV2 for images of 32 × 32 pixels: half of the channels are computed anew, then all are mixed."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import check_images, computing_type, in_order, outputs, shuffled, unit
from kdjax.models._convolution import Convolved, Images

STEM, LAST = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))
"""Channels, and blocks after the one that halves height and width, of the paper's network of size 1."""


class Halving(nn.Module):
    """Two branches of half the channels each, both with stride 2: a convolution 3 × 3 a channel, and 1 × 1 around it.

    The channels are shuffled before the ReLU that follows, which is not taken.
    """

    width: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=self.dtype)
        half, channels = self.width // 2, inputs.shape[-1]
        left = layer(inputs, "left_filter", channels, 3, stride=2, groups=channels)
        left = layer(left, "left_conv", half, 1)
        right = nn.relu(layer(inputs, "right_conv1", half, 1))
        right = layer(right, "right_filter", half, 3, stride=2, groups=half)
        right = layer(right, "right_conv2", half, 1)
        return shuffled(jnp.concatenate([left, right], axis=-1), 2)


class Block(nn.Module):
    """Of the second half of the channels: convolutions 1 × 1, 3 × 3 a channel, and 1 × 1; the first half stays.

    The channels are shuffled before the ReLU that follows, which is not taken; it leaves the first half as it is.
    """

    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=self.dtype)
        kept, x = jnp.split(inputs, 2, axis=-1)
        half = x.shape[-1]
        x = nn.relu(layer(x, "conv1", half, 1))
        x = layer(x, "filter", half, 3, groups=half)
        x = layer(x, "conv2", half, 1)
        return shuffled(jnp.concatenate([kept, x], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """A network that computes half of its channels in each block and shuffles them, for small images: a usual student.

    A convolution 1 × 1 to 24 channels; three stages of 4, 8 and 4 blocks with 116, 232 and 464 channels, each at half
    the height and width of what comes before; a convolution 1 × 1 to 1,024 channels; the mean over all positions, and
    the logits. Normalised after each convolution.

    Attributes:
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where
        the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage3"`` [batch, height, width, channels], each stage's output after its last ReLU and
    the shuffle; ``"stage1_before_relu"`` … what this ReLU is taken of, shuffled; and ``"embedding"`` [batch, 1024], what
    the logits are read from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels].

    Note:
      As in the code that the tables on distillation were made with, the first convolution is 1 × 1 and no pooling
      follows it, so that a picture of 32 × 32 is not halved before the stages. That code gives the features before the
      ReLU unshuffled: the same numbers in another order of channels. The initial weights are normal with variance 2 /
      fan-in, and 1 / fan-in for the logits; the biases are zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(ShuffleNetV2(classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["stage1"].shape, outputs.features["stage3"].shape
      ((2, 16, 16, 116), (2, 4, 4, 464))

    Reference:
      Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, table 5.
      https://arxiv.org/abs/1807.11164
      Tian et al., "Contrastive Representation Distillation", 2020, whose code has the form for CIFAR:
      https://github.com/HobbitLong/RepDistiller/blob/master/models/ShuffleNetv2.py
    """

    classes: int = 10
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.whole("classes", self.classes, 1)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs)
        dtype = computing_type(self)
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=dtype)
        sums: dict[str, Array] = {}
        x = layer(inputs, "stem", STEM, 1)
        for stage, (width, count) in enumerate(STAGES, 1):
            name = f"stage{stage}_block"
            x = Halving(width, self.axis_name, dtype, name=f"{name}1")(nn.relu(x), train=train)
            for number in range(2, count + 2):
                x = Block(self.axis_name, dtype, name=f"{name}{number}")(nn.relu(x), train=train)
            sums[f"stage{stage}"] = x
        x = nn.relu(layer(nn.relu(x), "last", LAST, 1))
        return outputs(jnp.mean(x, axis=(1, 2)), in_order(sums), self.classes, dtype)
