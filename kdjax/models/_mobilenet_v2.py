"""MobileNetV2 for images of 32 × 32 pixels: blocks that widen, filter each channel by itself, and narrow."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import check_images, computing_type, outputs, unit
from kdjax.models._convolution import Convolved, Images

STEM, LAST, WIDENED = 32, 1280, 6
GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels, blocks and the first block's stride. The first group's block does not widen."""
STAGE_ENDS = {2: "stage1", 3: "stage2", 5: "stage3", 7: "stage4"}
"""The groups, counted from 1, whose outputs are features: the last ones of a size, and the last but one of the largest."""


class Block(nn.Module):
    """Widened by a convolution 1 × 1, filtered by one of 3 × 3 a channel, narrowed by a convolution 1 × 1 without ReLU.

    Added to the inputs where the shape stays.
    """

    width: int
    stride: int
    widened: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=self.dtype)
        inner = inputs.shape[-1] * self.widened
        x = nn.relu(layer(inputs, "widen", inner, 1))
        x = nn.relu(layer(x, "filter", inner, 3, stride=self.stride, groups=inner))
        x = layer(x, "narrow", self.width, 1)
        return x + inputs if self.stride == 1 and inputs.shape[-1] == self.width else x


class MobileNetV2(nn.Module):
    """A network of inverted residual blocks, for small images: with width 0.5 the usual student of tables on distillation.

    A convolution 3 × 3 with stride 2; seventeen blocks, three of them with stride 2; a convolution 1 × 1; the mean
    over all positions, and the logits. Normalised after each convolution.

    Attributes:
      width: by what the channels are multiplied, and cut off to whole numbers; the 1,280 of the last convolution only
        by more than 1.
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where
        the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage4"`` [batch, height, width, channels], of images of 32 × 32 pixels at 16, 8, 4 and
    2; no ReLU is taken of them, so that they may be negative. And ``"embedding"`` [batch, 1280], what the logits are read
    from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels].

    Note:
      As in the code that the tables were made with: an image is halved four times, not five times; ReLU, not ReLU6;
      the first block has a convolution 1 × 1 too, though it does not widen; numbers of channels are not rounded to
      multiples of 8; no dropout. The initial weights are normal with variance 2 / fan-in, and 1 / fan-in for the
      logits; the biases are zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(MobileNetV2(width=0.5, classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["stage1"].shape, outputs.features["stage4"].shape
      ((2, 16, 16, 12), (2, 2, 2, 160))

    Reference:
      Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
      https://arxiv.org/abs/1801.04381

      Tian et al., "Contrastive Representation Distillation", 2020, whose code has the form for CIFAR:
      https://github.com/HobbitLong/RepDistiller/blob/master/models/mobilenetv2.py
    """

    width: float = 1.0
    classes: int = 10
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.positive("width", self.width)
        if int(GROUPS[0][0] * self.width) < 1:
            raise ValueError(f"width must leave {GROUPS[0][0]} channels at least one; got {self.width!r}.")
        _checks.whole("classes", self.classes, 1)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs)
        dtype = computing_type(self)
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=dtype)
        features: dict[str, Array] = {}
        x = nn.relu(layer(inputs, "stem", int(STEM * self.width), 3, stride=2))
        for group, (channels, count, first) in enumerate(GROUPS, 1):
            for number in range(1, count + 1):
                stride, widened = first if number == 1 else 1, 1 if group == 1 else WIDENED
                name = f"group{group}_block{number}"
                block = Block(int(channels * self.width), stride, widened, self.axis_name, dtype, name=name)
                x = block(x, train=train)
            if group in STAGE_ENDS:
                features[STAGE_ENDS[group]] = x
        x = nn.relu(layer(x, "last", int(LAST * max(self.width, 1)), 1))
        return outputs(jnp.mean(x, axis=(1, 2)), features, self.classes, dtype)
