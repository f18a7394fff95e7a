"""Batch normalisation and ReLU as one layer, whose sums over a batch and whose gradient are made for XLA on a CPU."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from kdjax.models._convolution import Images, as_of_one_device

MOMENTUM, EPSILON = 0.9, 1e-5
PerChannel = Float[Array, " channels"]


class Activated(nn.Module):
    """max(0, (x − mean) / √(variance + 10⁻⁵) · scale + bias), in each channel.

    Mean and variance are the batch's while training, over all devices of `axis_name`, and the running ones otherwise.
    Parameters, statistics and values are those of ``flax.linen.BatchNorm`` with momentum 0.9, and of ``relu`` after it. The
    gradient is made by hand, and in training there is no forward-mode derivative: `jax.jvp` raises.
    """

    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Images:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale, bias = (
            self.param(name, start, shape)
            for name, start in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        if not train:
            return nn.relu(_affine(x, mean.value, _inverse(variance.value), scale, bias).astype(self.dtype))
        axis_name = None if self.is_initializing() else self.axis_name
        if not self.is_initializing():
            for running, now in zip((mean, variance), _statistics(x, axis_name), strict=True):
                running.value = MOMENTUM * running.value + (1 - MOMENTUM) * now
        scale, bias = (as_of_one_device(one, x) for one in (scale, bias))
        return _activated(x, scale, bias, axis_name).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _activated(x: Images, scale: PerChannel, bias: PerChannel, axis_name: str | None) -> Images:
    return _forward(x, scale, bias, axis_name)[0]


def _forward(x: Images, scale: PerChannel, bias: PerChannel, axis_name: str | None) -> tuple[Images, Any]:
    mean, variance = _statistics(x, axis_name)
    inverse = _inverse(variance)
    return jnp.maximum(_affine(x, mean, inverse, scale, bias), 0), (x, mean, inverse, scale, bias)


def _backward(axis_name: str | None, saved: Any, cotangent: Images) -> tuple[Images, PerChannel, PerChannel]:
    x, mean, inverse, scale, bias = saved
    given = jnp.where(_affine(x, mean, inverse, scale, bias) > 0, cotangent, 0)
    normal = (x - _spread(mean)) * _spread(inverse)
    to_bias, to_scale = _sum(given), _sum(given * normal)
    count = x.size // x.shape[-1]
    of_all, along = (
        one / count if axis_name is None else lax.pmean(one / count, axis_name) for one in (to_bias, to_scale)
    )
    to_x = _spread(inverse * scale) * (given - _spread(of_all) - normal * _spread(along))
    return to_x.astype(x.dtype), to_scale, to_bias


_activated.defvjp(_forward, _backward)


def _affine(x: Images, mean: PerChannel, inverse: PerChannel, scale: PerChannel, bias: PerChannel) -> Images:
    """In float32 at least, since all but the inputs are."""
    return (x - _spread(mean)) * _spread(inverse * scale) + _spread(bias)


def _inverse(variance: PerChannel) -> PerChannel:
    return lax.rsqrt(variance + EPSILON)


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
