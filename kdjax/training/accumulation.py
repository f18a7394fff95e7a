"""Optimisers that are told more than the sum of a step's gradients: how many entries it is of, and each term's own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax import _checks
from kdjax._types import Number, Tree
from kdjax.training._asked import asking

_ALL = "all terms"
_OF_ONE_BATCH = ("grad", "value_fn", "grad_fn", "term_gradients", "counts")


def accumulate(
    optimizer: optax.GradientTransformation, batches: int, *, terms: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """One update for several batches, that of all their examples together, also where they count unlike many.

    ``optax.MultiSteps`` alone takes the mean of the batches' means: a batch of which one token counts would then weigh as
    much as a full one. The objective's schedules count steps, each of one batch; those of `optimizer`, such as its rate,
    count updates.

    Args:
      optimizer: any optax transformation; it acts once every `batches` steps.
      batches: how many, 1 or more.
      terms: the objective's terms, by name, where they count unlike many entries of a batch, as with labels that are
        missing; the step must then be made with ``term_gradients=True``.

    Returns:
      An optax transformation, for a step of `make_train_step`. ``value``, where `optimizer` asks for it, is the loss of all;
      there is no ``value_fn`` for a line search, nor a ``grad_fn``. With `terms` there is no ``value`` either, but
      ``term_gradients`` of all, and it must stand first in a chain; it may hold a `freeze`.

    Raises:
      ValueError: if `batches` is not a whole number above 0; later, if the step gives no counts, terms count unlike
        many and are not named, or `optimizer` needs a value and there is none.

    Example:
      >>> optimizer = accumulate(optax.sgd(1.0), 2)
      >>> params = jnp.zeros(1)
      >>> state = optimizer.init(params)
      >>> for gradient, count in ((1.0, 3), (5.0, 1)):  # the mean over 3 examples, and that over 1
      ...     given = {"value": jnp.zeros(()), "counts": {"labels": count}}
      ...     updates, state = optimizer.update(jnp.array([gradient]), state, params, **given)
      >>> updates.tolist()
      [-2.0]
    """
    _checks.whole("batches", batches, 1)
    inner = asking(optimizer)
    names = tuple(terms) or (_ALL,)

    def init_whole(tree: Any) -> Any:
        return inner.init(tree["gradients"][names[0]])

    def update_whole(means: Any, state: Any, params: Tree = None, **asked: Any) -> tuple[Any, Any]:
        # Quotients of means over batches are quotients of sums.
        counts = {name: jnp.maximum(count, jnp.finfo(jnp.float32).tiny) for name, count in means["counts"].items()}
        total = jax.tree.map(
            lambda *leaves: sum(leaf / count for leaf, count in zip(leaves, counts.values(), strict=True)),
            *(means["gradients"][name] for name in counts),
        )
        asked |= {"grad": total}
        if terms:
            of = {
                name: jax.tree.map(lambda leaf, n=n: leaf / n, means["gradients"][name]) for name, n in counts.items()
            }
            asked["term_gradients"] = of
        if not terms:  # each term has its own number of entries, and of the loss there is the sum alone
            asked["value"] = means["value"] / counts[_ALL]
        try:
            return inner.update(total, state, params, **asked)
        except TypeError as error:
            if not terms or "'value'" not in str(error):
                raise
            raise ValueError(
                "optimizer must need no value where accumulate is told terms: each is a mean over another number of "
                "entries, and their sum is the loss of no batch. What needs each batch's value may follow, as in "
                "optax.chain(accumulate(...), ...)."
            ) from error

    steps = optax.MultiSteps(optax.GradientTransformationExtraArgs(init_whole, update_whole), batches)

    def tree_of(gradients: dict[str, Tree], counts: dict[str, Any], value: Any) -> dict[str, Any]:
        return {"gradients": gradients, "counts": counts, "value": value}

    def init(params: Tree) -> Any:
        zero = jnp.zeros((), jnp.float32)
        return steps.init(tree_of(dict.fromkeys(names, params), dict.fromkeys(names, zero), zero))

    def update(gradient: Tree, state: Any, params: Tree = None, **asked: Any) -> tuple[Any, Any]:
        if terms:
            _be_first("accumulate, where it is told terms,", gradient, asked)
        own, counts = _told(names, gradient, asked)
        times = {name: jax.tree.map(lambda leaf, n=counts[name]: n * leaf, own[name]) for name in names}
        value = counts[names[0]] * asked.pop("value")
        # What the last batch alone says is no answer for all of them.
        asked = {name: given for name, given in asked.items() if name not in _OF_ONE_BATCH}
        return steps.update(tree_of(times, counts, value), state, params, **asked)

    return optax.GradientTransformationExtraArgs(init, update)


def _be_first(what: str, gradient: Tree, asked: dict[str, Any]) -> None:
    """A ValueError where the gradient is no longer the step's own, whose terms are not changed likewise."""
    if "grad" not in asked:
        return
    own, its = jax.tree.leaves(gradient), jax.tree.leaves(asked["grad"])
    if len(own) != len(its) or any(one is not other for one, other in zip(own, its, strict=True)):
        raise ValueError(
            f"{what} must be the first of a chain, and of all params: what stands before it, or freezes a part, changes the "
            "sum of the gradients and not each term's own."
        )


