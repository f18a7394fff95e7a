"""Batch normalisation and ReLU as one layer, whose sums over a batch and whose gradient are made for XLA on a CPU."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax import lax
from jaxtyping import Array, Float

from kdjax.models._convolution import Images, as_of_one_device

PerChannel = Float[Array, " channels"]
AS_THEY_ARE = "axis", "use_bias", "use_scale", "axis_index_groups", "use_fast_variance", "force_float32_reductions"


class Activated(nn.BatchNorm):
    """Linen's batch normalisation of images, and a ReLU after it: max(0, (x − mean) / √(variance + ε) · scale + bias).

    Parameters, statistics and values are those of the two. The gradient is made by hand, and while training there is no
    forward-mode derivative: `jax.jvp` raises. What `BatchNorm` has beside `momentum`, `epsilon`, `axis_name`, `dtype` and
    `use_running_average` is as it is by default, and another value a ValueError.
    """

    @nn.compact
    def __call__(self, x: Images) -> Images:
        defaults = {name: type(self).__dataclass_fields__[name].default for name in AS_THEY_ARE}
        if unlike := [name for name, default in defaults.items() if getattr(self, name) != default]:
            raise ValueError(
                f"{unlike[0]} must be {defaults[unlike[0]]!r} in this layer; got {getattr(self, unlike[0])!r}."
            )
        if self.use_running_average is None:
            raise ValueError("use_running_average must be True or False; got None.")
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        if self.use_running_average:
            inverse = lax.rsqrt(variance.value + self.epsilon)
            return nn.relu(_affine(x, mean.value, inverse, scale, bias).astype(dtype))
        axis_name = None if self.is_initializing() else self.axis_name
        now = _statistics(x, axis_name)
        if not self.is_initializing():
            for running, one in zip((mean, variance), now, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * one
        scale, bias = (
            as_of_one_device(one.astype(jnp.promote_types(one.dtype, jnp.float32)), x) for one in (scale, bias)
        )
        return _activated(x, *now, scale, bias, self.epsilon, axis_name).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _activated(
    x: Images,
    mean: PerChannel,
    variance: PerChannel,
    scale: PerChannel,
    bias: PerChannel,
    epsilon: float,
    axis_name: str | None,
) -> Images:
    """By the statistics of these very inputs: the gradient for the inputs is that through the statistics too."""
    return _forward(x, mean, variance, scale, bias, epsilon, axis_name)[0]


def _forward(
    x: Images,
    mean: PerChannel,
    variance: PerChannel,
    scale: PerChannel,
    bias: PerChannel,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Images, Any]:
    del axis_name  # the statistics know it
    inverse = lax.rsqrt(variance + epsilon)
    return jnp.maximum(_affine(x, mean, inverse, scale, bias), 0), (x, mean, inverse, scale, bias)


def _backward(epsilon: float, axis_name: str | None, saved: Any, cotangent: Images) -> tuple[Any, ...]:
    del epsilon  # it is in the inverse
    x, mean, inverse, scale, bias = saved
    given = jnp.where(_affine(x, mean, inverse, scale, bias) > 0, cotangent, 0)
    normal = (x - _spread(mean)) * _spread(inverse)
    to_bias, to_scale = _sum(given), _sum(given * normal)
    means = jnp.stack([to_bias, to_scale]) / (x.size // x.shape[-1])
    of_all, along = means if axis_name is None else lax.pmean(means, axis_name)
    to_x = _spread(inverse * scale) * (given - _spread(of_all) - normal * _spread(along))
    return to_x.astype(x.dtype), None, None, to_scale, to_bias


_activated.defvjp(_forward, _backward)


def _affine(x: Images, mean: PerChannel, inverse: PerChannel, scale: PerChannel, bias: PerChannel) -> Images:
    """In float32 at least, since all but the inputs are."""
    return (x - _spread(mean)) * _spread(inverse * scale) + _spread(bias)


def _statistics(x: Images, axis_name: str | None) -> tuple[PerChannel, PerChannel]:
    """Mean and variance of each channel."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    moments = jnp.stack([_sum(wide), _sum(wide * wide)]) / (x.size // x.shape[-1])
    mean, of_squares = moments if axis_name is None else lax.pmean(moments, axis_name)
    return mean, jnp.maximum(of_squares - mean * mean, 0)


def _sum(x: Images) -> PerChannel:
    """Of each channel."""
    return lax.platform_dependent(x, cpu=_sum_by_rows, default=lambda x: x.sum((0, 1, 2)))


def _sum_by_rows(x: Images) -> PerChannel:
    """Whole rows are added first: XLA does that on all cores and in full vectors, and not where few channels are left."""
    batch, height, width, channels = x.shape
    # The barrier keeps XLA from making one sum of the two.
    rows = lax.optimization_barrier(x.reshape(batch, height, width * channels).sum(1))
    return rows.sum(0).reshape(width, channels).sum(0)


def _spread(vector: PerChannel) -> Images:
    return vector[None, None, None]
