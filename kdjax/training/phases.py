"""Training in phases: a plan is a tuple of phases, and the phase is a function of the step.

Two-stage training, progressive distillation and warm-ups are plans: each phase has an objective and an optimizer of its
own, and `freeze` and `train_only` say which parts an optimizer moves. A `TrainState` needs nothing more to be resumed in
the middle of a phase: its step says which.
"""

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import _checks
from kdjax._types import Batch, Number, TrainState, Weights
from kdjax.connectors._beside import evaluated
from kdjax.objectives._weighted_sum import Objective
from kdjax.objectives.schedules import Schedule
from kdjax.training._step import Metrics, TrainStep


class Phase(NamedTuple):
    """A stretch of training.

    Attributes:
      name: for people, records, and the `make_step` of `make_planned_step`.
      steps: how many steps it has, each of one batch: updates, but where its optimizer is of `accumulate`.
      objective: what is minimised. Its schedules count from the first step of the phase, as the optimizer's do.
      optimizer: what moves the parameters. It starts anew with the phase.
    """

    name: str
    steps: int
    objective: Objective
    optimizer: optax.GradientTransformation


Plan = tuple[Phase, ...]


@partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=("phase",))
@dataclass(frozen=True)
class InPhase:
    """The state of a planned step: which phase it is in, and that phase's own state.

    The phase is no array but a part of the tree's structure: a compiled step has one program for each phase, and chooses
    it without waiting for the device.

    Attributes:
      phase: the phase's index in the plan.
      state: a `TrainState` with the opt_state of the phase's optimizer, or what else the phase's step takes.
    """

    phase: int
    state: Any


PlannedStep = Callable[[InPhase, Weights | None, Sequence[Objective], Batch], tuple[InPhase, Metrics]]


def plan(*phases: Phase) -> Plan:
    """Phases in their order.

    Raises:
      ValueError: if there are none, two have one name, or one has no step.

    Example:
      >>> from kdjax import cross_entropy, on_feature, weighted_sum
      >>> from kdjax.training import freeze, train_only
      >>> from kdjax.losses import hint
      >>> two_stages = plan(
      ...     Phase("features", 300, weighted_sum(hint=(1, on_feature(hint, "stage2"))), freeze(optax.adam(1e-3), "logits")),
      ...     Phase("head", 100, weighted_sum(labels=(1, cross_entropy)), train_only(optax.adam(1e-3), "logits")))
      >>> bounds(two_stages)
      (0, 300, 400)
      >>> [two_stages[phase_at(two_stages, step)].name for step in (0, 299, 300, 399)]
      ['features', 'features', 'head', 'head']
    """
    if not phases:
        raise ValueError("phases must be one or more; got none.")
    for phase in phases:
        _checks.instance("phases", phase, Phase, "of Phase(name, steps, objective, optimizer)")
    names = [phase.name for phase in phases]
    for phase in phases:
        _checks.whole(f"steps of phase {phase.name!r}", phase.steps, 1)
        if names.count(phase.name) > 1:
            raise ValueError(f"phases must have a name each of their own; got {phase.name!r} twice.")
    return phases


def bounds(plan: Plan) -> tuple[int, ...]:
    """The step at which each phase begins, and then the step at which the last one is over."""
    return tuple(accumulate((phase.steps for phase in plan), initial=0))


def phase_at(plan: Plan, step: Number) -> int:
    """The index of the phase to which the update after `step` updates belongs; the last one's when all are made.

    Raises:
      ValueError: if `step` is less than 0, or more than the plan has.
    """
    ends = bounds(plan)
    if not 0 <= step <= ends[-1]:
        raise ValueError(f"step must lie between 0 and {ends[-1]}, the plan's updates; got {step}.")
    return min(bisect_right(ends, int(step)), len(plan)) - 1


