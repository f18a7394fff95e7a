"""A connector that learns nothing and is told how the student does: it holds the temperature and the soft weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Number, Outputs, TrainState, Tree, Weights
from kdjax.connectors._beside import connector_of
from kdjax.connectors._connector import Added, Connector, Seen


def controlled(
    temperature: Number = 4.0,
    *,
    weight: tuple[Number, Number] = (0.9, 0.7),
    factor: Number = 0.8,
    low: Number = 1.0,
    high: Number = 20.0,
    patience: int = 3,
    min_delta: Number = 0.0,
) -> Connector:
    r"""A temperature and a soft weight set by how the student does on validation data, as `observe` is told.

    Adds single numbers to the student's features: ``name_temperature``, ``name_weight`` and ``name_rest``, 1 − weight. A
    pair of terms that read them, for a controller "control":
    ``scaled(on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="student.control_temperature"),
    by="student.control_weight")`` and ``scaled(cross_entropy, by="student.control_rest")``.

    With the student's best validation accuracy a, which was a₀ when first observed, and the teacher's b, b₀ at that time:

    $$w = w_{\text{start}} + (w_{\text{end}} - w_{\text{start}}) \, c, \qquad c = 1 - \frac{b - a}{b_0 - a_0}$$

    with c cut to 0 … 1: the weight moves in proportion to how much of the first gap is closed, and a student that begins
    without a gap has closed it. And T is multiplied by `factor`, within `low` and `high`, whenever the accuracy has not
    grown by more than `min_delta` for `patience` observations. This is a rule of thumb and no paper's.

    All of it, the rule's own numbers too, is in the connector's model_state, in the training state: it is saved and
    restored there, and the step does not compile again when it moves.

    Args:
      temperature: T at the start, between `low` and `high`.
      weight: the soft weight while the whole gap is open, and when it is closed, each from 0 to 1.
      factor: of T, above 0. Less than 1 makes the targets sharper when the student is stuck; more makes them softer.
      low: the least T, above 0.
      high: the largest.
      patience: how many observations in a row without growth it takes, 1 or more.
      min_delta: what accuracy must grow by to count, as a fraction from 0 to 1.

    Returns:
      A `Connector` without parameters. It reads neither network. Its model_state: ``temperature``, ``weight``, ``best``
      accuracy, first ``gap``, ``waited`` and ``observed``, two numbers of observations, and ``rule``.

    Raises:
      ValueError: a number is outside of what is said above.

    Example:
      See `observe`.
    """
    _checks.positive("low", low)
    _checks.positive("high", high)
    _checks.positive("temperature", temperature)
    if not low <= temperature <= high:
        raise ValueError(f"temperature must lie between low and high, {low!r} and {high!r}; got {temperature!r}.")
    if not np.iterable(weight) or len(weight) != 2:
        raise ValueError(f"weight must be two numbers, at the start and at the end; got {weight!r}.")
    for place, one in enumerate(weight):
        _checks.between(f"weight[{place}]", one, 0.0, 1.0)
    _checks.positive("factor", factor)
    _checks.whole("patience", patience, 1)
    _checks.between("min_delta", min_delta, 0.0, 1.0)
    start, end = weight
    rule = {"start": start, "end": end, "factor": factor, "low": low, "high": high, "min_delta": min_delta}

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        del rng, of_student, of_teacher
        numbers = {"temperature": temperature, "weight": start, "best": -jnp.inf, "gap": 0.0, "rule": rule}
        model_state: dict[str, Any] = jax.tree.map(lambda number: jnp.asarray(number, jnp.float32), numbers)
        model_state["rule"]["patience"] = jnp.asarray(patience, jnp.int32)
        return Weights({}, model_state | {name: jnp.zeros((), jnp.int32) for name in ("waited", "observed")})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        del params, seen
        now = {name: model_state[name] for name in ("temperature", "weight")}
        return now | {"rest": 1.0 - now["weight"]}, {}, model_state

    return Connector(init, apply, compares_examples=False)  # its numbers move between epochs, by `observe`


def observe(state: TrainState, name: str, *, accuracy: Number, teacher_accuracy: Number) -> TrainState:
    """The same training state, whose controller `name` has seen how the student does. To be called between epochs.

    Args:
      state: of a step with the connector `controlled` under `name`.
      name: the controller's.
      accuracy: the student's on validation data, a fraction from 0 to 1. Not on the test data: what is set by them is no
        longer measured by them.
      teacher_accuracy: the teacher's on the same data.

    Returns:
      The state. The parameters, the step and the optimizer's state are as they were.

    Raises:
      ValueError: there is no connector `name` or it is no controller, or an accuracy is not a number from 0 to 1.

    Example:
      >>> nothing = Outputs(jnp.zeros((2, 3)), {})
      >>> made = controlled(4.0, weight=(0.9, 0.7), factor=0.5, patience=2).init(jax.random.key(0), nothing, nothing)
      >>> beside = Weights({"student": {}, "connectors": {"control": {}}},
      ...                  {"student": {}, "connectors": {"control": made.model_state}})
      >>> state = TrainState(0, beside.params, beside.model_state, (), jax.random.key(0))
      >>> for accuracy in (0.50, 0.70, 0.65, 0.70):  # half of the gap to 0.9 is closed, then two without growth
      ...     state = observe(state, "control", accuracy=accuracy, teacher_accuracy=0.9)
      ...     now = connector_of(state, "control").model_state
      ...     print(f"weight {now['weight']:.2f}, temperature {now['temperature']:.1f}")
      weight 0.90, temperature 4.0
      weight 0.80, temperature 4.0
      weight 0.80, temperature 4.0
      weight 0.80, temperature 2.0
    """
    for argument, value in (("accuracy", accuracy), ("teacher_accuracy", teacher_accuracy)):
        _checks.finite(argument, value)
        _checks.between(argument, value, 0.0, 1.0)
    old = connector_of(Weights(state.params, state.model_state), name).model_state
    if "rule" not in old:
        raise ValueError(f"name must be that of a connector made by controlled; {name!r} holds {sorted(old)}.")
    rule, gap = old["rule"], jnp.where(old["observed"] == 0, teacher_accuracy - accuracy, old["gap"])
    grown = accuracy > old["best"] + rule["min_delta"]
    best = jnp.where(grown, accuracy, old["best"])
    closed = jnp.where(gap > 0, 1.0 - (teacher_accuracy - best) / jnp.where(gap > 0, gap, 1.0), 1.0)
    waited = jnp.where(grown, 0, old["waited"] + 1)
    stuck = waited >= rule["patience"]
    moved = jnp.clip(old["temperature"] * rule["factor"], rule["low"], rule["high"])
    new = {
        "temperature": jnp.where(stuck, moved, old["temperature"]),
        "weight": rule["start"] + (rule["end"] - rule["start"]) * jnp.clip(closed, 0.0, 1.0),
        "best": best,
        "gap": gap,
        "waited": jnp.where(stuck, 0, waited),
        "observed": old["observed"] + 1,
    }
    # In the types of the old ones, or the step would compile once more.
    new = {part: jnp.asarray(value, old[part].dtype) for part, value in new.items()}
    others = state.model_state["connectors"] | {name: new | {"rule": rule}}
    return state._replace(model_state=state.model_state | {"connectors": others})
