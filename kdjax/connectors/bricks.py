"""Bricks for connectors of your own: layers, chains of layers, pooling and resizing, as pure functions of arrays.

A layer's parameters are a dict: a kernel, [in, out] for a dense layer or [height, width, in, out] for a convolution, and
either a bias or the scale and bias of batch normalisation. Computation is in float32 at least.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax import _checks
from kdjax._types import AnyArray, Tree, Weights
from kdjax.connectors._sizes import MAP
from kdjax.connectors._sizes import at_least_float32 as at_least_float32
from kdjax.connectors._sizes import average_to_one_size as average_to_one_size
from kdjax.connectors._sizes import average_to_size as average_to_size
from kdjax.connectors._sizes import average_to_vector as average_to_vector
from kdjax.connectors._sizes import flatten as flatten
from kdjax.connectors._sizes import resize as resize

__all__ = [
    "apply_chain",
    "apply_layer",
    "at_least_float32",
    "average_to_one_size",
    "average_to_size",
    "average_to_vector",
    "convolution",
    "dense",
    "flatten",
    "init_chain",
    "init_layer",
    "join",
    "normalize",
    "resize",
]

KEPT = 0.9
"""How much of the running mean and variance stays at a step."""
EPSILON = 1e-5


def init_layer(rng: PRNGKeyArray, shape: tuple[int, ...], *, normalize: bool = False, gain: float = 1.0) -> Weights:
    """A layer's weights, for `apply_layer`.

    Args:
      rng: a key.
      shape: the kernel's, (in, out) for a dense layer or (height, width, in, out) for a convolution.
      normalize: whether batch normalisation takes the bias's place.
      gain: the kernel is from a truncated normal distribution of variance gain / fan-in; 2 before a ReLU, which keeps
        the signal's size.

    Returns:
      Params ``kernel`` and ``bias``, 0; with normalisation also ``scale``, 1, and the model_state ``mean`` and ``variance``.

    Raises:
      ValueError: `shape` has neither two nor four entries.

    Example:
      >>> params, model_state = init_layer(jax.random.key(0), (3, 3, 4, 8), normalize=True)
      >>> params["kernel"].shape, sorted(params), sorted(model_state)
      ((3, 3, 4, 8), ['bias', 'kernel', 'scale'], ['mean', 'variance'])
    """
    if len(shape) not in (2, 4):
        raise ValueError(f"shape must be (in, out) or (height, width, in, out); got {shape!r}.")
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
) -> tuple[Float[Array, "batch *new_positions channels_out"], Tree]:
    """The layer of `init_layer`: `dense` or `convolution`, then `normalize` or the bias.

    Args:
      params: as `init_layer` makes them; what they hold says which layer it is.
      model_state: the running statistics; ``{}`` without normalisation.
      x: what comes in.
      train: as in `normalize`.
      strides: a convolution's, in height and width.
      padding: a convolution's, ``"SAME"`` or ``"VALID"``.

    Returns:
      What comes out, and the new model_state.

    Raises:
      ValueError: as `dense` and `convolution` do.

    Example:
      >>> params, model_state = init_layer(jax.random.key(0), (4, 8))
      >>> apply_layer(params, model_state, jnp.ones((2, 5, 4)), train=True)[0].shape
      (2, 5, 8)
    """
    kernel = params["kernel"]
    x = dense(x, kernel) if kernel.ndim == 2 else convolution(x, kernel, strides=strides, padding=padding)
    if "scale" in params:
        return normalize(params, model_state, x, train=train)
    return x + _per_channel(params["bias"], x), model_state


def init_chain(
    rng: PRNGKeyArray, shapes: Sequence[tuple[int, ...]], *, normalize: bool = False, activated_last: bool = False
) -> Weights:
    """Weights of layers one after the other, for `apply_chain`. A kernel that a ReLU follows has gain 2.

    Args:
      rng: a key.
      shapes: of the kernels, as in `init_layer`. None at all is the identity.
      normalize: whether each layer has batch normalisation.
      activated_last: whether an activation follows the last layer too.

    Returns:
      Weights by layer, ``layer1`` and so on.

    Raises:
      ValueError: as `init_layer` does.

    Example:
      >>> init_chain(jax.random.key(0), [(4, 8), (8, 3)]).params["layer2"]["kernel"].shape
      (8, 3)
    """
    last = len(shapes)
    return join(
        {
            f"layer{i}": init_layer(
                jax.random.fold_in(rng, i), shape, normalize=normalize, gain=2.0 if i < last or activated_last else 1.0
            )
            for i, shape in enumerate(shapes, start=1)
        }
    )


def apply_chain(
    params: Tree,
    model_state: Tree,
    x: Float[Array, "batch *positions channels_in"],
    *,
    train: bool,
    activation: Callable[[Array], Array] = jax.nn.relu,
    activated_last: bool = False,
    **first: Any,
) -> tuple[Float[Array, "batch *new_positions channels_out"], Tree]:
    """The layers of `init_chain`, with the activation between them and, where told, after the last.

    Args:
      params: by layer.
      model_state: by layer.
      x: what comes in.
      train: as in `normalize`.
      activation: a function of arrays.
      activated_last: whether it follows the last layer too.
      **first: strides and padding of the first layer.

    Returns:
      What comes out, and the new model_state.

    Raises:
      ValueError: as `apply_layer` does.

    Example:
      >>> params, model_state = init_chain(jax.random.key(0), [(3, 3, 4, 8), (8, 5)])
      >>> apply_chain(params, model_state, jnp.ones((2, 6, 6, 4)), train=True, strides=(2, 2))[0].shape
      (2, 3, 3, 5)
    """
    states = {}
    for i in range(1, len(params) + 1):
        name = f"layer{i}"
        x, states[name] = apply_layer(params[name], model_state[name], x, train=train, **(first if i == 1 else {}))
        if i < len(params) or activated_last:
            x = activation(x)
    return x, states


def join(parts: Mapping[str, Weights]) -> Weights:
    """Several parts' weights as one, by name.

    Args:
      parts: each part's weights.

    Returns:
      ``Weights({name: params}, {name: model_state})``.

    Example:
      >>> join({"query": Weights({"w": 1}, {}), "key": Weights({"w": 2}, {})}).params
      {'query': {'w': 1}, 'key': {'w': 2}}
    """
    return Weights(
        {name: part.params for name, part in parts.items()}, {name: part.model_state for name, part in parts.items()}
    )


def dense(
    x: Float[Array, "batch *positions channels_in"], kernel: Float[AnyArray, "channels_in channels_out"]
) -> Float[Array, "batch *positions channels_out"]:
    """The product with a kernel along the last axis: on a map, a 1 × 1 convolution.

    Raises:
      ValueError: `x` has other channels than the kernel.

    Example:
      >>> dense(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 5))).shape
      (2, 4, 4, 5)
    """
    _same_channels(x, kernel)
    return jnp.einsum("...i,io->...o", at_least_float32(x), kernel)


def convolution(
    x: Float[Array, "batch height width channels_in"],
    kernel: Float[AnyArray, "rows columns channels_in channels_out"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> Float[Array, "batch new_height new_width channels_out"]:
    """The convolution of maps with a kernel.

    Raises:
      ValueError: `x` is no map, or has other channels than the kernel.

    Example:
      >>> convolution(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), padding="VALID")[0, ..., 0].tolist()
      [[9.0, 9.0], [9.0, 9.0]]
    """
    _checks.rank("x", x, 4, MAP)
    _same_channels(x, kernel)
    x = at_least_float32(x)
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel, x.dtype), strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normalize(
    params: Tree, model_state: Tree, x: Float[Array, "batch *positions channels"], *, train: bool
) -> tuple[Float[Array, "batch *positions channels"], Tree]:
    """Batch normalisation of each channel over examples and positions.

    Args:
      params: ``scale`` and ``bias``, [channels].
      model_state: the running ``mean`` and ``variance``, [channels].
      x: what comes in.
      train: whether the statistics are the batch's, which the running ones then follow, or the running ones.

    Returns:
      (x − mean) · scale / √(variance + 1e-5) + bias, and the new model_state.

    Example:
      >>> params, model_state = init_layer(jax.random.key(0), (1, 1), normalize=True)
      >>> x, after = normalize(params, model_state, jnp.array([[1.0], [3.0]]), train=True)
      >>> x.round(2).tolist(), round(float(after["mean"][0]), 2)
      ([[-1.0], [1.0]], 0.2)
    """
    x = at_least_float32(x)
    if train:
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axis=axes)
        variance = jnp.mean(jnp.square(x - _per_channel(mean, x)), axis=axes)
        now = {"mean": mean, "variance": variance}
        model_state = {
            name: (KEPT * old + (1.0 - KEPT) * lax.stop_gradient(now[name])).astype(old.dtype)
            for name, old in model_state.items()
        }
    else:
        mean, variance = model_state["mean"], model_state["variance"]
    factor = params["scale"] * lax.rsqrt(variance + EPSILON)
    return (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(params["bias"], x), model_state


def _same_channels(x: Array, kernel: AnyArray) -> None:
    if x.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"x must have the kernel's {kernel.shape[-2]} channels in its last axis; got shape {tuple(x.shape)}."
        )


def _per_channel(numbers: AnyArray, x: Array) -> Array:
    """[channels] with axes of length 1 before, to stand beside `x`."""
    return jnp.asarray(numbers).reshape((1,) * (x.ndim - 1) + numbers.shape)