def _told(names: Sequence[str], gradient: Tree, asked: dict[str, Any]) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The gradients to be added up, and the counts that belong to them."""
    counts = asked.get("counts")
    if not counts:
        raise ValueError("counts must come from the step, as those of kdjax.make_train_step do; got none.")
    if names != (_ALL,):
        given = asked.get("term_gradients")
        if given is None:
            raise ValueError("term_gradients must be taken by the step: make_train_step(..., term_gradients=True).")
        if {*names} != {*given}:
            raise ValueError(f"terms must be those of the objective, {sorted(given)}; got {sorted(names)}.")
        return given, {name: jnp.asarray(counts[name], jnp.float32) for name in names}
    if len({count if isinstance(count, int) else id(count) for count in counts.values()}) > 1:
        raise ValueError(
            f"terms must be named where they count unlike many entries, as {', '.join(counts)} do here: "
            f"accumulate(..., terms={sorted(counts)!r}), and make_train_step(..., term_gradients=True)."
        )
    return {_ALL: gradient}, {_ALL: jnp.asarray(next(iter(counts.values())), jnp.float32)}


class DistillationOrientedState(NamedTuple):
    """The momenta of `distillation_oriented`: of the distillation's gradient, and of the task's."""

    distillation: Tree
    task: Tree


def distillation_oriented(
    distillation: Sequence[str], *, momentum: Number = 0.9, difference: Number = 0.075
) -> optax.GradientTransformationExtraArgs:
    """A momentum of its own for the distillation's gradient, larger than the task's, so that it leads.

    v_kd ← (μ + Δ) v_kd + g_kd, v_task ← (μ − Δ) v_task + g_task; the update is v_kd + v_task.

    Args:
      distillation: the objective's terms that distil, by name; all others are the task.
      momentum: μ, in the place of the momentum of ``optax.sgd``.
      difference: Δ; 0 gives plain momentum.

    Returns:
      An optax transformation, to stand first in a chain with a learning rate, for a step with ``term_gradients=True``.

    Raises:
      ValueError: if μ + Δ or μ − Δ is not between 0 and 1; later, if the step takes no gradients of terms, or has no such
        term.

    Example:
      >>> optimizer = distillation_oriented(["soft"], momentum=0.5, difference=0.25)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> own = {"labels": jnp.array([1.0]), "soft": jnp.array([1.0])}
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(own["labels"] + own["soft"], state, term_gradients=own)
      >>> updates.tolist()  # (1 + 0.25 · 1) + (1 + 0.75 · 1)
      [3.0]

    Reference:
      Zhao, Cui, Song and Liang, DOT: A Distillation-Oriented Trainer, 2023, algorithm 1. https://arxiv.org/abs/2307.08436
    """
    _checks.between("momentum + difference", momentum + difference, 0.0, 1.0)
    _checks.between("momentum - difference", momentum - difference, 0.0, 1.0)

    def init(params: Tree) -> DistillationOrientedState:
        return DistillationOrientedState(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(gradient: Tree, state: Any, params: Tree = None, **asked: Any) -> tuple[Tree, Any]:
        del params
        given = asked.get("term_gradients")
        if given is None:
            raise ValueError("term_gradients must be taken by the step: make_train_step(..., term_gradients=True).")
        if missing := sorted({*distillation} - {*given}):
            raise ValueError(f"distillation must name terms of the objective, {sorted(given)}; got {missing[0]!r}.")
        _be_first("distillation_oriented", gradient, asked)
        its = jax.tree.map(lambda *leaves: sum(leaves), *(given[name] for name in distillation))
        others = jax.tree.map(jnp.subtract, gradient, its)
        moved = [
            jax.tree.map(lambda old, new, m=own: m * old + new, before, now)
            for before, now, own in (
                (state.distillation, its, momentum + difference),
                (state.task, others, momentum - difference),
            )
        ]
        return jax.tree.map(jnp.add, *moved), DistillationOrientedState(*moved)

    return optax.GradientTransformationExtraArgs(init, update)
