"""Wide residual networks, for images of 32 × 32 pixels or so: the usual teacher and student of the literature on CIFAR."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import activated, check_images, computing_type, convolution, outputs
from kdjax.models._convolution import Convolved, Images

STEM = 16
"""Channels before the first stage; stage n has 16 · 2ⁿ⁻¹ · width."""
STAGES = 3


class Block(nn.Module):
    """Twice normalisation, ReLU and convolution 3 × 3, added to the inputs.

    Where the shape changes, the inputs go through a convolution 1 × 1 instead, after the first ReLU.
    """

    width: int
    stride: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Convolved:
        norm = partial(activated, train=train, axis_name=self.axis_name, dtype=self.dtype)
        first = norm(inputs, "norm1")
        x = convolution(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv1")(first)
        x = norm(x, "norm2")
        x = convolution(self.width, 3, dtype=self.dtype, name="conv2")(x)
        # Called last, as PyTorch's networks register it: the order tells whose weights are whose.
        if inputs.shape[-1] != self.width or self.stride != 1:
            return x + convolution(self.width, 1, stride=self.stride, dtype=self.dtype, name="shortcut")(first)
        return x + inputs


class WideResNet(nn.Module):
    """A residual network that is wide rather than deep: WRN-`depth`-`width`.

    A convolution 3 × 3 to 16 channels, three stages of (depth − 4) / 6 blocks with 16, 32 and 64 times `width` channels, the
    second and third at half the height and width of the one before; then normalisation, ReLU, the mean over all positions,
    and the logits. Each block normalises before it convolves.

    Attributes:
      depth: 6n + 4 for n blocks a stage, such as 16, 28 or 40. It counts all convolutions, the three of 1 × 1 among them.
      width: how many times wider than a plain residual network.
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where the
        network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage3"`` [batch, height, width, channels], the sums that the stages end with, which may be
    negative, and ``"embedding"`` [batch, 64 · width], what the logits are read from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels].

    Note:
      The initial weights are normal with variance 2 / fan-in, and 1 / fan-in for the logits; the biases are zero. The
      paper's dropout between a block's convolutions is left out, as work on distillation does.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(WideResNet(depth=10, width=1, classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> {name: feature.shape for name, feature in outputs.features.items()}
      {'embedding': (2, 64), 'stage1': (2, 32, 32, 16), 'stage2': (2, 16, 16, 32), 'stage3': (2, 8, 8, 64)}

    Reference:
      Zagoruyko and Komodakis, "Wide Residual Networks", 2016, table 1. https://arxiv.org/abs/1605.07146
    """

    depth: int
    width: int
    classes: int = 10
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(
                f"depth must be 6n + 4 with at least one block a stage: 10, 16, 22, …; got {self.depth!r}."
            )
        for name, least in (("depth", 10), ("width", 1), ("classes", 1)):
            _checks.whole(name, getattr(self, name), least)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs)
        dtype = computing_type(self)
        features: dict[str, Array] = {}
        x = convolution(STEM, 3, dtype=dtype, name="stem")(inputs)
        for stage in range(STAGES):
            for number in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                name = f"stage{stage + 1}_block{number + 1}"
                channels = STEM * 2**stage * self.width
                x = Block(channels, stride, self.axis_name, dtype, name=name)(x, train=train)
            features[f"stage{stage + 1}"] = x
        x = activated(x, "norm", train=train, axis_name=self.axis_name, dtype=dtype)
        return outputs(jnp.mean(x, axis=(1, 2)), features, self.classes, dtype)
