"""ShuffleNet for images of 32 × 32 pixels: convolutions 1 × 1 in groups, between which the channels change places."""
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
from kdjax.models._convolution import Convolved, Images, convolve_in_groups

STEM, GROUPS = 24, 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and blocks, of the paper's network with 3 groups."""


class Block(nn.Module):
    """A convolution 1 × 1 in groups to a quarter of the channels, one of 3 × 3 a channel, and one of 1 × 1 in groups.

    Added to the inputs with stride 1; with stride 2 put before the inputs' means over 3 × 3. The ReLU that follows is
    not taken.
    """

    width: int
    stride: int
    groups: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=self.dtype)
        width = self.width - inputs.shape[-1] if self.stride == 2 else self.width
        inner = width // 4
        x = nn.relu(layer(inputs, "conv1", inner, 1, groups=self.groups))
        x = shuffled(x, self.groups)
        x = nn.relu(layer(x, "filter", inner, 3, stride=self.stride, groups=inner))
        x = layer(x, "conv2", width, 1, groups=GROUPS)
        if self.stride == 1:
            return x + inputs
        # As a convolution, which every format has: zeros beyond the borders are numbers of the mean too.
        ones = jnp.ones((3, 3, 1, inputs.shape[-1]), inputs.dtype)
        return jnp.concatenate([x, convolve_in_groups(inputs, ones, 2, inputs.shape[-1]) / 9], axis=-1)


class ShuffleNetV1(nn.Module):
    """A network of grouped convolutions whose channels are shuffled, for small images: a usual student.

    A convolution 1 × 1 to 24 channels; three stages of 4, 8 and 4 blocks with 240, 480 and 960 channels, each at half
    the height and width of what comes before; the mean over all positions, and the logits. Convolutions 1 × 1 have 3
    groups, and all convolutions are normalised.

    Attributes:
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where
        the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage3"`` [batch, height, width, channels], each stage's output after its last ReLU;
    ``"stage1_before_relu"`` … what this ReLU is taken of; and ``"embedding"`` [batch, 960], what the logits are read
    from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels].

    Note:
      As in the code that the tables on distillation were made with: the first convolution is 1 × 1 and no pooling
      follows it, so that a picture of 32 × 32 is not halved before the stages; a ReLU follows the convolution 3 × 3
      too; the first block's first convolution has no groups, and no shuffle follows it. The initial weights are normal
      with variance 2 / fan-in, and 1 / fan-in for the logits; the biases are zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(ShuffleNetV1(classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["stage1"].shape, outputs.features["stage3"].shape
      ((2, 16, 16, 240), (2, 4, 4, 960))

    Reference:
      Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018, table 1.
      https://arxiv.org/abs/1707.01083
      Tian et al., "Contrastive Representation Distillation", 2020, whose code has the form for CIFAR:
      https://github.com/HobbitLong/RepDistiller/blob/master/models/ShuffleNetv1.py
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
        sums: dict[str, Array] = {}
        x = unit(inputs, "stem", STEM, 1, train=train, axis_name=self.axis_name, dtype=dtype)
        for stage, (width, count) in enumerate(STAGES, 1):
            for number in range(1, count + 1):
                stride, groups = 2 if number == 1 else 1, 1 if (stage, number) == (1, 1) else GROUPS
                name = f"stage{stage}_block{number}"
                x = Block(width, stride, groups, self.axis_name, dtype, name=name)(nn.relu(x), train=train)
            sums[f"stage{stage}"] = x
        return outputs(jnp.mean(nn.relu(x), axis=(1, 2)), in_order(sums), self.classes, dtype)
