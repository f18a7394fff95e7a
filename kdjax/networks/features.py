"""Which layers a network shows, by name and by position; and features made from its features."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Outputs, Tree, Weights
from kdjax.losses import _math

FromOutputs = Callable[[Outputs], Array]


def layer_names(apply: Apply, weights: Weights, inputs: Any) -> tuple[str, ...]:
    """The names of a network's features in the order in which it makes them, and ``"logits"`` at the end.

    Nothing is computed: the network is traced by `jax.eval_shape`.

    Args:
      apply: the network.
      weights: its weights, as arrays or as `jax.ShapeDtypeStruct`.
      inputs: a batch of any size, likewise.

    Returns:
      Names for `kdjax.on_feature`, `kdjax.on_outputs` and the like.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs, {"stage2": inputs, "stage10": inputs, "embedding": inputs}), model_state
      >>> layer_names(network, Weights({}, {}), jnp.ones((2, 3)))
      ('stage2', 'stage10', 'embedding', 'logits')

    Note:
      An `Apply` that is itself jitted shows its features sorted by name: JAX sorts the keys of what crosses `jax.jit`.
    """
    # The names are noted while tracing, since the dict that eval_shape returns is sorted already.
    seen: list[str] = []

    def noted(weights: Weights, inputs: Any) -> Array:
        outputs, _ = run(apply, *weights, inputs, train=False)
        seen[:] = outputs.features
        return outputs.logits

    jax.eval_shape(noted, weights, inputs)
    return (*seen, "logits")


def layer_at(apply: Apply, weights: Weights, inputs: Any, position: int = -3) -> str:
    """The name of the layer at a position, by default the third from the end.

    Args:
      apply: as in `layer_names`.
      weights: likewise.
      inputs: likewise.
      position: 0 is the first layer, -1 the logits, -2 what they are read from. -3 is then the last stage of the
        convolutional networks of `kdjax.models`.

    Raises:
      ValueError: if there is no such position.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs, {"stage1": inputs, "stage2": inputs, "embedding": inputs}), model_state
      >>> layer_at(network, Weights({}, {}), jnp.ones((2, 3)))
      'stage2'
    """
    names = layer_names(apply, weights, inputs)
    if not -len(names) <= position < len(names):
        raise ValueError(
            f"position must lie between {-len(names)} and {len(names) - 1} for the layers {', '.join(names)}; "
            f"got {position}."
        )
    return names[position]


def with_features(apply: Apply, **functions: FromOutputs) -> Apply:
    """A network that shows more features, each made from its outputs: averages, projections, fusions.

    Args:
      apply: the network, a student or a teacher; gradients flow through what is added.
      **functions: ``name=function``, with ``function(outputs) -> array``, such as `average_of` or
        `kdjax.networks.projection_of`. All read the network's own outputs. What no term reads costs nothing under jit.

    Returns:
      An `Apply` of the same weights.

    Raises:
      ValueError: later, if the network has a feature of such a name already, or as a function says.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs.mean((1, 2)), {"stage1": inputs}), model_state
      >>> wider = with_features(network, stage1_mean=average_of("stage1"))
      >>> outputs, _ = wider({}, {}, jnp.ones((2, 4, 4, 3)), train=False)
      >>> outputs.features["stage1_mean"].shape
      (2, 3)
    """

    def apply_with(
        params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: PRNGKeyArray | None = None
    ) -> tuple[Outputs, Tree]:
        outputs, model_state = run(apply, params, model_state, inputs, train=train, rng=rng)
        if taken := sorted(functions.keys() & {*outputs.features, "logits"}):
            raise ValueError(
                f"with_features must add features of new names; got {', '.join(taken)}, and the network has "
                f"{', '.join((*outputs.features, 'logits'))}."
            )
        more = {name: function(outputs) for name, function in functions.items()}
        return Outputs(outputs.logits, {**outputs.features, **more}), model_state

    return apply_with


def average_of(name: str) -> FromOutputs:
    """Global average pooling, to match networks whose maps differ in size: [batch, …, channels] to [batch, channels].

    Args:
      name: of a feature. One without positions, [batch, dim], is kept as it is.

    Returns:
      A function of `Outputs`, for `with_features`. Its result is float32 at least.

    Raises:
      ValueError: later, if there is no such feature, or if it is not [batch, …, channels].
    """

    def average(outputs: Outputs) -> Float[Array, "batch channels"]:
        feature = _checks.feature("network", outputs, name)
        _checks.rank_at_least(name, feature, 2, "[batch, ..., channels]")
        wide = feature.astype(jnp.promote_types(feature.dtype, jnp.float32))
        return jnp.mean(wide, axis=tuple(range(1, feature.ndim - 1)))

    return average


def fused(*names: str, normalize: bool = False) -> FromOutputs:
    """Several layers as one map, to match what a network sees at several scales at once.

    Each map is averaged down to the least height and the least width among them, and all are joined along the channels.

    Args:
      *names: of features, each [batch, height, width, channels]; their channels stand in this order.
      normalize: whether each layer's part is divided by its root mean square over positions and channels, in each example:
        a layer then counts neither for its scale nor for its count of channels. A part of zeros stays zero.

    Returns:
      A function of `Outputs`, for `with_features`. Its result is [batch, height, width, Σ channels], float32 at least.

    Raises:
      ValueError: if a name is given twice or there is none; later, if there is no such feature, or if one is no map.

    Example:
      Both networks show the feature, and a regressor brings the student's channels to the teacher's:

      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs.mean((1, 2)), {"stage1": inputs, "stage2": inputs[:, ::2, ::2]}), model_state
      >>> wider = with_features(network, fused=fused("stage1", "stage2", normalize=True))
      >>> outputs, _ = wider({}, {}, jnp.full((2, 8, 8, 3), 7.0), train=False)
      >>> outputs.features["fused"].shape, bool(jnp.allclose(outputs.features["fused"], 1.0))
      ((2, 4, 4, 6), True)

    Note:
      Where sizes do not divide, neighbouring windows of the average overlap, so that each position is read.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names must be one feature or more, each once; got {names!r}.")

    def fuse(outputs: Outputs) -> Float[Array, "batch height width channels"]:
        maps = []
        for name in names:
            feature = _checks.feature("network", outputs, name)
            _checks.rank(name, feature, 4, "[batch, height, width, channels]")
            maps.append(feature.astype(jnp.promote_types(feature.dtype, jnp.float32)))
        height, width = (min(one.shape[axis] for one in maps) for axis in (1, 2))
        parts = [_math.adaptive_average_pool(one, height, width) for one in maps]
        if normalize:
            parts = [_math.unit(part, (1, 2, 3)) * math.prod(part.shape[1:]) ** 0.5 for part in parts]
        return jnp.concatenate(parts, axis=-1)

    return fuse
