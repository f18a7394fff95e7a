"""More frameworks' networks as `Weights` and an `Apply`: Keras 3 on JAX, and pairs of plain functions such as Haiku's.

What a network may return, and what ``train=False`` means, is as in `kdjax.networks.adapters`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PRNGKeyArray

from kdjax._apply import outputs_of
from kdjax._types import Apply, Outputs, Tree, Weights
from kdjax.networks.adapters import both_modes

Rng = PRNGKeyArray | None


def from_keras(model: Any, *, axis_name: str | None = None) -> tuple[Weights, Apply]:
    """A Keras 3 model, on its JAX backend, as its arrays and a pure function; the model itself is never changed.

    Args:
      model: a ``keras.Model`` that is built. Its trainable variables become params by their paths, such as
        ``"dense/kernel"``; those that are not, such as BatchNorm's statistics and frozen layers, the model_state. The
        states of its random layers go to neither: while training, each is drawn from `rng`.
      axis_name: the device axis. Where given, the key is folded with the device's number, so that each device draws its
        own noise.

    Returns:
      `Weights`, copies of the model's arrays, and the `Apply`. `into_keras` writes trained ones back into the model.

    Raises:
      ImportError: if Keras is not installed.
      ValueError: if `model` is no built Keras model, or Keras runs on another backend; later, if it returns no logits, or
        if it draws noise and is trained without `rng`.

    Note:
      Regularisation that a layer adds by ``add_loss`` is no part of an objective. Logits come before any softmax: a model
      whose last layer has one gives probabilities, and its divergences are then wrong.
    """
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError(
            f'Keras must run on JAX, by KERAS_BACKEND="jax" before it is imported; got {keras.backend.backend()}.'
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"model must be a keras.Model; got {type(model).__name__}.")
    if not model.built:
        raise ValueError("model must be built, by its input's shape or by a call with one batch; got one that is not.")
    _refuse_softmax(model)
    trainable, others = _names(model.trainable_variables), _names(model.non_trainable_variables)
    kept = _without_streams(model)
    streams = [name for name in others if name not in kept]
    seeds = {name: jnp.array(others[name].value) for name in streams}

    def apply(params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: Rng = None) -> tuple[Outputs, Tree]:
        if train and rng is None and streams:
            raise ValueError("rng must be a key while training a Keras model that draws noise; got None.")
        own = seeds
        if train and rng is not None:
            key = rng if axis_name is None else jax.random.fold_in(rng, lax.axis_index(axis_name))
            own = {
                name: jax.random.bits(jax.random.fold_in(key, number), seeds[name].shape, jnp.uint32)
                for number, name in enumerate(streams)
            }
        rest = {**model_state, **own}
        result, new = model.stateless_call(
            [params[name] for name in trainable], [rest[name] for name in others], inputs, training=train
        )
        changed = dict(zip(others, new, strict=True))
        state = {name: changed[name] for name in model_state} if train else model_state
        return outputs_of(result, type(model).__name__), state

    params = {name: jnp.array(variable.value, copy=True) for name, variable in trainable.items()}
    state = {name: jnp.array(variable.value, copy=True) for name, variable in kept.items()}
    return Weights(params, state), apply


def into_keras(model: Any, weights: Weights) -> None:
    """Writes trained weights back into the Keras model that `from_keras` took them from.

    Args:
      model: the model; its variables are changed, those of random layers excepted.
      weights: by the names that `from_keras` gave them. Two variables of one path have two names there.

    Raises:
      ValueError: if names or shapes are not those of the model; nothing is written then.
    """
    found = {"params": _names(model.trainable_variables), "model_state": _without_streams(model)}
    for part, variables in found.items():
        given = {name: np.shape(array) for name, array in getattr(weights, part).items()}
        own = {name: tuple(variable.shape) for name, variable in variables.items()}
        if given != own:
            odd = min(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
            raise ValueError(
                f"weights must be of this model; in {part}, {odd} is {given.get(odd, 'missing')}, and "
                f"{own.get(odd, 'missing')} in the model."
            )
    for part, variables in found.items():
        for name, variable in variables.items():
            variable.assign(getattr(weights, part)[name])


def from_haiku(
    transformed: Any, *, modes: Mapping[str, Any], axis_name: str | None = None
) -> tuple[Callable[[PRNGKeyArray, Tree], Weights], Apply]:
    """A pair of plain functions, as ``haiku.transform`` and ``haiku.transform_with_state`` give them.

    Args:
      transformed: has ``init(rng, inputs, …)``, which returns params or (params, state), and ``apply(params, rng, inputs,
        …)`` or, with a state, ``apply(params, state, rng, inputs, …)``, which returns (its output, the new state).
      modes: the arguments that say whether the network trains, as ``{name: value while training}``, such as
        ``{"is_training": True}``, or ``{name: (value while training, value otherwise)}``; ``{}`` where none does. What
        such functions take cannot be seen from outside, hence no default.
      axis_name: as in `from_keras`.

    Returns:
      ``init(rng, inputs) -> Weights`` and the `Apply`.

    Raises:
      ValueError: if `transformed` is no such pair; later, if it returns no logits.

    Example:
      >>> from typing import NamedTuple
      >>> class Pair(NamedTuple):  # as haiku.transform returns it
      ...     init: object
      ...     apply: object
      >>> pair = Pair(lambda rng, inputs: {"w": jnp.ones((4, 3))}, lambda params, rng, inputs: inputs @ params["w"])
      >>> init, apply = from_haiku(pair, modes={})
      >>> apply(*init(jax.random.key(0), jnp.ones((1, 4))), jnp.ones((2, 4)), train=False)[0].logits.shape
      (2, 3)
    """
    own_init, own_apply = getattr(transformed, "init", None), getattr(transformed, "apply", None)
    if not (callable(own_init) and callable(own_apply)):
        raise ValueError(f"transformed must have functions init and apply; got {type(transformed).__name__}.")
    if not isinstance(modes, Mapping):
        raise ValueError(f"modes must be a mapping from names to values, {{}} where there is none; got {modes!r}.")
    pairs = both_modes(modes)
    taken = inspect.signature(own_apply).parameters
    has_state = "state" in taken
    kinds = [one.kind for one in taken.values()]
    if len(kinds) > 1 and kinds[1 + has_state : 2 + has_state] == [inspect.Parameter.VAR_POSITIONAL]:
        raise ValueError(
            f"transformed must take a key, apply(params, rng, inputs) or apply(params, state, rng, inputs); its apply takes "
            f"({', '.join(taken)}), as after without_apply_rng. Give what haiku.transform returned."
        )

    def init(rng: PRNGKeyArray, inputs: Tree) -> Weights:
        made = own_init(rng, inputs, **{name: pair[1] for name, pair in pairs.items()})
        return Weights(*made) if has_state else Weights(made, {})

    def apply(params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: Rng = None) -> tuple[Outputs, Tree]:
        named = {name: pair[0 if train else 1] for name, pair in pairs.items()}
        key = rng if train else None
        if key is not None and axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        if not has_state:
            return outputs_of(own_apply(params, key, inputs, **named), "apply"), model_state
        result, new = own_apply(params, model_state, key, inputs, **named)
        return outputs_of(result, "apply"), new if train else model_state

    return init, apply


def _without_streams(model: Any) -> dict[str, Any]:
    """The variables that are not trained, but for the states of random layers."""
    named = _names(model.non_trainable_variables)
    return {
        name: variable
        for name, variable in named.items()
        if not ("seed_generator_state" in name and variable.dtype == "uint32")
    }


def _names(variables: Any) -> dict[str, Any]:
    """Variables by path; where paths are alike, numbered."""
    named: dict[str, Any] = {}
    for variable in variables:
        name, number = variable.path, 1
        while name in named:
            name, number = f"{variable.path}_{number}", number + 1
        named[name] = variable
    return named


def _refuse_softmax(model: Any) -> None:
    """Where a model is a chain of layers whose last one is seen to make probabilities."""
    last = model
    while type(last).__name__ in ("Sequential", "Functional") and last.layers:
        last = last.layers[-1]
    activation: Any = getattr(last, "activation", None)
    names = (type(last).__name__.lower(), getattr(activation, "__name__", "")) if last is not model else ()
    if found := {"softmax", "sigmoid", "hard_sigmoid"}.intersection(names):
        raise ValueError(
            f"model must return logits; its last layer makes probabilities, by {min(found)}: leave that away, as by "
            "model.layers[-1].activation = None, which changes no weight."
        )
