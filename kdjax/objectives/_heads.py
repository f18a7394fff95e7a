"""Terms from hidden states and heads whose mean is taken as one sum, so that the gradient is made while logits are there."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Batch, Outputs
from kdjax.losses import linear_weighted_sum
from kdjax.losses._token_sums import compares
from kdjax.objectives._counted import MASK, Unmade
from kdjax.objectives._hyper_parameters import ask_the_loss, fill_all_arguments, sort_out
from kdjax.objectives._places import PLACES, is_place, name_of, read_batch, read_place, wants_labels


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("numbers",),
    meta_fields=("loss", "arrays", "named_places", "settings", "chunk"),
)
@dataclass(frozen=True)
class FromHeads:
    """A loss on logits, and where the hidden states and heads stand that they are products of. Made by `on_heads`."""

    loss: Callable[..., Float[Array, " tokens"]]
    arrays: tuple[str, ...]
    named_places: tuple[tuple[str, str], ...]
    numbers: Mapping[str, Any]
    settings: tuple[tuple[str, Any], ...]
    chunk: int | None

    @property
    def places(self) -> tuple[str, ...]:
        """All that the term reads."""
        named = dict(self.named_places)
        labels = ("batch.labels",) if wants_labels(self.loss, len(self.arrays) // 2, named) else ()
        return (*self.arrays, *named.values(), *labels)

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Unmade:
        read = partial(read_place, self.loss, student, teacher, batch)
        arrays = [read(place) for place in self.arrays]
        keywords = dict(self.numbers) | dict(self.settings) | {name: read(place) for name, place in self.named_places}
        labels = None
        if wants_labels(self.loss, len(self.arrays) // 2, keywords):
            labels = read_batch(batch, "labels")

        def weighted_sum(weights: Array) -> Array:
            # A token that does not count may have a label that is none.
            known = labels if labels is None else jnp.where(weights == 0, 0, labels)
            weights = weights.astype(jnp.promote_types(jnp.result_type(arrays[0]), jnp.float32))
            return linear_weighted_sum(
                self.loss, weights, *arrays, labels=known, chunk=self.chunk, where=batch.get(MASK), **keywords
            )

        return Unmade(tuple(jnp.shape(arrays[0])[:-1]), weighted_sum)


def on_heads(
    loss: Callable[..., Float[Array, " tokens"]], *places: str, chunk: int | None = None, **hyper_parameters: Any
) -> FromHeads:
    """Lifts any loss on logits to a term on hidden states and heads, over a vocabulary too large for its logits.

    The step knows each token's weight before it takes the gradient, and so the gradient is made going forward, a chunk of
    tokens at a time, by `kdjax.losses.linear_weighted_sum`: four products where `linear_soft_target_kl` in `on_outputs`
    has six.

    Args:
      loss: as of `kdjax.losses.linear_weighted_sum`: on logits, one number a token that depends on that token alone.
      *places: of hidden states and head, the student's and then, if `loss` compares with a teacher, the teacher's, such as
        ``"student.hidden", "student.head", "teacher.hidden", "teacher.head"``. Labels need no place.
      chunk: tokens at a time; None: 512.
      **hyper_parameters: as in `on_logits`; or a place.

    Returns:
      A term. It has no numbers a token of its own, only their weighted sum: it is for an objective, not for a measure.

    Raises:
      ValueError: as in `on_logits`, or if there are not two or four places, `chunk` is not a whole number above 0, or `loss`
        takes labels by name alone.

    Example:
      >>> from kdjax.losses import skewed_kl
      >>> heads = "student.hidden", "student.head", "teacher.hidden", "teacher.head"
      >>> on_heads(skewed_kl, *heads, alpha=0.1).places[1]
      'student.head'

    Note:
      It is for tokens on one device, and for `pmap` and `shard_map`. Where tokens are sharded over devices under `jax.jit`,
      or a head is split over them, use `on_outputs` with `linear_soft_target_kl` and its kin.
    """
    for place in places:
        if not is_place(place):
            raise ValueError(f"A place must be {PLACES}; got {place!r} for {name_of(loss)}.")
    if len(places) not in (2, 4):
        raise ValueError(
            "on_heads needs two places, a network's hidden states and its head, or four, the student's and the teacher's; "
            f"got {len(places)} for {name_of(loss)}: {', '.join(places)}."
        )
    if chunk is not None:
        _checks.whole("chunk", chunk, 1)
    if compares(loss):
        raise ValueError(f"loss must give each token a number of its own; got {name_of(loss)}, which compares tokens.")
    leaves, settings, named_places = sort_out(loss, hyper_parameters)
    fill_all_arguments(loss, places[::2], hyper_parameters)
    asked = wants_labels(loss, len(places) // 2, hyper_parameters)
    if asked and inspect.signature(loss).parameters["labels"].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ValueError(
            f"labels of {name_of(loss)} must be an argument by position, after the logits; got one that is keyword-only. "
            "lambda logits, labels: loss(logits, labels=labels) makes it so."
        )
    ask_the_loss(loss, len(places) // 2, leaves, settings, named_places)
    return FromHeads(loss, places, tuple(sorted(named_places.items())), leaves, tuple(sorted(settings.items())), chunk)