def objectives_of(plan: Plan) -> tuple[Objective, ...]:
    """The phases' objectives, for steps that are counted from the start of the run, as a `TrainState` counts them.

    Example:
      >>> from kdjax import cross_entropy, schedules, weighted_sum
      >>> warm_up = weighted_sum(labels=(schedules.linear(0, 1, steps=10), cross_entropy))
      >>> after = plan(Phase("a", 100, warm_up, optax.sgd(0.1)), Phase("b", 100, warm_up, optax.sgd(0.1)))
      >>> [float(schedules.at(objectives_of(after)[1].weights["labels"], step)) for step in (100, 105, 110)]
      [0.0, 0.5, 1.0]
    """

    def from_start(start: int, objective: Objective) -> Objective:
        def moved(node: Any) -> Any:
            return Schedule(_since, (start, node)) if isinstance(node, Schedule) else node

        after: Objective = jax.tree.map(moved, objective, is_leaf=lambda node: isinstance(node, Schedule))
        return after

    return tuple(from_start(start, phase.objective) for start, phase in zip(bounds(plan), plan, strict=False))


def enter(plan: Plan, index: int, state: TrainState | InPhase) -> InPhase:
    """The state with which a phase begins: its own optimizer's fresh opt_state, and all else as it is.

    The params are those to evaluate, where the optimizer of the phase before trains at others, such as a schedule-free one.

    Args:
      plan: the plan of the run.
      index: of the phase that begins.
      state: of the phase before, or of `init_state` with any optimizer.

    Raises:
      ValueError: if the plan has no phase of that index, or the state is of several networks.

    Warns:
      RuntimeWarning: where batches are lost that the phase before has only added up, by `accumulate`.
    """
    _in_plan(plan, index)
    own = _in_one(state)
    _tell_of_waiting(own.opt_state)
    return _begun(plan, index, own._replace(params=evaluated(own).params))


def _in_one(state: Any) -> TrainState:
    own = state.state if isinstance(state, InPhase) else state
    if not isinstance(own, TrainState):
        raise ValueError(
            f"state must be a TrainState, or the InPhase of one, to get the phase's opt_state; got a {type(own).__name__}. "
            "Of several networks, or of a mean teacher, build InPhase(index, state) with each one's own."
        )
    return own


def _begun(plan: Plan, index: int, own: TrainState) -> InPhase:
    # Copies: it may begin as the params, whose memory the step takes too.
    opt_state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), plan[index].optimizer.init(own.params))
    return InPhase(index, own._replace(opt_state=opt_state))


def _tell_of_waiting(opt_state: Any) -> None:
    """A warning where batches are added up of which no update has been made, as far as it is known now."""
    kind = optax.MultiStepsState
    for part in jax.tree.leaves(opt_state, is_leaf=lambda one: isinstance(one, kind)):
        if isinstance(part, kind) and not isinstance(part.mini_step, jax.core.Tracer) and np.any(part.mini_step):
            warnings.warn(
                f"{np.max(part.mini_step)} of the batches that accumulate adds up have made no update when their phase "
                "ends, and are lost. A phase's steps should be a multiple of them; a batch that is skipped is none.",
                RuntimeWarning,
                stacklevel=3,
            )


def state_like(plan: Plan, step: Number, state: TrainState | InPhase) -> InPhase:
    """What a state saved after `step` updates looks like.

    To restore the last one that is whole: ``restore_state(run, lambda step: state_like(plan, step, state))``.

    Args:
      plan: the plan of the run.
      step: the saved state's. Saved between two phases, it has the opt_state of the first.
      state: any state of the run, such as the first.

    Raises:
      ValueError: if the plan does not have `step`.
    """
    index = phase_at(plan, max(step - 1, 0))
    return _begun(plan, index, _in_one(state))


