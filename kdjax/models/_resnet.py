"""Residual networks for images of 32 × 32 pixels: ResNet-20, -56, -110, and those that are four times wider."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import check_images, computing_type, in_order, outputs, unit
from kdjax.models._convolution import Convolved, Images


class Block(nn.Module):
    """Two convolutions 3 × 3, each normalised, with a ReLU between; added to the inputs, before the ReLU that follows.

    Where the shape changes, the inputs go through a normalised convolution 1 × 1.
    """

    width: int
    stride: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        layer = partial(unit, train=train, axis_name=self.axis_name, dtype=self.dtype)
        x = nn.relu(layer(inputs, "conv1", self.width, 3, stride=self.stride))
        x = layer(x, "conv2", self.width, 3)
        if inputs.shape[-1] != self.width or self.stride != 1:
            return x + layer(inputs, "shortcut", self.width, 1, stride=self.stride)
        return x + inputs


class ResNet(nn.Module):
    """A residual network for small images, as in the experiments on CIFAR of the paper and of work on distillation.

    A convolution 3 × 3, normalised, and a ReLU; three stages of (depth − 2) / 6 blocks of two convolutions 3 × 3, the
    second and third at half the height and width of the one before; the mean over all positions, and the logits.

    Attributes:
      depth: 6n + 2 for n blocks a stage, such as 8, 14, 20, 32, 44, 56 or 110.
      widths: the channels of the first convolution and of the three stages. The literature's resnet8x4 and resnet32x4
        have ``(32, 64, 128, 256)``: the stages are four times as wide as by default, the first convolution twice.
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where
        the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage3"`` [batch, height, width, channels], each stage's output after its last ReLU;
    ``"stage1_before_relu"`` … the sums that this ReLU is taken of; and ``"embedding"`` [batch, channels], what the
    logits are read from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels].

    Note:
      Where a stage changes the shape, a convolution 1 × 1 with weights stands beside its first block, as in the code
      that the tables on distillation were made with; the paper pads with zeros there. The initial weights are normal
      with variance 2 / fan-in, and 1 / fan-in for the logits; the biases are zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(ResNet(depth=20, classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["stage3"].shape, outputs.features["embedding"].shape
      ((2, 8, 8, 64), (2, 64))

    Reference:
      He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2. https://arxiv.org/abs/1512.03385
      Tian et al., "Contrastive Representation Distillation", 2020, whose code has the ×4 ones and the shortcuts:
      https://github.com/HobbitLong/RepDistiller/blob/master/models/resnet.py
    """

    depth: int
    widths: tuple[int, ...] = (16, 16, 32, 64)
    classes: int = 10
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with at least one block a stage: 8, 14, 20, …; got {self.depth!r}.")
        if len(self.widths) != 4:
            raise ValueError(
                f"widths must be four numbers, of the first convolution and three stages; got {self.widths!r}."
            )
        for width in self.widths:
            _checks.whole("widths", width, 1)
        for name, least in (("depth", 8), ("classes", 1)):
            _checks.whole(name, getattr(self, name), least)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs)
        dtype = computing_type(self)
        sums: dict[str, Array] = {}
        x = unit(inputs, "stem", self.widths[0], 3, train=train, axis_name=self.axis_name, dtype=dtype)
        for stage, width in enumerate(self.widths[1:], 1):
            for number in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                block = Block(width, stride, self.axis_name, dtype, name=f"stage{stage}_block{number}")
                x = block(nn.relu(x), train=train)
            sums[f"stage{stage}"] = x
        return outputs(jnp.mean(nn.relu(x), axis=(1, 2)), in_order(sums), self.classes, dtype)
