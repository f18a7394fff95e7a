"""What a connector is, what it sees, and how it reads a feature."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Batch, Outputs, Tree, Weights

Features = dict[str, Any]
Names = tuple[str, ...]
Added = tuple[Features, Features, Tree]
"""What a connector adds to the student's features and to the teacher's, by suffix, and its new model_state."""

_AXES = {4: "[batch, height, width, channels]", 2: "[batch, dim]"}


class Seen(NamedTuple):
    """What a connector sees in one step. Outputs and batch are whole, also where the step is split over devices.

    Attributes:
      student: the student's own outputs, without what other connectors add.
      teacher: the teacher's; None where there is no teacher.
      batch: the step's batch.
      train: whether statistics are of the batch, and memories move on. A plain bool: build `Seen` inside of `jax.jit`.
      rng: a key of the step and the connector's name; None where nothing may be drawn.

    Example:
      >>> seen = Seen(Outputs(jnp.zeros((2, 3)), {"stage1": jnp.ones((2, 4))}), None, {}, True, None)
      >>> seen.student.features["stage1"].shape
      (2, 4)
    """

    student: Outputs
    teacher: Outputs | None
    batch: Batch
    train: bool
    rng: PRNGKeyArray | None


class Connector(NamedTuple):
    """A learnt part between two networks, as two pure functions.

    Attributes:
      init: ``init(rng, student, teacher) -> Weights``. Both `Outputs` hold shapes alone, `jax.ShapeDtypeStruct`.
      apply: ``apply(params, model_state, seen) -> (student_features, teacher_features, model_state)``: what it adds to each
        network's features, by suffix, ``""`` for the main one. It knows no device axis.
      compares_examples: whether what it adds to an example, or carries from step to step, depends on the others; a batch
        with a mask is then refused. None: if its model_state has floating-point numbers, as batch statistics are.
      reads: the places that it reads, ``"student.NAME"`` or ``"teacher.NAME"``. `kdjax.caching.features_of` keeps the
        teacher's for it.

    Example:
      One learnt number for each channel, to scale the student's feature by. Its term, under the name "scale", is
      ``on_feature(hint, "scale")``.

      >>> from kdjax.connectors import bricks, read_places
      >>> reads = ("student.stage1", "teacher.stage2")
      >>> def init(rng, student, teacher):
      ...     own, _ = read_places(reads, student, teacher)
      ...     return Weights({"scale": jnp.ones(own.shape[-1])}, {})
      >>> def apply(params, model_state, seen):
      ...     own, wanted = read_places(reads, seen.student, seen.teacher)
      ...     return {"": own * params["scale"][None, :]}, {"": wanted}, model_state
      >>> scale = Connector(init, apply, reads)
      >>> student, teacher = (Outputs(jnp.zeros((2, 3)), {name: jnp.ones((2, 4))}) for name in ("stage1", "stage2"))
      >>> weights = scale.init(None, student, teacher)
      >>> scale.apply(*weights, Seen(student, teacher, {}, True, None))[0][""].shape
      (2, 4)
    """

    init: Callable[[PRNGKeyArray, Outputs, Outputs], Weights]
    apply: Callable[[Tree, Tree, Seen], Added]
    reads: tuple[str, ...] = ()
    compares_examples: bool | None = None


def read_places(
    places: Iterable[str], student: Outputs, teacher: Outputs | None, *, axes: tuple[int, ...] = ()
) -> list[Any]:
    """What stands at each place: a feature, or ``logits``, of a network.

    Args:
      places: ``"student.NAME"`` or ``"teacher.NAME"``.
      student: its outputs, or their shapes.
      teacher: the teacher's; None where there is none.
      axes: how many axes each feature may have: 2 for [batch, dim], 4 for maps. None given: any.

    Returns:
      The arrays, in the order of the places.

    Raises:
      ValueError: a place is none, there is no teacher or no such feature, or it has another number of axes.

    Example:
      >>> outputs = Outputs(jnp.zeros((2, 3)), {"stage1": jnp.ones((2, 4, 4, 8))})
      >>> [array.shape for array in read_places(("student.stage1", "teacher.logits"), outputs, outputs)]
      [(2, 4, 4, 8), (2, 3)]
    """
    found = []
    for place in places:
        who, _, name = place.partition(".")
        if who not in ("student", "teacher") or not name:
            raise ValueError(f'A connector\'s place must be "student.NAME" or "teacher.NAME"; got {place!r}.')
        outputs = student if who == "student" else teacher
        if outputs is None:
            raise ValueError(f"A connector reads the teacher's feature {name!r}, and there is no teacher here.")
        feature = _checks.feature(who, outputs, name)
        if axes and feature.ndim not in axes:
            wanted = " or ".join(text for count, text in _AXES.items() if count in axes)
            raise ValueError(f"{place} must be {wanted}; got shape {tuple(feature.shape)}.")
        found.append(feature)
    return found


def pair_of(student: str, teacher: str | None) -> tuple[str, str]:
    """The places of the student's feature and of the teacher's, whose name is the same where it is None."""
    return f"student.{student}", f"teacher.{student if teacher is None else teacher}"


def stages_of(students: Names, teachers: Names | None) -> tuple[Names, Names]:
    """The places of several features of each network, whose names are the same where the teacher's are None."""
    teachers = students if teachers is None else teachers
    if not students or len({*students}) < len(students):
        raise ValueError(f"students must name one feature at least, and none twice; got {students!r}.")
    if not teachers:
        raise ValueError("teachers must name one feature at least; got none.")
    return tuple(f"student.{name}" for name in students), tuple(f"teacher.{name}" for name in teachers)


def no_student(
    params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: PRNGKeyArray | None = None
) -> tuple[Outputs, Tree]:
    """An `Apply` of no parameters, ``Weights({}, {})``, to train a connector that reads the teacher alone."""
    del params, train, rng
    return Outputs(jnp.zeros((inputs.shape[0], 1)), {}), model_state


def key_of(rng: PRNGKeyArray | None, what: str) -> PRNGKeyArray:
    if rng is None:
        raise ValueError(f"rng must be a key while training {what}; got None.")
    return rng
