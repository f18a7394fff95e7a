"""Running a network: what an `Apply` is called with, and what it may return."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax._types import Apply, Batch, Outputs, Rng, Shared, Tree

WHAT = "(params, model_state, inputs, *, train, rng=None) -> (outputs, model_state)"


def run(
    apply: Apply, params: Tree, model_state: Tree, inputs: Any, *, train: bool, rng: Rng = None
) -> tuple[Outputs, Tree]:
    """The network's `Outputs` and its new model_state, whichever of its forms `apply` returns.

    Forms: ``(outputs, model_state)``, or the outputs alone where the model_state stays; and outputs are of any form of
    `outputs_of`.

    Raises:
      ValueError: if `apply` cannot be called as an `Apply`, or returns something else.
    """
    _check_signature(apply)
    result: Any = apply(params, model_state, inputs, train=train, rng=rng)
    if isinstance(result, Outputs) or not (isinstance(result, tuple) and len(result) == 2):
        return outputs_of(result, _name(apply)), model_state
    first, second = result
    if _is_array(first) and isinstance(second, Mapping) and _structure(second) != _structure(model_state):
        # A pair of logits and features, unless it is a model_state that has changed: then no leaf is one row an example.
        leaves = jax.tree.leaves(second, is_leaf=_is_shared)
        if not leaves or any(not _is_shared(leaf) and jnp.shape(leaf)[:1] != first.shape[:1] for leaf in leaves):
            raise ValueError(
                f"{_name(apply)} must return a model_state of the structure that it was given, {_structure(model_state)}, "
                f"or features with one row for each example; got {_structure(second)}."
            )
        return outputs_of(result, _name(apply)), model_state
    if _is_array(first) and _is_array(second) and not _is_array(model_state):
        raise ValueError(
            f"{_name(apply)} must return its model_state second, {_structure(model_state)}, or features by name, "
            f"{{'NAME': array}}; got an array of shape {tuple(second.shape)}."
        )
    return outputs_of(first, _name(apply)), second


def outputs_of(result: Any, who: str) -> Outputs:
    """Whatever a network returns, as `Outputs`.

    That is logits; a pair (logits, features by name), or `Outputs`; or what has logits by that name, a dict, a dataclass
    or an object, whose other arrays are the features: of a tuple such as ``hidden_states`` each, as ``hidden_states_0`` …
    """
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)  # Outputs is one, too
    if is_pair:
        logits, features = result
    elif _is_array(result):
        logits, features = result, {}
    else:
        named = dict(result) if isinstance(result, Mapping) else _fields(result)
        logits, features = named.pop("logits", result), dict(_arrays(named))
    if not _is_array(logits) or len(logits.shape) < 2:
        found = f"of shape {tuple(logits.shape)}" if _is_array(logits) else type(logits).__name__
        raise ValueError(
            f"{who} must return logits [batch, classes] or [batch, *positions, classes], a pair (logits, features by name), "
            f"Outputs, or what has logits by that name; its logits were {found}."
        )
    return Outputs(logits, dict(features))


def cached_outputs(batch: Batch) -> Outputs:
    """``batch["teacher"]``; a cache may have kept features alone."""
    said = batch["teacher"]
    if isinstance(said, Outputs) and said.logits is None and said.features:
        return said
    return outputs_of(said, 'batch["teacher"]')


def map_examples(function: Callable[[Any], Any], outputs: Tree) -> Tree:
    """`jax.tree.map` over what belongs to examples: what is `Shared` stays as it is."""
    return jax.tree.map(lambda leaf: leaf if _is_shared(leaf) else function(leaf), outputs, is_leaf=_is_shared)


def _is_shared(leaf: Any) -> bool:
    return isinstance(leaf, Shared)


def _fields(result: Any) -> dict[str, Any]:
    """What an object has by name: a dataclass's fields, a NamedTuple's, or its attributes."""
    if dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    if hasattr(result, "_asdict"):
        return dict(result._asdict())
    return dict(getattr(result, "__dict__", {}))


def _arrays(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in named.items():
        if _is_array(value) or _is_shared(value):
            yield name, value
        elif isinstance(value, tuple | list):
            yield from (
                (f"{name}_{number}", one) for number, one in enumerate(value) if _is_array(one) or _is_shared(one)
            )


def _check_signature(apply: Apply) -> None:
    try:
        inspect.signature(apply).bind(None, None, None, train=True, rng=None)
    except TypeError as error:
        raise ValueError(f"An Apply must be a function {WHAT}; {_name(apply)} is none: {error}.") from None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _structure(tree: Tree) -> Any:
    return jax.tree.structure(tree)


def _name(apply: Any) -> str:
    return getattr(apply, "__name__", None) or f"an object of type {type(apply).__name__}"
