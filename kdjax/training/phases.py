"""Training in phases: a plan is a tuple of phases, and the phase is a function of the step.

Two-stage training, progressive distillation and warm-ups are plans: each phase has an objective and an optimizer of its
own, and `freeze` and `train_only` say which parts an optimizer moves. A `TrainState` needs nothing more to be resumed in
the middle of a phase: its step says which.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import optax

from kdjax import _checks
from kdjax._types import Batch, Number, TrainState, Weights
from kdjax.objectives._weighted_sum import Objective
from kdjax.objectives.schedules import Schedule
from kdjax.training._step import Metrics, TrainStep


class Phase(NamedTuple):
    """A stretch of training.

    Attributes:
      name: for people, records, and `make_step` of `make_planned_step`.
      steps: how many updates it has.
      objective: what is minimised. Its schedules count from the first step of the phase, as the optimizer's do.
      optimizer: what moves the parameters. It starts anew with the phase.
    """

    name: str
    steps: int
    objective: Objective
    optimizer: optax.GradientTransformation


Plan = tuple[Phase, ...]
PlannedStep = Callable[[int, TrainState, Weights | None, Batch], tuple[TrainState, Metrics]]


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


def objective_of(plan: Plan, index: int) -> Objective:
    """A phase's objective, for steps that are counted from the start of the run, as a `TrainState` counts them.

    Example:
      >>> from kdjax import cross_entropy, schedules, weighted_sum
      >>> warm_up = weighted_sum(labels=(schedules.linear(0, 1, steps=10), cross_entropy))
      >>> after = plan(Phase("a", 100, warm_up, optax.sgd(0.1)), Phase("b", 100, warm_up, optax.sgd(0.1)))
      >>> [float(schedules.at(objective_of(after, 1).weights["labels"], step)) for step in (100, 105, 110)]
      [0.0, 0.5, 1.0]
    """
    _in_plan(plan, index)
    start = bounds(plan)[index]

    def from_start(node: Any) -> Any:
        return Schedule(_since, (start, node)) if isinstance(node, Schedule) else node

    objective: Objective = jax.tree.map(
        from_start, plan[index].objective, is_leaf=lambda node: isinstance(node, Schedule)
    )
    return objective


def enter(plan: Plan, index: int, state: TrainState) -> TrainState:
    """The state with which a phase begins: its own optimizer's fresh opt_state, and all else as it is.

    Raises:
      ValueError: if the plan has no phase of that index.
    """
    _in_plan(plan, index)
    return state._replace(opt_state=plan[index].optimizer.init(state.params))


def state_like(plan: Plan, step: Number, state: TrainState) -> TrainState:
    """What a state saved after `step` updates looks like, to restore it into.

    A state always has the opt_state of the phase of its next update: the one saved between two phases has entered.

    Args:
      plan: the plan of the run.
      step: the saved state's, such as ``run.latest_step()``.
      state: any state of the run, such as the first.

    Raises:
      ValueError: if the plan does not have `step`.
    """
    return enter(plan, phase_at(plan, step), state)


def make_planned_step(plan: Plan, make_step: Callable[[Phase], TrainStep]) -> PlannedStep:
    """Builds ``step(number, state, teacher, batch) -> (state, metrics)``, which is every phase's own step in its time.

    Args:
      plan: from `plan`.
      make_step: makes a phase's step, compiled; called once a phase. It may give one phase another network than the next,
        as long as the parameters stay.

    Returns:
      A function, not to be compiled itself, of

        - `number`: the state's step as a plain int, which the loop knows: reading it off the device would wait for it.
        - `state`: of `kdjax.init_state` with the first phase's optimizer, or what this function returned. After a phase's
          last update it has entered the next one.
        - `teacher`, `batch`: as for the step of `make_step`.

    Raises:
      ValueError: when called, if the plan has no update of that number.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax import Outputs, cross_entropy, init_state, make_train_step, weighted_sum
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params["body"] @ params["head"], {}), model_state
      >>> from kdjax.training import freeze
      >>> goal = weighted_sum(labels=(1, cross_entropy))
      >>> both = plan(Phase("head", 3, goal, freeze(optax.sgd(0.1), "body")), Phase("all", 2, goal, optax.adam(0.1)))
      >>> step = make_planned_step(both, lambda phase: jax.jit(make_train_step(network, None, phase.optimizer)))
      >>> weights = Weights({"body": jnp.eye(2), "head": jnp.eye(2)}, {})
      >>> state = init_state(weights, both[0].optimizer, jax.random.key(0))
      >>> for number in range(int(state.step), bounds(both)[-1]):
      ...     state, metrics = step(number, state, None, {"inputs": jnp.eye(2), "labels": jnp.arange(2)})
      ...     print(number, bool((state.params["body"] == jnp.eye(2)).all()))
      0 True
      1 True
      2 True
      3 False
      4 False
    """
    steps = [make_step(phase) for phase in plan]
    objectives = [objective_of(plan, index) for index in range(len(plan))]
    last = bounds(plan)[-1]

    def step(number: int, state: TrainState, teacher: Weights | None, batch: Batch) -> tuple[TrainState, Metrics]:
        if not 0 <= number < last:
            raise ValueError(f"number must be that of one of the plan's {last} updates, from 0; got {number}.")
        index = phase_at(plan, number)
        state, metrics = steps[index](state, teacher, objectives[index], batch)
        after = phase_at(plan, number + 1)
        return (state if after == index else enter(plan, after, state)), metrics

    return step


def _since(step: Number, start: Number, schedule: Schedule) -> Any:
    return schedule(step - start)


def _in_plan(plan: Plan, index: int) -> None:
    if not 0 <= index < len(plan):
        raise ValueError(f"index must be that of one of the plan's {len(plan)} phases, from 0; got {index!r}.")
