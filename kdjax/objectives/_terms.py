"""What is matched: a term gives a loss its arrays by name.

A term is a pytree. Its numbers (temperatures, powers, …) are leaves, its names and functions are static.
"""

import inspect
import itertools
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from kdjax import _checks
from kdjax._types import Batch, Number, Outputs
from kdjax.objectives import schedules
from kdjax.objectives.schedules import Schedule


def cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch"]:
    """The ordinary supervised term: −log softmax(student.logits)[label].

    Reads ``batch["labels"]``, whole numbers [batch] from 0 to classes − 1. Traced labels have no values to check: one
    outside gives its example NaN, which is seen, and not the number of some other class.
    """
    del teacher
    logits = student.logits.astype(jnp.promote_types(student.logits.dtype, jnp.float32))
    labels = read_labels(batch, logits.shape[0])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where((labels < 0) | (labels >= logits.shape[1]), jnp.nan, values)


def mixed_cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch"]:
    """The supervised term for mixed examples: λ · CE(labels) + (1 − λ) · CE(partner_labels).

    It equals the cross-entropy with the soft label λ y + (1 − λ) y′. Reads ``batch["labels"]``,
    ``batch["partner_labels"]`` and ``batch["share"]``, as `kdjax.data.make_views` makes them.

    Args:
      student: its logits.
      teacher: not read.
      batch: the mixed batch.

    Raises:
      ValueError: if one of the three is missing, or as `cross_entropy` does.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> batch = {"labels": jnp.array([0]), "partner_labels": jnp.array([1]), "share": jnp.array([0.5])}
      >>> round(float(mixed_cross_entropy(Outputs(logits, {}), None, batch)[0] / jnp.log(2)), 5)
      1.5
    """
    for name in ("partner_labels", "share"):
        if name not in batch:
            raise ValueError(f'batch must have "{name}", as make_views(..., mix=...) adds it; it has {sorted(batch)}.')
    own: Any = cross_entropy(student, teacher, batch)
    others = cross_entropy(student, teacher, {"labels": batch["partner_labels"]})
    return batch["share"] * own + (1 - batch["share"]) * others


def read_labels(batch: Batch, size: int) -> Integer[Array, " batch"]:
    """``batch["labels"]``, or an error that says what is wrong with them."""
    labels = _in_batch(batch, "labels")
    return _checks.labels('batch["labels"]', labels, size)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("numbers",),
    meta_fields=("loss", "places", "named_places", "settings"),
)
@dataclass(frozen=True)
class Match:
    """One loss and the places from which it takes its arrays. Made by `on_logits`, `on_feature` and `on_outputs`."""

    loss: Callable[..., Float[Array, " batch"]]
    places: tuple[str, ...]
    named_places: tuple[tuple[str, str], ...]
    numbers: Mapping[str, Any]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch"]:
        read = partial(read_place, self.loss, student, teacher, batch)
        arrays = [read(place) for place in self.places]
        keywords = dict(self.numbers) | dict(self.settings) | {name: read(place) for name, place in self.named_places}
        if _wants_labels(self.loss, self.places, keywords):
            keywords["labels"] = read_labels(batch, student.logits.shape[0])
        return self.loss(*arrays, **keywords)


def on_logits(loss: Callable[..., Float[Array, " batch"]], **hyper_parameters: Any) -> Match:
    """Lifts a loss on arrays to a term on the student's and the teacher's logits.

    Args:
      loss: ``loss(student, teacher, **hyper_parameters)``, or one that takes ``labels`` too.
      **hyper_parameters: handed on to `loss`. Real numbers become leaves of the objective, unless the loss's own default
        is an int or None (``block``, ``hardest``: they decide shapes). Functions of the step become schedules.

    Raises:
      ValueError: if `loss` has no such hyper-parameter, if a number is not finite, or as `loss` itself does for its
        numbers; a schedule is asked for its first value, and `linear`, `cosine` and `staircase` for their next too.

    Example:
      >>> from kdjax.losses import soft_target_kl
      >>> jax.tree.leaves(on_logits(soft_target_kl, temperature=4))
      [4.0]
    """
    return _match(loss, ("student.logits", "teacher.logits"), hyper_parameters)


