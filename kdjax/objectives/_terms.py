"""What is matched: a term gives a loss its arrays by name.

A term is a pytree. Its numbers (temperatures, powers, …) are leaves, its names and functions are static.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Batch, Outputs
from kdjax.losses._tokens import stood_in
from kdjax.objectives._counted import MASK, is_of_entries
from kdjax.objectives._hyper_parameters import ask_the_loss, fill_all_arguments, sort_out
from kdjax.objectives._places import (
    PLACES,
    is_place,
    name_of,
    read_batch,
    read_place,
    wants,
    wants_labels,
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("numbers",),
    meta_fields=("loss", "arrays", "named_places", "settings"),
)
@dataclass(frozen=True)
class Match:
    """One loss and the places from which it takes its arrays. Made by `on_logits`, `on_feature` and `on_outputs`."""

    loss: Callable[..., Float[Array, " batch *positions"]]
    arrays: tuple[str, ...]
    named_places: tuple[tuple[str, str], ...]
    numbers: Mapping[str, Any]
    settings: tuple[tuple[str, Any], ...]

    @property
    def places(self) -> tuple[str, ...]:
        """All that the term reads: its arrays in order, those it takes by name, and the labels if the loss wants them."""
        named = dict(self.named_places)
        labels = ("batch.labels",) if wants_labels(self.loss, len(self.arrays), named) else ()
        return (*self.arrays, *named.values(), *labels)

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
        read = partial(read_place, self.loss, student, teacher, batch)
        arrays = [read(place) for place in self.arrays]
        counted = batch.get(MASK)
        named = {name: read(place) for name, place in self.named_places}
        if counted is not None and "temperature" in named and is_of_entries(named["temperature"], counted):
            named["temperature"] = stood_in(named["temperature"], counted)
        keywords = dict(self.numbers) | dict(self.settings) | named
        if wants_labels(self.loss, len(self.arrays), keywords):
            keywords["labels"] = read_batch(batch, "labels")
        if counted is not None and wants(self.loss, "where", keywords):
            keywords["where"] = counted
        return self.loss(*arrays, **keywords)


def on_logits(loss: Callable[..., Float[Array, " batch *positions"]], **hyper_parameters: Any) -> Match:
    """Lifts a loss on arrays to a term on the student's and the teacher's logits.

    Args:
      loss: ``loss(student, teacher, **hyper_parameters)``, which may take ``labels`` too. One that compares examples with
        each other takes ``where``, and is given the bools of what counts where the batch has a mask; any other loss must
        give an example a number that does not depend on the others.
      **hyper_parameters: handed on to `loss` by name. Floats, arrays and functions of the step, which become schedules,
        are leaves of the objective: other values compile nothing again. An int is one too where the loss's own default is
        a float; elsewhere it is static, as it may decide shapes (``block``, ``hardest``), and so are bools, names, None,
        tuples of ints, and a function where the default is one. A tuple that holds a leaf is leaves throughout. A loss
        that takes ``**settings`` is given all names.

    Returns:
      A term, whose ``places`` are all that it reads: those of its arrays, and ``"batch.labels"`` if `loss` takes them.

    Raises:
      ValueError: if `loss` has no such hyper-parameter or does not take it by name alone, if a number is not finite, or as
        `loss` itself does for its numbers; a schedule is asked for its value at step 0, and `linear`, `cosine` and
        `staircase` for their next too.

    Example:
      >>> from kdjax.losses import soft_target_kl
      >>> jax.tree.leaves(on_logits(soft_target_kl, temperature=4))
      [4.0]
    """
    return _match(loss, ("student.logits", "teacher.logits"), hyper_parameters)


def on_feature(
    loss: Callable[..., Float[Array, " batch *positions"]],
    name: str,
    *,
    teacher: str | None = None,
    **hyper_parameters: Any,
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
    for argument, feature in (("name", name), ("teacher", name if teacher is None else teacher)):
        _checks.instance(argument, feature, str, "a feature's name")
    return _match(loss, (f"student.{name}", f"teacher.{name if teacher is None else teacher}"), hyper_parameters)


def on_outputs(loss: Callable[..., Float[Array, " batch *positions"]], *places: str, **hyper_parameters: Any) -> Match:
    """Lifts a loss of any number of arrays to a term, each array read from where its place says.

    Args:
      loss: any function of arrays that returns [batch].
      *places: one for each array, in order, such as ``"student.stage2"``, ``"teacher.logits"`` or ``"batch.top_values"``:
        who, and the name of a feature, ``logits``, or the batch's entry. ``"detached.stage2"`` is the student's too, with no
        gradient through it: what a student teaches itself by. An argument named ``labels`` needs no place.
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
            raise ValueError(f"A place must be {PLACES}; got {place!r} for {name_of(loss)}.")
    return _match(loss, places, hyper_parameters)


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("name",))
@dataclass(frozen=True)
class Computed:
    """A value that stands among the student's features already. Made by `computed`."""

    name: str

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
        del teacher, batch
        value: Array = _checks.feature("student", student, self.name)
        return value

    @property
    def places(self) -> tuple[str, ...]:
        """The one that it reads. What its connector read to compute it, the connector knows."""
        return (f"student.{self.name}",)


def computed(name: str) -> Computed:
    """A term that a connector has worked out already: the student's feature `name`, of shape [batch].

    Example:
      >>> import jax.numpy as jnp
      >>> term = computed("crd")
      >>> outputs = Outputs(jnp.zeros((2, 3)), {"crd": jnp.array([1.0, 2.0])})
      >>> term(outputs, None, {}).tolist()
      [1.0, 2.0]
    """
    return Computed(name)


def _match(loss: Callable, places: tuple[str, ...], hyper_parameters: Mapping[str, Any]) -> Match:
    _checks.function("loss", loss, "loss(student, teacher) -> [batch]")
    leaves, settings, named_places = sort_out(loss, hyper_parameters)
    match = Match(loss, places, tuple(sorted(named_places.items())), leaves, tuple(sorted(settings.items())))
    fill_all_arguments(loss, places, hyper_parameters)
    ask_the_loss(loss, len(places), leaves, settings, named_places)
    return match
