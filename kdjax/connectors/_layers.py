"""The few layers that connectors are made of, as `Weights` and functions of them.

A layer is a product with a kernel, [in, out] at every position or [height, width, in, out] as a convolution, and then
either a bias or batch normalisation. Computation is in float32 at least.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax._types import AnyArray, Tree, Weights

KEPT = 0.9
"""How much of the running mean and variance stays at a step."""
EPSILON = 1e-5

Activation = Callable[[Array], Array]


def leaky_relu(x: Array) -> Array:
    return jnp.where(x < 0, 0.1 * x, x)


def init_layer(rng: PRNGKeyArray, shape: tuple[int, ...], *, normalize: bool = False, gain: float = 1.0) -> Weights:
    """Kernel from a cut-off normal distribution of variance gain / fan-in; biases 0, scales 1."""
    kernel = jax.nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")(rng, shape, jnp.float32)
    bias = jnp.zeros(shape[-1])
    if not normalize:
        return Weights({"kernel": kernel, "bias": bias}, {})
    return Weights(
        {"kernel": kernel, "scale": jnp.ones(shape[-1]), "bias": bias},
        {"mean": jnp.zeros(shape[-1]), "variance": jnp.ones(shape[-1])},
    )


def apply_layer(
    params: Tree,
    model_state: Tree,
    x: Float[Array, "batch *positions channels_in"],
    *,
    train: bool,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> tuple[Array, Tree]:
    """The layer of `init_layer`. While training, normalised by the batch's statistics, which the running ones follow."""
    x, kernel = widened(x), params["kernel"]
    if kernel.ndim == 2:
        x = jnp.einsum("...i,io->...o", x, kernel)
    else:
        kernel = kernel.astype(x.dtype)
        x = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if "scale" in params:
        x, model_state = _normalize(params, model_state, x, train)
    return x + per_channel(params["bias"], x), model_state


def init_chain(
    rng: PRNGKeyArray, shapes: Sequence[tuple[int, ...]], *, normalize: bool = False, activated_last: bool = False
) -> Weights:
    """Layers one after the other. A kernel that a ReLU follows has gain 2, which keeps the signal's size."""
    layers = {
        f"layer{i}": init_layer(
            jax.random.fold_in(rng, i),
            shape,
            normalize=normalize,
            gain=2.0 if i < len(shapes) or activated_last else 1.0,
        )
        for i, shape in enumerate(shapes, start=1)
    }
    return Weights(
        {name: layer.params for name, layer in layers.items()},
        {name: layer.model_state for name, layer in layers.items()},
    )


def apply_chain(
    params: Tree,
    model_state: Tree,
    x: Array,
    *,
    train: bool,
    activation: Activation = jax.nn.relu,
    activated_last: bool = False,
    **first: Any,
) -> tuple[Array, Tree]:
    """The layers of `init_chain`, with the activation between them and, where told, after the last.

    Args:
      params: by layer.
      model_state: by layer.
      x: [batch, …, channels].
      train: as in `apply_layer`.
      activation: a function of arrays.
      activated_last: whether it follows the last layer too.
      **first: strides and padding of the first layer.
    """
    states = {}
    for i in range(1, len(params) + 1):
        name = f"layer{i}"
        x, states[name] = apply_layer(params[name], model_state[name], x, train=train, **(first if i == 1 else {}))
        if i < len(params) or activated_last:
            x = activation(x)
    return x, states


def widened(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_channel(numbers: AnyArray, x: Array) -> Array:
    """[channels] with axes of length 1 before, to stand beside `x`."""
    return jnp.asarray(numbers).reshape((1,) * (x.ndim - 1) + numbers.shape)


def averaged(x: Array) -> Array:
    """Maps [batch, height, width, channels] averaged over positions; [batch, dim] as it is."""
    return jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x


def _normalize(params: Tree, model_state: Tree, x: Array, train: bool) -> tuple[Array, Tree]:
    if train:
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axis=axes)
        variance = jnp.mean(jnp.square(x - per_channel(mean, x)), axis=axes)
        seen = {"mean": mean, "variance": variance}
        model_state = {
            name: (KEPT * old + (1.0 - KEPT) * lax.stop_gradient(seen[name])).astype(old.dtype)
            for name, old in model_state.items()
        }
    else:
        mean, variance = model_state["mean"], model_state["variance"]
    factor = params["scale"] * lax.rsqrt(variance + EPSILON)
    return (x - per_channel(mean, x)) * per_channel(factor, x), model_state