def on_feature(
    loss: Callable[..., Float[Array, " batch"]], name: str, *, teacher: str | None = None, **hyper_parameters: Any
) -> Match:
    """Lifts a loss on arrays to a term on the feature `name` of the student and of the teacher.

    Args:
      loss: as in `on_logits`.
      name: a key of `Outputs.features`, such as ``"stage2"`` or ``"embedding"``.
      teacher: the teacher's name for its feature, where it differs from `name`.
      **hyper_parameters: as in `on_logits`.

    Raises:
      ValueError: as in `on_logits`.

    Example:
      >>> from kdjax.losses import attention_transfer
      >>> on_feature(attention_transfer, "stage2", teacher="stage3").places
      ('student.stage2', 'teacher.stage3')
    """
    return _match(loss, (f"student.{name}", f"teacher.{name if teacher is None else teacher}"), hyper_parameters)


def on_outputs(loss: Callable[..., Float[Array, " batch"]], *places: str, **hyper_parameters: Any) -> Match:
    """Lifts a loss of any number of arrays to a term, each array read from where its place says.

    Args:
      loss: any function of arrays that returns [batch].
      *places: one for each array, in order, such as ``"student.stage2"``, ``"teacher.logits"`` or ``"batch.top_values"``:
        who, and the name of a feature, ``logits``, or the batch's entry. An argument named ``labels`` needs no place.
      **hyper_parameters: as in `on_logits`; or a place, for an array that the loss takes by name.

    Raises:
      ValueError: as in `on_logits`, or if a place is none.

    Example:
      >>> from kdjax.losses import fsp
      >>> flow = on_outputs(fsp, "student.stage1", "student.stage2", "teacher.stage1", "teacher.stage3")
      >>> flow.places[-1]
      'teacher.stage3'
    """
    if not places:
        raise ValueError('on_outputs needs the places of its arrays, such as "student.stage1"; got none.')
    for place in places:
        if not is_place(place):
            raise ValueError(
                f'A place must be "student.NAME", "teacher.NAME" or "batch.NAME"; got {place!r} for {_name(loss)}.'
            )
    return _match(loss, places, hyper_parameters)


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("name",))
@dataclass(frozen=True)
class Computed:
    """A value that stands among the student's features already. Made by `computed`."""

    name: str

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch"]:
        del teacher, batch
        value: Array = _in_outputs("student", student, self.name)
        return value


def computed(name: str) -> Computed:
    """A term that a connector has worked out already: the student's feature `name`, of shape [batch].

    Example:
      >>> term = computed("crd")
      >>> outputs = Outputs(jnp.zeros((2, 3)), {"crd": jnp.array([1.0, 2.0])})
      >>> term(outputs, None, {}).tolist()
      [1.0, 2.0]
    """
    return Computed(name)


def _match(loss: Callable, places: tuple[str, ...], hyper_parameters: Mapping[str, Any]) -> Match:
    parameters = inspect.signature(loss).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    leaves: dict[str, Any] = {}
    settings, named_places = {}, {}
    for name, value in hyper_parameters.items():
        _checks.one_of(f"A hyper-parameter of {_name(loss)}", name, known)
        default = parameters[name].default
        if is_place(value):
            named_places[name] = value
        elif default is inspect.Parameter.empty and isinstance(value, tuple):
            leaves[name] = tuple(leaf_of(f"{name}[{place}]", one) for place, one in enumerate(value))
        elif isinstance(default, float) or default is inspect.Parameter.empty:
            leaves[name] = leaf_of(name, value)
        else:
            settings[name] = value.item() if isinstance(value, np.generic) else value
    _fill_all_arguments(loss, places, hyper_parameters)
    match = Match(loss, places, tuple(sorted(named_places.items())), leaves, tuple(sorted(settings.items())))
    _ask_the_loss(match)
    return match


def _fill_all_arguments(loss: Callable, places: tuple[str, ...], keywords: Mapping[str, Any]) -> None:
    """A ValueError where the loss would miss an argument, or get one too many."""
    labels = {"labels": None} if _wants_labels(loss, places, keywords) else {}
    try:
        inspect.signature(loss).bind(*places, **keywords, **labels)
    except TypeError as error:
        wanted = ", ".join(
            name
            for name, parameter in inspect.signature(loss).parameters.items()
            if parameter.default is parameter.empty and name != "labels"
        )
        raise ValueError(f"{_name(loss)} needs {wanted}; got the arrays {', '.join(places)}: {error}.") from None


