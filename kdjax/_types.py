"""The few types that all layers share: NamedTuples of arrays, hence plain pytrees with nothing static to retrace on."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

Tree = Any  # a pytree of arrays; jax has no narrower static type for it
Batch = Mapping[str, Any]
AnyArray = jax.Array | np.ndarray
Number = float | int | np.number | jax.Array
Rng = PRNGKeyArray | None


class Shared(NamedTuple):
    """An array among a network's features that belongs to no example, such as the head that makes logits of hidden states.

    It is the same on all devices: no step gathers, masks or caches it. Terms read the array itself.

    Attributes:
      array: of any shape.
    """

    array: Array


class Outputs(NamedTuple):
    """What a network says of one batch.

    Attributes:
      logits: [batch, classes], or one row for each position, [batch, *positions, classes], as of tokens [batch, time] or of
        pixels [batch, height, width]; before any softmax. A regression's predictions stand here, too. None in a cache
        that kept features alone.
      features: by name. ``"stage1"`` … ``"stageN"`` are [batch, height, width, channels], ``"embedding"`` is [batch, dim];
        what belongs to no example is `Shared`. Under jit, what no term reads costs nothing, logits neither: XLA drops it.
    """

    logits: Float[Array, " batch *positions classes"] | Any
    features: Mapping[str, Array | Shared]


class Weights(NamedTuple):
    """A network's arrays. A teacher is one of these and nothing more.

    Attributes:
      params: what a gradient may move.
      model_state: what the forward pass itself moves, such as BatchNorm's running statistics; ``{}`` if nothing.
    """

    params: Tree
    model_state: Tree


class TrainState(NamedTuple):
    """All that training changes, and nothing else: neither functions nor the teacher.

    Attributes:
      step: int32 scalar, the number of steps made, each of one batch.
      params, model_state: the student's, as in `Weights`. A connector's parameters stand in ``params`` beside them.
      opt_state: optax's.
      rng: the key that each step folds its number into.
    """

    step: Array
    params: Tree
    model_state: Tree
    opt_state: optax.OptState
    rng: PRNGKeyArray


@runtime_checkable
class Apply(Protocol):
    """A network of any framework as one pure function. An ensemble of networks is one more of these."""

    def __call__(
        self,
        params: Tree,
        model_state: Tree,
        inputs: Tree,
        *,
        train: bool,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Outputs, Tree]:
        """Returns the outputs and the new model_state; `rng` is for dropout and the like."""
        ...


@runtime_checkable
class Term(Protocol):
    """One thing to be minimised: one number for each example, [batch], or for each position, [batch, *positions].

    Those of `kdjax.objectives` have ``places`` too: all that they read, such as ``"student.logits"``, ``"teacher.stage2"``
    and ``"batch.labels"``; what a plain function reads cannot be seen.
    """

    def __call__(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, /
    ) -> Float[Array, " batch *positions"]: ...