def stretches(plan: Plan, start: int, order: Any) -> Iterator[tuple[int, Any]]:
    """Cuts the batches of an epoch where a phase ends.

    Args:
      plan: from `plan`.
      start: how many updates there were before.
      order: the batches, one row each, such as `kdjax.batches.epoch_indices` gives them.

    Yields:
      Pairs (index, rows): the phase to `enter`, if the state is not in it yet, and its batches, in order.

    Raises:
      ValueError: if the plan ends before the batches do, or begins after `start`.

    Example:
      >>> from kdjax import cross_entropy, weighted_sum
      >>> goal = weighted_sum(labels=(1, cross_entropy))
      >>> both = plan(Phase("a", 3, goal, optax.sgd(0.1)), Phase("b", 5, goal, optax.adam(0.1)))
      >>> [(index, len(rows)) for index, rows in stretches(both, 2, [[0, 1], [2, 3], [4, 5]])]
      [(0, 1), (1, 2)]
    """
    end = start + len(order)
    phase_at(plan, start), phase_at(plan, end)
    for index, (first, last) in enumerate(pairwise(bounds(plan))):
        rows = order[max(first - start, 0) : max(last - start, 0)]
        if len(rows):
            yield index, rows


def make_planned_step(plan: Plan, make_step: Callable[[Phase], TrainStep]) -> PlannedStep:
    """Builds ``step(state, teacher, objectives, batch) -> (state, metrics)``, which is every phase's own step in its time.

    Args:
      plan: from `plan`.
      make_step: makes a phase's step; called once a phase. It may give one phase another network than the next, as long
        as the parameters stay.

    Returns:
      A function of

        - `state`: `InPhase`, of `enter`. The step stays in the phase: where one ends, a loop enters the next.
        - `teacher`, `batch`: as for the step of `make_step`.
        - `objectives`: `objectives_of` the plan.

    Raises:
      ValueError: later, if the state is not of `enter`, or there is not one objective for each phase.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax import cross_entropy, init_state, make_train_step, weighted_sum
      >>> from kdjax.batches import epoch_indices
      >>> from kdjax.training import freeze, make_epoch
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return inputs @ params["body"] @ params["head"], model_state
      >>> goal = weighted_sum(labels=(1, cross_entropy))
      >>> both = plan(Phase("head", 3, goal, freeze(optax.sgd(0.1), "body")), Phase("all", 2, goal, optax.adam(0.1)))
      >>> epoch = make_epoch(make_planned_step(both, lambda phase: make_train_step(network, None, phase.optimizer)))
      >>> weights = Weights({"body": jnp.eye(2), "head": jnp.eye(2)}, {})
      >>> state = init_state(weights, both[0].optimizer, jax.random.key(0))
      >>> arrays = {"inputs": jnp.eye(2), "labels": jnp.arange(2)}
      >>> order = [[0, 1]] * 5  # five batches
      >>> for index, rows in stretches(both, 0, order):
      ...     state, means = epoch(enter(both, index, state), None, objectives_of(both), arrays, rows)
      ...     print(both[index].name, bool((state.state.params["body"] == jnp.eye(2)).all()))
      head True
      all False
    """
    steps = [make_step(phase) for phase in plan]

    def step(
        state: InPhase, teacher: Weights | None, objectives: Sequence[Objective], batch: Batch
    ) -> tuple[InPhase, Metrics]:
        if not isinstance(state, InPhase):
            raise ValueError(f"state must be in a phase, as enter gives it; got a {type(state).__name__}.")
        if not isinstance(objectives, tuple | list) or len(objectives) != len(plan):
            raise ValueError(f"objectives must be one for each of the {len(plan)} phases, as objectives_of gives them.")
        _in_plan(plan, state.phase)
        own, metrics = steps[state.phase](state.state, teacher, objectives[state.phase], batch)
        return InPhase(state.phase, own), metrics

    return step


def _since(step: Number, start: Number, schedule: Schedule) -> Any:
    return schedule(step - start)


def _in_plan(plan: Plan, index: int) -> None:
    if not 0 <= index < len(plan):
        raise ValueError(f"index must be that of one of the plan's {len(plan)} phases, from 0; got {index!r}.")
