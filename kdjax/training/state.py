"""What a training carries from step to step: how it begins, and the weights in it to evaluate and to keep."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import TrainState, Tree, Weights
from kdjax.connectors._beside import evaluated, student_of


def init_state(weights: Weights, optimizer: optax.GradientTransformation, rng: PRNGKeyArray) -> TrainState:
    """The state before the first step.

    Args:
      weights: the student's, and a connector's beside them.
      optimizer: any optax transformation. It sees ``weights.params`` and nothing else.
      rng: a key. Step number n draws from ``fold_in(rng, n)``, so a resumed run draws what an unbroken one would.

    Raises:
      ValueError: if `weights` are none, or `optimizer` is no optax transformation.
    """
    if not isinstance(weights, Weights):
        raise ValueError(f"weights must be Weights(params, model_state); got a {type(weights).__name__}.")
    _checks.optimizer("optimizer", optimizer)
    kind = getattr(rng, "dtype", None)
    if kind is None or not (jnp.issubdtype(kind, jax.dtypes.prng_key) or kind == jnp.uint32):  # a raw key
        raise ValueError(f"rng must be a key, as of jax.random.key(0); got {rng!r:.99}.")
    # Copies: a compiled step takes its state's memory, and these weights may be another student's, or the teacher's.
    copies = partial(jax.tree.map, lambda leaf: jnp.array(leaf, copy=True))
    params, model_state, rng = copies((*weights, rng))
    # An optimizer's own state may begin as the params, or as one array twice.
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, copies(optimizer.init(params)), rng)


def weights_of(state: Any) -> Any:
    """The weights to evaluate and to keep, out of any step's state: of the student alone, without its connectors.

    Args:
      state: a `TrainState`; a pair (state, average), whose average it is; one in a phase; a tuple of states, for a tuple
        of weights.

    Raises:
      ValueError: if `state` is none of them.

    Note:
      An optimizer such as ``optax.contrib.schedule_free_adamw`` trains at other params than it is evaluated at; these are
      the latter, of those that it moves. ``optax.contrib.sam`` is at an adversarial point after every other step, unless it
      is told ``opaque_mode=True``; these are the params that it will come back to.
    """
    if isinstance(state, TrainState):
        return student_of(state) if is_beside(state.params) else evaluated(state)
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Weights):
        return state[1]
    if hasattr(state, "state"):
        return weights_of(state.state)
    if isinstance(state, tuple) and state:
        return tuple(map(weights_of, state))
    raise ValueError(f"state must be a TrainState, a pair (state, average) or a tuple of states; got {type(state)}.")


def states_in(state: Any) -> tuple[TrainState, ...]:
    """A step's state as one `TrainState` a network: one, or those of several that learn from each other.

    Raises:
      ValueError: if it is neither.
    """
    states = (state,) if isinstance(state, TrainState) else state
    if not isinstance(states, tuple) or not all(isinstance(one, TrainState) for one in states):
        raise ValueError(f"state must be a TrainState, or a tuple of them; got {type(state).__name__}.")
    return states


def is_beside(tree: Tree) -> bool:
    """Whether `init_beside` made it."""
    return isinstance(tree, Mapping) and {*tree} == {"student", "connectors"}