def is_place(value: Any) -> bool:
    """Whether it says whose array it is and which, as in ``"student.stage2"``."""
    who, dot, name = value.partition(".") if isinstance(value, str) else ("", "", "")
    return who in ("student", "teacher", "batch") and bool(dot and name)


def _wants_labels(loss: Callable, places: tuple[str, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether `loss` has an argument ``labels`` that neither a place nor a keyword fills."""
    parameters = inspect.signature(loss).parameters
    return "labels" in parameters and "labels" not in keywords and list(parameters).index("labels") >= len(places)


def leaf_of(name: str, value: Any) -> Number | Schedule:
    """A number or a schedule as a leaf of an objective, or the ValueError that says why it is none."""
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return Schedule(value)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number or hasattr(value, "dtype")):
        raise ValueError(f"{name} must be a number or a function of the step; got {value!r}.")
    _checks.finite(name, value)
    # One type for all plain numbers: an int today and a float tomorrow would compile twice.
    return float(value) if is_number else value


def _ask_the_loss(match: Match) -> None:
    """Lets the loss check its numbers here, where they are known; under jit they are traced, and pass.

    It is called on the shapes of features, of logits and of indices, without computing anything. What it says of these
    made-up inputs does not matter; what it says of a number is an error that starts with the number's name.
    """
    stages = {"": 0.0} | {
        f", at step {leaf.numbers[-1]:g}": leaf.numbers[-1]
        for leaf in jax.tree.leaves(dict(match.numbers), is_leaf=_is_schedule)
        if isinstance(leaf, Schedule) and leaf.formula in schedules.FORMULAS
    }
    labels = {"labels": jnp.zeros(2, int)} if _wants_labels(match.loss, match.places, {}) else {}
    for where, step in stages.items():
        values = schedules.at(dict(match.numbers), step)
        # A number a channel, such as a margin, tells how many channels there are.
        channels = next((np.shape(value)[-1] for value in jax.tree.leaves(values) if np.ndim(value)), 3)
        for shape, last in itertools.product(((2, channels), (2, 4, 4, channels)), (jnp.float32, jnp.int32)):
            kinds = [jnp.float32] * (len(match.places) - 1) + [last]
            inputs = [jax.ShapeDtypeStruct(shape, kind) for kind in kinds]
            named = {name: jnp.zeros(shape[-1:]) for name, _ in match.named_places}
            keywords = jax.tree.map(_plain, values) | dict(match.settings) | named | labels
            try:
                jax.eval_shape(partial(match.loss, **keywords), *inputs)
            except _checks.OutOfRangeError as error:
                if error.argument.partition("[")[0] in {*match.numbers, *dict(match.settings)}:
                    raise ValueError(f"{error}{where}") from None
            except Exception:  # of these made-up inputs, not of a number
                continue


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


def _plain(value: Any) -> Any:
    """A single number as Python's own, which error messages show best; tracers and larger arrays as they are."""
    return value if isinstance(value, jax.core.Tracer) or np.size(value) != 1 else np.asarray(value).item()


def read_place(reader: Callable, student: Outputs, teacher: Outputs | None, batch: Batch, place: str) -> Any:
    """What stands at a place such as ``"student.stage2"``, or the error that says why `reader` cannot have it."""
    who, name = place.split(".", 1)
    if who == "batch":
        return _in_batch(batch, name)
    if who == "teacher" and teacher is None:
        raise ValueError(
            f"{_name(reader)} compares the student with a teacher, and this step has none: "
            'give make_train_step a teacher_apply, or the batch a "teacher".'
        )
    return _in_outputs(who, student if who == "student" or teacher is None else teacher, name)


def _in_outputs(who: str, outputs: Outputs, name: str) -> Any:
    if name == "logits":
        return outputs.logits
    if name not in outputs.features:
        raise ValueError(f"The {who} has no feature {name!r}; it has {sorted(outputs.features)}.")
    return outputs.features[name]


def _in_batch(batch: Batch, name: str) -> Any:
    if name not in batch:
        raise ValueError(f'batch must have "{name}"; it has {sorted(batch)}.')
    return batch[name]


def _name(function: Callable) -> str:
    return getattr(function, "__name__", repr(function))
