"""Optimisers that leave parts of a network as they are, and gradient clipping that depends on a schedule.

A frozen part has no update, no momentum, no weight decay and no moving statistics.

Parts are named by regular expressions over paths such as ``stage1/norm/scale``. A pattern must match whole names, one or
several in a row, anywhere in a path: ``"stage1"`` is all of stage 1 and nothing of ``stage10``; ``"stage[12]"`` two
stages; ``"bias"`` every bias; ``"^student"`` what begins with it. The same word names a part's parameters and statistics.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from kdjax import _checks, _trees
from kdjax._apply import run
from kdjax._types import Apply, Number, Outputs, Tree
from kdjax.training._asked import asking

_WHOLE = "whole_params"


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer for all parameters but those that are named, which keep their bits.

    A frozen parameter is unknown to `optimizer`: it has no update, no momentum, no weight decay and no part in a clipped
    global norm, and the optimizer's state holds no array of its shape. Under jit, what its gradient alone needs is not
    computed.

    Args:
      optimizer: any optax transformation.
      *patterns: the frozen parts, as the module says.

    Returns:
      An optax transformation of the whole tree of parameters.

    Raises:
      ValueError: if there is no pattern, or one is no regular expression; in ``init`` and ``update``, if one matches
        nothing, with the near misses.

    Example:
      >>> params = {"stage1": {"kernel": jnp.ones(3)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
      >>> optimizer = freeze(optax.adamw(0.1, weight_decay=0.5), "stage1", "bias")
      >>> state = optimizer.init(params)
      >>> [leaf.shape for leaf in jax.tree.leaves(state)]  # the step's number and head/kernel's two moments
      [(), (2,), (2,)]
      >>> updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
      >>> moved = optax.apply_updates(params, updates)
      >>> [bool((moved[name]["kernel"] != 1).all()) for name in ("stage1", "head")], moved["head"]["bias"].tolist()
      ([False, True], [1.0])
    """
    return _partition(optimizer, patterns, of_named="frozen", of_others="trained")


