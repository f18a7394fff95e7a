"""VGG networks for images of 32 × 32 pixels: chains of convolutions, normalised, with one dense layer."""
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
from kdjax.models._layers import max_pool, max_pool_at_inference

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""How many a stage has, by depth. The paper counts two more dense layers than these networks keep."""
WIDTHS = (64, 128, 256, 512, 512)
POOLED_FOUR_TIMES = 64
"""Images of so many pixels are pooled after the fourth stage too, as in the code that the tables were made with."""


class VGG(nn.Module):
    """A chain of convolutions 3 × 3 in five stages, for small images: VGG-8, -11, -13, -16 or -19.

    Each convolution is normalised and followed by a ReLU. After each of the first three stages the largest of each 2 ×
    2 positions is taken; after the fifth, the mean over all, from which one dense layer makes the logits.

    Attributes:
      depth: 8, 11, 13, 16 or 19.
      classes: the number of logits.
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation; None where
        the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stage5"`` [batch, height, width, channels], each stage's output after its last ReLU and
    before the pooling; ``"stage1_before_relu"`` … what this ReLU is taken of; and ``"embedding"`` [batch, 512], what the
    logits are read from.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels] of at least 8 × 8 pixels.

    Note:
      The paper's three dense layers are one here, and the fourth and fifth pooling are left out, as in the code that
      the tables on distillation were made with; like there, images that are 64 pixels high are pooled after the fourth
      stage too. Depth 8 is that code's own. The initial weights are normal with variance 2 / fan-in, and 1 / fan-in
      for the logits; the biases are zero.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(VGG(depth=8, classes=100))
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> outputs, _ = jax.eval_shape(lambda: apply(*init(jax.random.key(0), images), images, train=False))
      >>> outputs.features["stage4"].shape, outputs.features["stage5"].shape
      ((2, 4, 4, 512), (2, 4, 4, 512))

    Reference:
      Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, table 1.
      https://arxiv.org/abs/1409.1556
      Tian et al., "Contrastive Representation Distillation", 2020, whose code has the form for CIFAR:
      https://github.com/HobbitLong/RepDistiller/blob/master/models/vgg.py
    """

    depth: int
    classes: int = 10
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}; got {self.depth!r}.")
        _checks.whole("classes", self.classes, 1)

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        check_images(inputs, least=8)
        dtype = computing_type(self)
        layer = partial(unit, bias=True, train=train, axis_name=self.axis_name, dtype=dtype)
        pool = max_pool if train else max_pool_at_inference
        poolings = 4 if inputs.shape[1] == POOLED_FOUR_TIMES else 3
        sums: dict[str, Array] = {}
        x = inputs
        for stage, (count, width) in enumerate(zip(CONVOLUTIONS[self.depth], WIDTHS, strict=True), 1):
            for number in range(1, count + 1):
                before = layer(x, f"stage{stage}_conv{number}", width, 3)
                x = nn.relu(before)
            sums[f"stage{stage}"] = before
            if stage <= poolings:
                x = pool(x)
        return outputs(jnp.mean(x, axis=(1, 2)), in_order(sums), self.classes, dtype)
