"""A network and a peer that learn from each other from the start: online distillation, of which one network is kept."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from kdjax._types import Apply, Batch, TrainState
from kdjax.training import init_state, make_mutual_step

PEER = "peer/"  # before the name of what is the peer's


def check_peer(recipe: Any, peer: Any) -> None:
    """A ValueError where the two recipes cannot be trained in one step."""
    if not isinstance(peer, type(recipe)):
        raise ValueError(f"peer must be a Recipe or None; got {peer!r:.99}.")
    for name in ("epochs", "batch_size"):
        its, own = getattr(peer, name), getattr(recipe, name)
        if its != own:
            raise ValueError(f"peer must have the {name} of the network beside it, {own}; got {its}.")
    for of, one in (("peer", peer), ("recipe", recipe)):
        if one.connectors is not None:
            raise ValueError(
                f"{of} must have no connectors where two networks learn from each other; got {sorted(one.connectors)}."
            )
    if peer.peer is not None:
        raise ValueError("peer must have no peer of its own.")


def begun_beside(
    init: Callable[..., Any], optimizer: optax.GradientTransformation, rng: Any, inputs: Any
) -> TrainState:
    """The peer before the first update: where `compare` begins a teacher of the same seed."""
    return init_state(init(jax.random.fold_in(rng, 0), inputs), optimizer, jax.random.fold_in(rng, 1))


def make_step_beside(applies: Sequence[Apply], optimizers: Sequence[Any], ignore_label: int | None) -> Any:
    """`make_mutual_step`, with the first network's metrics by their own names and the other's as ``"peer/NAME"``."""
    step = make_mutual_step(applies, optimizers, ignore_label=ignore_label)

    def beside(states: Any, teacher: None, objectives: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        states, metrics = step(states, teacher, objectives, batch)
        named = {}
        for name, value in metrics.items():
            whose, _, own = name.partition("/")
            if own:
                named[own if whose == "0" else f"{PEER}{own}"] = value
        return states, named

    return beside
