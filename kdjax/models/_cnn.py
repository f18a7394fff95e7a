"""One small convolutional network, in the shapes of the articles and of the demo."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._blocks import computing_type
from kdjax.models._convolution import convolve
from kdjax.models._layers import Dropout, max_pool, max_pool_at_inference


def initializer(gain: float) -> Any:
    """Weights from a normal distribution, cut off at two deviations, whose variance is gain / fan-in."""
    return nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")


class Stage(nn.Module):
    """Convolution 3 × 3, batch normalisation where wanted, ReLU, max-pooling 2 × 2.

    The bias is added and the ReLU taken after pooling: both are monotone in each channel, so the value is the same, and
    they touch a quarter of the numbers. Normalisation may turn a channel's order around and stays before; it has its own
    bias.
    """

    width: int
    padding: str
    batch_norm: bool
    gain: float
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height_out width_out channels_out"]:
        kernel = self.param("kernel", initializer(self.gain), (3, 3, inputs.shape[-1], self.width), jnp.float32)
        inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
        x = convolve(inputs, kernel, self.padding)
        pool = max_pool if train else max_pool_at_inference
        if self.batch_norm:
            norm = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype, name="norm"
            )
            return nn.relu(pool(norm(x)))
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return nn.relu(pool(x) + bias.astype(x.dtype)[None, None, None, :])


class CNN(nn.Module):
    """Stages of convolution, ReLU and pooling, then at most one hidden dense layer, then the logits.

    Attributes:
      widths: the channels of each stage; a stage halves height and width.
      hidden: the width of the hidden dense layer and its ReLU; None: the logits read the flattened last stage.
      classes: the number of logits.
      padding: of the convolutions, ``"SAME"`` or ``"VALID"``.
      batch_norm: normalise in each stage, with a running mean that keeps 0.9 of itself a step.
      gain: the variance of the initial weights times their fan-in. 2 (He et al. 2015) keeps the signal's size through ReLUs;
        1/3 is as small as PyTorch's default. The logits, which no ReLU follows, get at most 1. Biases start at zero.
      dropout: the rate at which the logits' inputs are dropped while training, in [0, 1).
      axis_name: the device axis over which the batch is split, for the statistics of batch normalisation and the masks of
        dropout; None where the network sees the whole batch, as under `jax.jit` with a sharded batch.
      dtype: of the computation and the features; None: that of the parameters, which begin in float32, so that `computed_in`
        sets it. Statistics are float32, and so are logits unless they are float64.

    Features: ``"stage1"`` … ``"stageN"`` [batch, height, width, channels], each stage's output, and ``"embedding"``
    [batch, dim], what the logits are read from, before dropout.

    Raises:
      ValueError: at construction, if a setting is out of its range; when called, if the inputs are not floating-point
        [batch, height, width, channels] or too small for the stages.

    Example:
      >>> import jax
      >>> from kdjax.networks import from_linen
      >>> init, apply = from_linen(CNN(widths=(4, 8), hidden=16))
      >>> images = jnp.ones((2, 28, 28, 1))
      >>> outputs, _ = apply(*init(jax.random.key(0), images), images, train=False)
      >>> {name: feature.shape for name, feature in outputs.features.items()}
      {'stage1': (2, 14, 14, 4), 'stage2': (2, 7, 7, 8), 'embedding': (2, 16)}
    """

    widths: tuple[int, ...]
    hidden: int | None = None
    classes: int = 10
    padding: str = "SAME"
    batch_norm: bool = False
    gain: float = 2.0
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths must hold one number at least; got none.")
        sizes = {"widths": self.widths, "hidden": () if self.hidden is None else (self.hidden,)}
        for name, values in (sizes | {"classes": (self.classes,)}).items():
            for value in values:
                _checks.whole(name, value, 1)
        _checks.one_of("padding", self.padding, ("SAME", "VALID"))
        _checks.positive("gain", self.gain)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1; got {self.dropout!r}.")

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Outputs:
        self._check(inputs)
        dtype = computing_type(self)
        features: dict[str, Array] = {}
        x = inputs
        for number, width in enumerate(self.widths, 1):
            name = f"stage{number}"
            stage = Stage(width, self.padding, self.batch_norm, self.gain, self.axis_name, dtype, name=name)
            x = features[name] = stage(x, train=train)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        if self.hidden is not None:
            x = nn.relu(nn.Dense(self.hidden, dtype=dtype, kernel_init=initializer(self.gain), name="hidden")(x))
        features["embedding"] = x
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        logits = nn.Dense(self.classes, dtype=dtype, kernel_init=initializer(min(self.gain, 1.0)), name="logits")(x)
        return Outputs(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), features)

    def _check(self, inputs: Array) -> None:
        _checks.rank("inputs", inputs, 4, "[batch, height, width, channels]")
        _checks.floating("inputs", inputs)
        smallest = 1
        for _ in self.widths:
            smallest = 2 * smallest + (2 if self.padding == "VALID" else 0)
        if min(inputs.shape[1:3]) < smallest:
            raise ValueError(
                f"inputs must be at least {smallest} pixels high and wide for {len(self.widths)} stages with "
                f"{self.padding} padding; got shape {tuple(inputs.shape)}."
            )