def train_only(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer for the parameters that are named alone; all others keep their bits, as under `freeze`.

    Args:
      optimizer: any optax transformation.
      *patterns: the trained parts, as the module says.

    Returns:
      An optax transformation of the whole tree of parameters.

    Raises:
      ValueError: as `freeze`.

    Example:
      >>> params = {"stage1": jnp.ones(3), "logits": jnp.ones(2)}
      >>> optimizer = train_only(optax.sgd(0.5), "logits")
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> jax.tree.map(lambda leaf: leaf.tolist(), optax.apply_updates(params, updates))
      {'logits': [0.5, 0.5], 'stage1': [1.0, 1.0, 1.0]}
    """
    return _partition(optimizer, patterns, of_named="trained", of_others="frozen")


def freeze_model_state(apply: Apply, *patterns: str) -> Apply:
    """The same network, whose model_state stays where it is named: BatchNorm's statistics of frozen parts.

    Args:
      apply: a network.
      *patterns: parts of the model_state, as the module says.

    Returns:
      An `Apply` with the same outputs.

    Raises:
      ValueError: if there is no pattern, or one is no regular expression; when called, if one matches nothing, with the
        near misses.

    Example:
      >>> def counting(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {}), {name: seen + 1 for name, seen in model_state.items()}
      >>> _, after = freeze_model_state(counting, "stage1")(jnp.eye(2), {"stage1": 3, "stage2": 3}, jnp.eye(2), train=True)
      >>> int(after["stage1"]), int(after["stage2"])
      (3, 4)

    Note:
      While training, BatchNorm still normalises by the batch and not by the statistics that are held. A part that is to
      act as it does in inference is run with ``train=False``.
    """
    _check(patterns)

    def held(
        params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: PRNGKeyArray | None = None
    ) -> tuple[Outputs, Tree]:
        outputs, new = run(apply, params, model_state, inputs, train=train, rng=rng)
        named = _trees.chosen("patterns", patterns, _trees.by_path(model_state))
        old_leaves, new_leaves = _trees.by_path(model_state), _trees.by_path(new)
        if old_leaves.keys() != new_leaves.keys():
            raise ValueError(
                "model_state must keep its tree, for parts of it to stay; the network made "
                f"{_trees.listed(list(new_leaves))} of {_trees.listed(list(old_leaves))}."
            )
        kept = [old_leaves[name] if name in named else leaf for name, leaf in new_leaves.items()]
        return outputs, jax.tree.unflatten(jax.tree.structure(new), kept)

    return held


def _partition(
    optimizer: optax.GradientTransformation, patterns: Sequence[str], *, of_named: str, of_others: str
) -> optax.GradientTransformationExtraArgs:
    _check(patterns)

    def labels(params: Tree) -> Tree:
        paths = list(_trees.by_path(params))
        named = _trees.chosen("patterns", patterns, paths)
        each = [of_named if path in named else of_others for path in paths]
        return jax.tree.unflatten(jax.tree.structure(params), each)

    nothing = optax.stateless(lambda updates, params: jax.tree.map(_no_change, updates))
    partitioned: optax.GradientTransformationExtraArgs = optax.partition(
        {"trained": asking(_of_part(optimizer)), "frozen": nothing}, labels
    )

    def update(gradient: Tree, state: Tree, params: Tree = None, **offered: Any) -> tuple[Tree, Tree]:
        # Beside its part of the params, what is inside has to know all of them, to ask for the loss at others.
        updates, new = partitioned.update(gradient, state, params, **offered, **{_WHOLE: params})
        return updates, new

    return optax.GradientTransformationExtraArgs(partitioned.init, update)


def _of_part(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a part of the params, to which functions of all params are functions of that part."""
    inner = asking(optimizer)

    def update(
        gradient: Tree, state: Tree, params: Tree = None, *, whole_params: Tree = None, **offered: Any
    ) -> tuple[Tree, Tree]:
        def filled(part: Tree) -> Tree:
            return jax.tree.map(lambda own, its: own if _is_masked(its) else its, whole_params, part)

        def cut(tree: Tree) -> Tree:
            return jax.tree.map(lambda its, own: its if _is_masked(its) else own, gradient, tree, is_leaf=_is_masked)

        # What reads each term's gradient must be of all params, and finds out by the step's own gradient.
        if "grad" in offered and "term_gradients" not in offered:
            offered["grad"] = cut(offered["grad"])
        for name, make in (("value_fn", _value_of), ("grad_fn", _gradient_of)):
            if name in offered:
                offered[name] = make(offered[name], filled, cut)
        updates, new = inner.update(gradient, state, params, **offered)
        return updates, new

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _is_masked(tree: Tree) -> bool:
    return isinstance(tree, optax.MaskedNode)


def _value_of(value_fn: Callable[..., Any], filled: Callable[[Tree], Tree], cut: Callable[[Tree], Tree]) -> Any:
    del cut

    @functools.wraps(value_fn)
    def of_part(params: Tree, **told: Any) -> Any:
        return value_fn(filled(params), **told)

    return of_part


def _gradient_of(grad_fn: Callable[..., Any], filled: Callable[[Tree], Tree], cut: Callable[[Tree], Tree]) -> Any:
    def of_part(params: Tree, *told: Any) -> Tree:
        return cut(grad_fn(filled(params), *told))

    return of_part


def _no_change(update: jax.Array) -> jax.Array:
    # x + (−0) is x for every x; −0 + 0 is +0, another number in bits.
    return jnp.full_like(update, -0.0)


def _check(patterns: Sequence[str]) -> None:
    if not patterns:
        raise ValueError("patterns must name at least one part, such as 'stage1'; got none.")
    for pattern in patterns:
        _trees.check("patterns", pattern)


def clip_while(
    max_norm: Number, value: Number | Callable[[jax.Array], Any], *, above: Number
) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm of `max_norm` at those steps at which a schedule is larger than `above`.

    Steps are counted from 0 by updates, as the objective's schedules count them: given the same schedule, both see the same
    value, but inside of `accumulate`, which updates once in several steps, and after steps that `skip_non_finite` left out.
    In a chain it stands before what uses the gradients, and inside of `freeze`, where frozen parts have no
    share in the norm.

    Args:
      max_norm: the largest norm of all gradients together, above 0.
      value: a function of the step, such as the term's own temperature schedule; a number decides for the whole run.
      above: the bound that `value` must exceed.

    Returns:
      An optax transformation. Its state holds the number of the step and nothing else.

    Raises:
      ValueError: `max_norm` is not a finite number above 0, or `above` or a number `value` is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax import schedules
      >>> temperature = schedules.linear(4.0, 2.0, steps=2)  # 4, 3, 2
      >>> clipping = clip_while(1.0, temperature, above=2.5)
      >>> state = clipping.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     clipped, state = clipping.update(jnp.array([3.0, 4.0]), state)
      ...     print([round(float(part), 3) for part in clipped])
      [0.6, 0.8]
      [0.6, 0.8]
      [3.0, 4.0]
    """
    _checks.positive("max_norm", max_norm)
    _checks.finite("above", above)
    if not callable(value):
        _checks.finite("value", value)

    def holds(step: jax.Array) -> Any:
        return (value(step) if callable(value) else value) > above

    transform: optax.GradientTransformationExtraArgs = optax.conditionally_transform(
        optax.clip_by_global_norm(max_norm), holds
    )
    return transform
