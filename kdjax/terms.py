"""What is matched, and how much it counts: terms give a loss its inputs by name, an objective gives terms their weights.

An objective is a value and a pytree. Its numbers (weights, temperatures, …) are leaves: handed to a compiled step as an
argument they can be searched, vmapped and differentiated without another compilation. Its names and functions are static.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from kdjax import _checks, schedules
from kdjax._types import Batch, Number, Outputs, Term
from kdjax.schedules import Schedule

RESERVED = ("loss", "accuracy")


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


def read_labels(batch: Batch, size: int) -> Integer[Array, " batch"]:
    """``batch["labels"]``, or an error that says what is wrong with them."""
    if "labels" not in batch:
        raise ValueError(f'batch must have "labels"; it has {sorted(batch)}.')
    _checks.labels('batch["labels"]', batch["labels"], size)
    return jnp.asarray(batch["labels"])


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("numbers",),
    meta_fields=("loss", "student_feature", "teacher_feature", "settings"),
)
@dataclass(frozen=True)
class Match:
    """One loss between what the student and the teacher say in one place. Made by `on_logits` and `on_feature`."""

    loss: Callable[..., Float[Array, " batch"]]
    student_feature: str | None  # None: the logits
    teacher_feature: str | None
    numbers: Mapping[str, Any]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch"]:
        if teacher is None:
            raise ValueError(
                f"{_name(self.loss)} compares the student with a teacher, and this step has none: "
                'give make_train_step a teacher_apply, or the batch a "teacher".'
            )
        inputs = _read("student", student, self.student_feature), _read("teacher", teacher, self.teacher_feature)
        keywords = dict(self.numbers) | dict(self.settings)
        if "labels" in inspect.signature(self.loss).parameters:
            keywords["labels"] = read_labels(batch, student.logits.shape[0])
        return self.loss(*inputs, **keywords)


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
    return _match(loss, None, None, hyper_parameters)


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
      >>> on_feature(attention_transfer, "stage2", teacher="stage3").teacher_feature
      'stage3'
    """
    return _match(loss, name, name if teacher is None else teacher, hyper_parameters)


class Scores(NamedTuple):
    """What an objective says of a batch: [batch] for the weighted sum and for each term alone, and each term's weight."""

    total: Float[Array, " batch"]
    terms: dict[str, Float[Array, " batch"]]
    weights: dict[str, Array]


@partial(jax.tree_util.register_dataclass, data_fields=("weights", "terms"), meta_fields=())
@dataclass(frozen=True)
class Objective:
    """Named terms and their weights. Made by `weighted_sum`; called by the step, which takes the mean over the batch."""

    weights: Mapping[str, Any]
    terms: Mapping[str, Any]

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch, step: Number) -> Scores:
        weights, terms = schedules.at((dict(self.weights), dict(self.terms)), step)
        values = {name: term(student, teacher, batch) for name, term in terms.items()}
        for name, value in values.items():
            if value.shape != student.logits.shape[:1]:
                raise ValueError(
                    f"The term {name!r} must return one number per example, shape {student.logits.shape[:1]}; "
                    f"got shape {value.shape}."
                )
        total = sum((weights[name] * value for name, value in values.items()), start=jnp.zeros((), jnp.float32))
        return Scores(total, values, {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()})


def weighted_sum(**terms: Any) -> Objective:
    """An objective: the sum of weight × term, each under a name of your choice.

    Args:
      **terms: ``name=(weight, term)``. A weight is a number or a function of the step; a term is made by `on_logits` or
        `on_feature`, or is any function ``(student, teacher, batch) -> [batch]``.

    Returns:
      An `Objective`. The step reports each term's unweighted mean under its name, and its weight as ``<name>_weight``.

    Raises:
      ValueError: if there are no terms, an entry is no (weight, term) pair, a weight is NaN or infinite, or a name is
        taken by the step's own metrics.

    Example:
      >>> from kdjax.losses import soft_target_kl
      >>> objective = weighted_sum(labels=(0.1, cross_entropy), soft=(0.9, on_logits(soft_target_kl, temperature=4.0)))
      >>> sorted(jax.tree.leaves(objective))
      [0.1, 0.9, 4.0]
    """
    if not terms:
        raise ValueError("weighted_sum needs at least one term, as name=(weight, term); got none.")
    weights: dict[str, Number | Schedule] = {}
    functions: dict[str, Term] = {}
    for name, pair in terms.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            raise ValueError(f"{name} must be a pair (weight, term) whose term is a function; got {pair!r}.")
        if name in RESERVED or name.endswith("_weight"):
            raise ValueError(f"The term's name {name!r} is taken by the step's own metrics; choose another.")
        weights[name] = _leaf(f"the weight of {name}", pair[0])
        if jnp.ndim(schedules.at(weights[name], 0)):
            raise ValueError(f"the weight of {name} must be one number; got shape {jnp.shape(pair[0])}.")
        # A plain function is no pytree; Partial makes it one, with no leaves. Terms that are pytrees stay as they are.
        functions[name] = jax.tree_util.Partial(pair[1]) if jax.tree_util.all_leaves([pair[1]]) else pair[1]
    return Objective(weights, functions)


def _match(loss: Callable, student: str | None, teacher: str | None, hyper_parameters: Mapping[str, Any]) -> Match:
    parameters = inspect.signature(loss).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    leaves, settings = {}, {}
    for name, value in hyper_parameters.items():
        _checks.one_of(f"A hyper-parameter of {_name(loss)}", name, known)
        default = parameters[name].default
        if isinstance(default, float) or (default is inspect.Parameter.empty and not isinstance(value, tuple)):
            leaves[name] = _leaf(name, value)
        else:
            settings[name] = value.item() if isinstance(value, np.generic) else value
    match = Match(loss, student, teacher, leaves, tuple(sorted(settings.items())))
    _ask_the_loss(match)
    return match


def _leaf(name: str, value: Any) -> Number | Schedule:
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

    It is called on the shapes of features and of logits, without computing anything. What it says of these made-up inputs
    does not matter; what it says of a number is an error that starts with the number's name.
    """
    stages = {"": 0.0} | {
        f", at step {leaf.numbers[-1]:g}": leaf.numbers[-1]
        for leaf in match.numbers.values()
        if isinstance(leaf, Schedule) and leaf.formula in schedules.FORMULAS
    }
    labels = {"labels": jnp.zeros(2, int)} if "labels" in inspect.signature(match.loss).parameters else {}
    for where, step in stages.items():
        values = schedules.at(dict(match.numbers), step)
        keywords = jax.tree.map(_plain, values) | dict(match.settings) | labels
        for shape in ((2, 3), (2, 4, 4, 3)):
            inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
            try:
                jax.eval_shape(partial(match.loss, **keywords), inputs, inputs)
            except Exception as error:
                if any(str(error).startswith(f"{name} ") for name in (*match.numbers, *dict(match.settings))):
                    raise ValueError(f"{error}{where}") from None


def _plain(value: Any) -> Any:
    """A single number as Python's own, which error messages show best; tracers and larger arrays as they are."""
    return value if isinstance(value, jax.core.Tracer) or np.size(value) != 1 else np.asarray(value).item()


def _read(who: str, outputs: Outputs, feature: str | None) -> Array:
    if feature is None:
        return outputs.logits
    if feature not in outputs.features:
        raise ValueError(f"The {who} has no feature {feature!r}; it has {sorted(outputs.features)}.")
    return outputs.features[feature]


def _name(function: Callable) -> str:
    return getattr(function, "__name__", repr(function))
