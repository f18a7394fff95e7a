"""What an optimizer may ask a step for beside the gradient, and how it is given that alone which it takes."""

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Tree
from kdjax.losses import _math
from kdjax.training._axis import mean_over

Parts = list[dict[str, Array]]


def asking(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, which may be offered more than it takes: where its update lists its arguments, it is given those.

    `make_train_step`, `freeze` and `accumulate` do this themselves with the optimizer that they are given. optax's own
    chains and wrappers hand all that they are offered to each of their parts, and a part such as ``optax.contrib.sam``
    then has to be wrapped itself.

    Args:
      optimizer: any optax transformation.

    Returns:
      An optax transformation whose update takes any further arguments.

    Example:
      >>> adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
      >>> sam = optax.contrib.sam(optax.sgd(0.1), adversary)
      >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), asking(sam))
      >>> params = jnp.ones(2)
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params, value=0.5, counts={})
    """
    _checks.optimizer("optimizer", optimizer)
    inner: optax.GradientTransformationExtraArgs = optax.with_extra_args_support(optimizer)
    parameters = inspect.signature(inner.update).parameters
    # The first three in order are the gradient, the state and the params, whatever they are called.
    in_order = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken_already = [name for name, parameter in parameters.items() if parameter.kind in in_order][:3]
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    def update(gradient: Tree, state: Tree, params: Tree = None, **offered: Any) -> tuple[Tree, Tree]:
        taken = {
            name: given
            for name, given in offered.items()
            if name not in taken_already and (anything or name in parameters)
        }
        try:
            updates, new = inner.update(gradient, state, params, **taken)
        except TypeError as error:
            unknown = [name for name in taken if f"unexpected keyword argument '{name}'" in str(error)]
            if not unknown:
                raise
            raise TypeError(
                f"optimizer must take what a step offers, {', '.join(sorted(taken))}; a part of it refuses {unknown[0]}: "
                f"{error}. Wrap that part in kdjax.training.asking."
            ) from error
        return updates, new

    return optax.GradientTransformationExtraArgs(inner.init, update)


def functions_of_params(
    parts_of: Callable[..., tuple[Parts, Any]], all_params: list[Tree], number: int, axis_name: str | None
) -> dict[str, Callable[..., Any]]:
    """One network's loss, and its gradient, at other params of its own and on the same batch."""

    def loss(params: Tree) -> Array:
        return total(parts_of([*all_params[:number], params, *all_params[number + 1 :]])[0][number])

    def grad_fn(params: Tree, step: Any = 0) -> Tree:
        del step  # of sharpness-aware minimisation's own steps, all on this batch
        return mean_over(axis_name, jax.grad(loss)(params))

    # A line search differentiates the loss itself, where each device must come to the gradient of the whole batch.
    @jax.custom_vjp
    def whole(params: Tree) -> Array:
        return loss(params)

    def forward(params: Tree) -> tuple[Array, Tree]:
        value, gradient = jax.value_and_grad(loss)(params)
        return value, mean_over(axis_name, gradient)

    def backward(gradient: Tree, slope: Array) -> tuple[Tree]:
        return (jax.tree.map(lambda leaf: (slope * leaf).astype(leaf.dtype), gradient),)

    whole.defvjp(forward, backward)

    # optax's line searches hand on all that they do not take themselves, and only to arguments of that name.
    def value_fn(params: Tree, *, counts: Any = None, grad_fn: Any = None, term_gradients: Any = None) -> Array:
        del counts, grad_fn, term_gradients
        value: Array = loss(params) if axis_name is None else whole(params)
        return value

    return {"value_fn": value_fn, "grad_fn": grad_fn}


def gradients_of_terms(pull_back: Callable[[Parts], Any], parts: Parts, number: int) -> dict[str, Tree]:
    """The gradient of each of one network's weighted terms, by one backward pass for each."""
    return {name: pull_back(_only(parts, number, name))[0][number] for name in parts[number]}


def compared(gradients: Mapping[str, Tree]) -> dict[str, Array]:
    """How large each term's own gradient is, and how far each two point in one direction; 0 where one is 0."""
    gradients = {name: jax.tree.map(_at_least_float32, gradient) for name, gradient in gradients.items()}
    norms = {name: optax.tree.norm(gradient) for name, gradient in gradients.items()}
    found = {f"{name}_gradient_norm": norm for name, norm in norms.items()}
    for first, second in combinations(gradients, 2):
        product = optax.tree.vdot(gradients[first], gradients[second])
        found[f"{first}_gradient_cosine_{second}"] = product * _math.safe_reciprocal(norms[first] * norms[second])
    return found


def _at_least_float32(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def total(parts: Mapping[str, Array]) -> Array:
    """The weighted terms' sum."""
    return reduce(operator.add, parts.values(), jnp.zeros((), jnp.float32))


def _only(parts: Parts, number: int, name: str) -> Parts:
    """1 for one term of one network, 0 for all others."""
    return [
        {term: jnp.full_like(value, own == number and term == name) for term, value in its.items()}
        for own, its in enumerate(parts)
    ]
