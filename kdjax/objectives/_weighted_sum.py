"""How much each term counts: an objective gives terms their weights.

An objective is a value and a pytree. Its numbers (weights, temperatures, …) are leaves: handed to a compiled step as an
argument they can be searched, vmapped and differentiated without another compilation. Its names and functions are static.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax._types import Batch, Number, Outputs, Term
from kdjax.objectives import schedules
from kdjax.objectives._counted import (
    LABELLED,
    MASK,
    Counted,
    Unmade,
    both,
    count_of,
    keep,
    mean_of,
    passing,
    read_counted,
    size_of,
    spread,
)
from kdjax.objectives._places import PLACES, is_place, places_of, read_place
from kdjax.objectives.schedules import Schedule, leaf_of

RESERVED = ("loss", "accuracy", "skipped")


class Scores(NamedTuple):
    """What an objective says of a batch, by term.

    Attributes:
      terms: one number for each example, or for each position, [batch, *positions]; of `on_heads` only the promise of
        their weighted sum.
      counted: which of them count, as bools over their leading axes; None where all do.
      weights: the term's weight.
      moving: by ``<term>_<name>``, the hyper-parameters that schedules give or connectors learn, such as T, as they are now;
        of those that each example has its own of, the mean, and by `count_of` that of how many, if not of all.
        By ``<term>_scale``, what `scaled` weighs the term by.
    """

    terms: dict[str, Float[Array, " batch *positions"] | Unmade]
    counted: dict[str, Counted]
    weights: dict[str, Array]
    moving: dict[str, Array]


@partial(jax.tree_util.register_dataclass, data_fields=("weights", "terms"), meta_fields=())
@dataclass(frozen=True)
class Objective:
    """Named terms and their weights. Made by `weighted_sum`; called by the step, which takes the means over the batch."""

    weights: Mapping[str, Any]
    terms: Mapping[str, Any]

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch, step: Number) -> Scores:
        weights, terms = schedules.at((dict(self.weights), dict(self.terms)), step)
        weights = {name: jnp.asarray(weight) for name, weight in weights.items()}
        entries = jnp.shape(student.logits)[:-1]
        mask = read_counted(batch, MASK, entries)
        values, counted = {}, {}
        for name, term in terms.items():
            own = counted_by(name, term, student, teacher, batch, mask)
            # A weight of 0 lets nothing back, whatever the term's own slope is.
            passed = jax.tree.map(partial(passing, weight=weights[name]), keep(student, own))
            value = term(passed, keep(teacher, own), batch if own is None else {**batch, MASK: own})
            values[name], counted[name] = _checked(name, value, entries, own), own
        moving = _scheduled(self.terms, step) | _read(terms, student, teacher, batch, counted)
        return Scores(values, counted, weights, moving)


def _scheduled(terms: Mapping[str, Any], step: Number) -> dict[str, Array]:
    """What moves by a schedule and is one number, by the term's name and its own."""
    found = {}
    for name, term in terms.items():
        for what, given in getattr(getattr(term, "term", term), "numbers", {}).items():
            if isinstance(given, Schedule) and not jnp.ndim(value := given(step)):
                found[f"{name}_{what}"] = jnp.asarray(value, jnp.float32)
    return found


def _read(
    terms: Mapping[str, Any], student: Outputs, teacher: Outputs | None, batch: Batch, counted: Mapping[str, Counted]
) -> dict[str, Array]:
    """What terms read by name and is one number, or one an example or position: a temperature that a connector learns."""
    found, entries = {}, jnp.shape(student.logits)[:-1]
    for name, term in terms.items():
        places = dict(getattr(getattr(term, "term", term), "named_places", ()))
        places |= {"scale": term.place} if isinstance(term, Scaled) else {}
        for what, place in places.items():
            value = read_place(term, student, teacher, batch, place)
            if not hasattr(value, "shape") or value.shape != entries[: value.ndim]:
                continue
            if jnp.issubdtype(value.dtype, jnp.floating):
                own = counted[name] if value.ndim else None
                own = own if own is None else own.any(axis=tuple(range(value.ndim, own.ndim)))
                found[f"{name}_{what}"] = mean_of(value, own)
                if own is not None:
                    found[count_of(f"{name}_{what}")] = size_of(value, own)
    return found


def _labelled(name: str, term: Any, batch: Batch) -> Counted:
    """Which entries have the label that the term reads; None where it reads none, or all have one."""
    if LABELLED not in batch:
        return None
    places = places_of(term)
    if places is None:
        raise ValueError(
            f"The term {name!r} must show whether it reads labels, some of which are missing here, and a plain function "
            'does not: lift it by kdjax.on_outputs(function, "student.logits", "batch.labels").'
        )
    labels = jnp.shape(batch["labels"]) if "labels" in batch else ()
    return read_counted(batch, LABELLED, labels) if "batch.labels" in places else None


def counted_by(name: str, term: Any, student: Outputs, teacher: Outputs | None, batch: Batch, mask: Counted) -> Counted:
    """Which entries a term counts: what the mask leaves, what has the label that it reads, and what has a weight."""
    own = both(mask, _labelled(name, term, batch))
    return both(own, term.counted(student, teacher, batch)) if hasattr(term, "counted") else own


