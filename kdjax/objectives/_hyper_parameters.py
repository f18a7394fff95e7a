"""A loss's hyper-parameters: which are leaves and which are static, and what the loss refuses, said when a term is made."""

import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks
from kdjax.objectives import schedules
from kdjax.objectives._places import is_place, name_of, wants_labels
from kdjax.objectives.schedules import Schedule, leaf_of, plain

_Named = dict[str, Any]


def sort_out(loss: Callable, hyper_parameters: Mapping[str, Any]) -> tuple[_Named, _Named, dict[str, str]]:
    """The leaves, the static settings and the places among what `loss` is given by name."""
    leaves: _Named = {}
    settings: _Named = {}
    named_places: dict[str, str] = {}
    for name, given in hyper_parameters.items():
        default = _default(loss, name)
        value: Any = tuple(given) if isinstance(given, list) else plain(given)
        if is_place(value):
            named_places[name] = value
        elif not _is_leaf(value, default):
            settings[name] = value
        elif isinstance(value, tuple):
            leaves[name] = tuple(leaf_of(f"{name}[{position}]", one) for position, one in enumerate(value))
        else:
            leaves[name] = leaf_of(name, value)
    return leaves, settings, named_places


def _is_leaf(value: Any, default: Any) -> bool:
    """By the value given: whether another of its kind should compile nothing again."""
    if isinstance(value, tuple):
        return any(_is_leaf(plain(one), default) for one in value)
    if value is None or isinstance(value, type):
        return False
    # An int for a number that the loss has as a float means the float; what is no number there is leaf_of's to refuse.
    if any(isinstance(plain(one), float) for one in (default if isinstance(default, tuple) else (default,))):
        return True
    if isinstance(value, Schedule) or hasattr(value, "dtype"):
        return True
    # Where the loss takes a function, a function is what it is; anywhere else it is one of the step.
    return not callable(default) if callable(value) else isinstance(value, numbers.Real) and not isinstance(value, int)


def _default(loss: Callable, name: str) -> Any:
    """The default of the keyword-only argument `name`, or the ValueError that says why `loss` cannot be given it."""
    parameters = inspect.signature(loss).parameters
    kinds = {own: parameter.kind for own, parameter in parameters.items()}
    if kinds.get(name) in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ValueError(
            f"{name} of {name_of(loss)} must be keyword-only, after * in its signature, as what comes before is an array; "
            f"got {name_of(loss)}({', '.join(parameters)}). functools.partial(loss, {name}=...) makes it so."
        )
    if inspect.Parameter.VAR_KEYWORD in kinds.values() and kinds.get(name) != inspect.Parameter.KEYWORD_ONLY:
        return inspect.Parameter.empty
    known = [own for own, kind in kinds.items() if kind == inspect.Parameter.KEYWORD_ONLY]
    if not known:
        raise ValueError(
            f"A hyper-parameter of {name_of(loss)} must be a keyword-only argument, and it has none; got {name!r}."
        )
    _checks.one_of(f"A hyper-parameter of {name_of(loss)}", name, known)
    return parameters[name].default


def fill_all_arguments(loss: Callable, places: tuple[str, ...], keywords: Iterable[str]) -> None:
    """A ValueError where the loss would miss an argument, or get one too many."""
    signature = inspect.signature(loss)
    labels = ["labels"] if wants_labels(loss, len(places), keywords) else []
    try:
        signature.bind(*places, **dict.fromkeys([*keywords, *labels]))
    except TypeError as error:
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        wanted = ", ".join(
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is parameter.empty and parameter.kind not in several and name != "labels"
        )
        raise ValueError(f"{name_of(loss)} needs {wanted}; got the arrays {', '.join(places)}: {error}.") from None


def ask_the_loss(loss: Callable, arrays: int, leaves: _Named, settings: _Named, named_places: Iterable[str]) -> None:
    """Lets the loss check its numbers here, where they are known; under jit they are traced, and pass.

    It is traced on made-up arrays until it accepts some: of features, of logits, of tokens and of indices. Only a number
    of these arguments that is out of its range is an error; what is wrong with the arrays says nothing of the term.
    """
    for where, step in _moments(leaves).items():
        values = jax.tree.map(plain, schedules.at(leaves, step))
        # One number a channel, such as a margin, or one an example, such as a temperature, is accepted at its own size.
        sizes = next((np.shape(value) for value in jax.tree.leaves(values) if np.ndim(value)), (2, 3))
        shapes = ((sizes[0], sizes[-1]), (sizes[0], 4, 4, sizes[-1]), (*sizes, 3))
        shapes_by_name = ((), sizes[:1], sizes[-1:]) if named_places else ((),)
        for shape, kind, by_name in itertools.product(shapes, (jnp.float32, jnp.int32), shapes_by_name):
            inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)] * (arrays - 1) + [jax.ShapeDtypeStruct(shape, kind)]
            named = {name: jax.ShapeDtypeStruct(by_name, jnp.float32) for name in named_places}
            if wants_labels(loss, arrays, named):
                named["labels"] = jax.ShapeDtypeStruct(shape[:-1], jnp.int32)
            try:
                jax.eval_shape(partial(loss, **values, **settings), *inputs, **named)
                break
            except _checks.OutOfRangeError as error:
                if error.argument.partition("[")[0] in {*leaves, *settings}:
                    raise ValueError(f"{str(error).removesuffix('.')}{where}.") from None
            except Exception:  # of these made-up inputs, not of a number
                continue


def _moments(leaves: _Named) -> dict[str, Any]:
    """Step 0, and the known steps at which schedules of kdjax have changed, by what an error adds for them."""
    moments: dict[str, Any] = {"": 0}
    for leaf in jax.tree.leaves(leaves, is_leaf=lambda node: isinstance(node, Schedule)):
        if isinstance(leaf, Schedule) and leaf.formula in schedules.FORMULAS and isinstance(leaf.numbers[-1], float):
            moments[f", at step {leaf.numbers[-1]:g}"] = leaf.numbers[-1]
    return moments
