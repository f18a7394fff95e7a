"""Networks that learn while they teach: several from each other, or one from its own running average."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax import _checks
from kdjax._types import Apply, Batch, Number, Outputs, TrainState, Tree, Weights
from kdjax.connectors import Connector
from kdjax.networks.ensembles import fixed_shares, pooled
from kdjax.objectives import schedules
from kdjax.objectives._counted import counting
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._asked import asking
from kdjax.training._step import Learner, Metrics, TrainStep, learn
from kdjax.training.state import weights_of

States = tuple[TrainState, ...]
Pair = tuple[TrainState, Weights]
MutualStep = Callable[[States, None, Sequence[Objective], Batch], tuple[States, Metrics]]
MeanTeacherStep = Callable[[Pair, None, Objective, Batch], tuple[Pair, Metrics]]


def make_mutual_step(
    applies: Sequence[Apply],
    optimizers: Sequence[optax.GradientTransformation],
    *,
    connectors: Sequence[Mapping[str, Connector] | None] | None = None,
    ignore_label: int | None = None,
    axis_name: str | None = None,
) -> MutualStep:
    """Builds a step in which each network learns from the others as they are now: deep mutual learning.

    Each network's teacher is what the others say of the same batch, in training mode, with the gradient stopped. With a
    peer in the role of the teacher this is also how a large network and a small one learn together.

    Args:
      applies: two networks or more; any frameworks and sizes, the same classes.
      optimizers: one for each.
      connectors: one mapping for each, as in `make_train_step`, or None for a network that has none.
      ignore_label: as in `make_train_step`.
      axis_name: as in `make_train_step`.

    Returns:
      ``step(states, teacher, objectives, batch) -> (states, metrics)``. The states are a tuple with one `TrainState` a
      network, and so are the objectives, each of which says what its network learns from the labels and from its peers:
      with two networks the teacher's `Outputs` are the peer's own; with more, the logits are of the mean probabilities of
      the others, and feature ``name`` of the i-th of them is ``"i/name"``, as in `ensemble`. The teacher is None. Metrics
      of network i have the name ``"i/name"``; ``"loss"`` is the sum of all losses.

    Raises:
      ValueError: if there are fewer than two networks, or not one optimizer, mapping of connectors, state and objective
        for each, or if there is a teacher.

    Example:
      >>> from kdjax import Outputs, cross_entropy, init_state, on_logits, weighted_sum
      >>> from kdjax.losses import soft_target_kl
      >>> def apply(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {}), model_state
      >>> step = make_mutual_step([apply, apply], [optax.sgd(0.1)] * 2)
      >>> states = [init_state(Weights(scale * jnp.eye(3), {}), optax.sgd(0.1), jax.random.key(0)) for scale in (1, -1)]
      >>> goal = weighted_sum(labels=(1, cross_entropy), peer=(1, on_logits(soft_target_kl, temperature=1)))
      >>> batch = {"inputs": jnp.eye(3), "labels": jnp.arange(3)}
      >>> states, metrics = step(tuple(states), None, (goal, goal), batch)
      >>> len(states), bool(metrics["0/peer"] > 0)
      (2, True)

    Note:
      All learn from one moment: the paper's algorithm lets each see the peer's newest update, which costs another forward
      pass a network. Among more than two, it takes the mean of the divergences from each peer; that from the mean of
      their probabilities has the same gradient at T = 1.

    Reference:
      Zhang, Xiang, Hospedales and Lu, Deep Mutual Learning, 2018, sections 2.1 to 2.3. https://arxiv.org/abs/1706.00384
    """
    count = len(applies) if isinstance(applies, list | tuple) else 1
    if count < 2:
        raise ValueError(f"applies must be two networks or more; got {count}.")
    _one_each("optimizers", optimizers, count)
    _one_each("connectors", beside := [None] * count if connectors is None else list(connectors), count)
    learners = [
        Learner(apply, asking(optimizer), own)
        for apply, optimizer, own in zip(applies, optimizers, beside, strict=True)
    ]
    share_out = fixed_shares(None, count - 1)

    def peers_of(said: list[Outputs]) -> list[Outputs]:
        said = lax.stop_gradient(said)
        others = [said[:own] + said[own + 1 :] for own in range(count)]
        return [own[0] if count == 2 else pooled(own, mean="probabilities", share_out=share_out) for own in others]

    def step(states: States, teacher: None, objectives: Sequence[Objective], batch: Batch) -> tuple[States, Metrics]:
        _no_teacher(teacher, "the networks teach each other")
        _one_each("state", states, count)
        _one_each("objective", objectives, count)
        batch = counting(batch, ignore_label)
        new_states, each = learn(learners, states, objectives, batch, peers_of, axis_name)
        metrics = {f"{own}/{name}": value for own, its in enumerate(each) for name, value in its.items()}
        return tuple(new_states), {"loss": reduce(operator.add, [its["loss"] for its in each])} | metrics

    return step


def make_mean_teacher_step(step: TrainStep, decay: Number | Callable[[Any], Any]) -> MeanTeacherStep:
    """Builds a step whose teacher is the student's own running average: a mean teacher, self-distillation in one run.

    After each update, teacher ← decay · teacher + (1 − decay) · student, for parameters and running statistics alike. Where
    `accumulate` only adds up a batch, or `skip_non_finite` leaves an update out, there is none.

    Args:
      step: from `make_train_step`, the teacher's apply being the student's own.
      decay: how much of the teacher stays in a step, between 0 and 1; a number or a function of the step.

    Returns:
      ``step((state, average), teacher, objective, batch) -> ((state, average), metrics)``. The pair is of
      `init_mean_teacher`; the teacher is None, since the average is it. Connectors have no part in the average.

    Raises:
      ValueError: if the decay is not between 0 and 1; later, if the average's tree or shapes are not the student's, it is of
        16 bits, or there is a teacher.

    Reference:
      Tarvainen and Valpola, Mean teachers are better role models, 2017, equation 1. https://arxiv.org/abs/1703.01780
    """
    _checks.function("step", step, "step(state, teacher, objective, batch)")
    decay = schedules.leaf_of("decay", decay)
    _checks.between("decay", schedules.at(decay, 0), 0.0, 1.0)

    def averaging(pair: Pair, teacher: None, objective: Objective, batch: Batch) -> tuple[Pair, Metrics]:
        _no_teacher(teacher, "the student's own average teaches it")
        state, average = pair
        kept = schedules.at(decay, state.step)
        own = weights_of(state)
        _check_alike(average, own)
        # The average may be wider than the student; it teaches in the student's own precision.
        new, metrics = step(state, jax.tree.map(_as, average, own), objective, batch)
        moved = follow(average, weights_of(new), kept)
        if (updated := _updated(state, new, metrics)) is not None:
            moved = jax.tree.map(lambda its, old: jnp.where(updated, its, old), moved, average)
        return (new, moved), metrics

    return averaging


def _updated(old: TrainState, new: TrainState, metrics: Metrics) -> jax.Array | None:
    """Whether a step has made an update; None where each does."""
    kind = optax.MultiStepsState
    found = [jax.tree.leaves(one.opt_state, is_leaf=lambda part: isinstance(part, kind)) for one in (old, new)]
    counts = [[part.gradient_step for part in parts if isinstance(part, kind)] for parts in found]
    if not counts[0]:
        return metrics["skipped"] == 0 if "skipped" in metrics else None
    # Beside a part of the optimizer that adds up batches another may move params at each.
    pairs = zip(*map(jax.tree.leaves, zip(counts, (old.params, new.params), strict=True)), strict=True)
    return jnp.asarray([jnp.any(before != after) for before, after in pairs]).any()


def init_mean_teacher(state: TrainState) -> Pair:
    """The state of `make_mean_teacher_step` before the first update: the average is a copy of the student.

    It is held in float32 at least: in 16 bits what an update adds is rounded away, and a slow average would stand still.
    """
    return state, jax.tree.map(lambda leaf: jnp.array(leaf, _wide(leaf)), weights_of(state))


def follow(teacher: Weights, student: Weights, decay: Number) -> Weights:
    """The exponential moving average of weights: decay · teacher + (1 − decay) · student.

    Leaves that are no floating-point numbers, such as counters, are the student's.

    Raises:
      ValueError: if the two trees or their shapes differ, the decay is not between 0 and 1, or the teacher is of 16 bits, in
        which a slow average would stand still.

    Example:
      >>> follow(Weights(jnp.array([1.0]), {}), Weights(jnp.array([3.0]), {}), 0.75).params.tolist()
      [1.5]
    """
    _checks.between("decay", decay, 0.0, 1.0)
    _check_alike(teacher, student)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        if old.dtype != (wide := _wide(old)):
            raise ValueError(
                "teacher must be held in float32 at least, to be an average, as init_mean_teacher begins it; "
                f"got {old.dtype}."
            )
        return (decay * old + (1 - decay) * new.astype(wide)).astype(wide)

    averaged: Tree = jax.tree.map(average, teacher, student)
    return Weights(*averaged)


def _wide(leaf: jax.Array) -> Any:
    """What an average of it is held in."""
    return jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def _as(its: jax.Array, own: jax.Array) -> jax.Array:
    return its if its.dtype == own.dtype else its.astype(own.dtype)


def _check_alike(teacher: Weights, student: Weights) -> None:
    its, own = (str(jax.tree.structure(tree)) for tree in (teacher, student))
    if its != own:
        raise ValueError(f"teacher must have the student's tree, to be its average; got {its} for {own}.")
    for (path, leaf), of_student in zip(jax.tree.leaves_with_path(teacher), jax.tree.leaves(student), strict=True):
        _checks.same_shape(f"teacher{jax.tree_util.keystr(path)}", leaf, "the student's", of_student)


def _one_each(name: str, values: Any, count: int) -> None:
    several = isinstance(values, list | tuple) and not isinstance(values, TrainState)  # which is a tuple, too
    got = len(values) if several else f"one {type(values).__name__}"
    if got != count:
        raise ValueError(f"{name} must be one for each of the {count} networks; got {got}.")


def _no_teacher(teacher: object, why: str) -> None:
    if teacher is not None:
        raise ValueError(f"teacher must be None, since {why}; got a {type(teacher).__name__}.")