def _checked(name: str, value: Any, entries: tuple[int, ...], counted: Counted) -> Array | Unmade:
    """A term's value, if it is one number for each example or position, and can leave out what does not count."""
    if not hasattr(value, "shape"):
        raise ValueError(
            f"The term {name!r} must return one array, shape {entries[:1]}; got a {type(value).__name__}. A loss that "
            "returns its next bank too, such as crd, comes through a connector, kdjax.connectors.contrast, and its term is "
            'computed("NAME").'
        )
    if value.shape[:1] != entries[:1]:
        raise ValueError(
            f"The term {name!r} must return one number per example or position, a shape that begins with {entries[:1]}; "
            f"got shape {value.shape}."
        )
    if counted is not None and value.shape[: counted.ndim] != counted.shape:
        raise ValueError(
            f"The term {name!r} must return one number for each position where positions are left out, a shape that begins "
            f"with {counted.shape}; got shape {value.shape}, a mean over positions that count and others that do not."
        )
    found: Array | Unmade = value
    return found


def weighted_sum(**terms: Any) -> Objective:
    """An objective: the sum of weight × term, each under a name of your choice.

    Args:
      **terms: ``name=(weight, term)``. A weight is a number or a function of the step; a term is made by `on_logits` or
        `on_feature`, or is any function ``(student, teacher, batch) -> [batch]`` or ``[batch, *positions]``.

    Returns:
      An `Objective`. The step reports each term's unweighted mean under its name, and its weight as ``<name>_weight``. A
      term whose weight is 0 changes nothing, be it NaN.

    Raises:
      ValueError: if there are no terms, an entry is no (weight, term) pair, a weight is NaN or infinite, or a name is
        taken by the step's own metrics.

    Example:
      >>> from kdjax import cross_entropy, on_logits
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
        if name in RESERVED or name.endswith(("_weight", count_of(""))) or "_gradient_" in name:
            raise ValueError(f"The term's name {name!r} is taken by the step's own metrics; choose another.")
        weights[name] = leaf_of(f"the weight of {name}", pair[0])
        if shape := jnp.shape(schedules.at(weights[name], 0)):
            raise ValueError(f"the weight of {name} must be one number; got shape {shape}.")
        functions[name] = _as_tree(pair[1])
    return Objective(weights, functions)


@partial(jax.tree_util.register_dataclass, data_fields=("term",), meta_fields=("place",))
@dataclass(frozen=True)
class Scaled:
    """A term times what stands at a place. Made by `scaled`."""

    term: Any
    place: str

    @property
    def places(self) -> tuple[str, ...] | None:
        """That of the weight, and those of the term; None where these cannot be seen."""
        its = places_of(self.term)
        return None if its is None else (self.place, *its)

    def counted(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Counted:
        """Where the weight is not 0; None where it is one number for all."""
        factor = read_place(scaled, student, teacher, batch, self.place)
        own = jnp.asarray(factor) != 0 if jnp.ndim(factor) else None
        return both(own, self.term.counted(student, teacher, batch)) if hasattr(self.term, "counted") else own

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Array | Unmade:
        factor = jnp.asarray(read_place(scaled, student, teacher, batch, self.place))
        value: Any = self.term(student, teacher, batch)
        if factor.shape != value.shape[: factor.ndim]:
            raise ValueError(
                f"{self.place} must be one number, or one per example or position, shape {value.shape}; got shape "
                f"{factor.shape}."
            )
        own = spread(factor, value.ndim) if factor.ndim else factor
        if MASK in batch and not isinstance(value, Unmade) and jnp.ndim(batch[MASK]) <= value.ndim:
            # The slope of a learnt factor is the value, also where a label that does not count is NaN.
            value = jnp.where(spread(jnp.asarray(batch[MASK]), value.ndim), value, 0.0)
        return value.times(own) if isinstance(value, Unmade) else own * value


def scaled(term: Term, *, by: str) -> Scaled:
    """A term whose weight is no number of the objective but stands among the arrays: the step's, or each example's own.

    Args:
      term: made by `on_logits` and the like, or any function ``(student, teacher, batch) -> [batch]``.
      by: the weight's place, such as ``"student.control_weight"`` of a connector or ``"batch.confidence"``: one number,
        one per example, [batch], or one per position.

    Returns:
      A term. The step reports its mean with that weight in it, over the entries whose weight is not 0: an example of
      weight 0 is as if it were not there.

    Raises:
      ValueError: `by` is no place; later, if nothing stands there or it has another shape.

    Example:
      >>> twice = scaled(lambda student, teacher, batch: batch["x"], by="batch.how_much")
      >>> outputs = Outputs(jnp.zeros((2, 3)), {})
      >>> twice(outputs, None, {"x": jnp.array([1.0, 2.0]), "how_much": jnp.array([1.0, 0.5])}).tolist()
      [1.0, 1.0]
    """
    if not is_place(by):
        raise ValueError(f"by must be a place, {PLACES}; got {by!r}.")
    return Scaled(_as_tree(term), by)


def _as_tree(term: Term) -> Any:
    # A plain function is no pytree; Partial makes it one, with no leaves. Terms that are pytrees stay as they are.
    return jax.tree_util.Partial(term) if jax.tree_util.all_leaves([term]) else term
