"""Small trainings of each kind, 200 steps long, that save on the way and go on from whatever their folder holds."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import phased

from kdjax import cross_entropy, init_state, losses, make_train_step, on_logits, weighted_sum
from kdjax._trees import digest_of_tree
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.data import open_stream
from kdjax.training import jit_step, make_mutual_step, sweeps
from kdjax.training.phases import Phase, bounds, enter, make_planned_step, objectives_of, phase_at, plan, state_like

STEPS = 200
BATCHES = 16  # different ones; they come again and again
LABELS = weighted_sum(labels=(1.0, cross_entropy))
SOFT = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(losses.soft_target_kl, temperature=4.0)))


class KilledError(Exception):
    """The process is no more; what it had in memory is lost."""


@dataclass(frozen=True)
class Way:
    """Attributes:
    start: the first state.
    step: from a state and a batch to the next state.
    like: what a state saved after so many steps looks like.
    batches: opens the batches from that step on.
    """

    start: Callable[[], Any]
    step: Callable[[Any, Any], Any]
    like: Callable[[int], Any]
    batches: Callable[[int], Any]


def optimizer() -> optax.GradientTransformation:
    return optax.adam(1e-2)


def first(seed: int = 0):
    return init_state(phased.weights(seed), optimizer(), jax.random.key(5 + seed))


@functools.cache
def some_batches():
    return [phased.batch(number) for number in range(BATCHES)]


@contextlib.contextmanager
def in_memory(start: int) -> Iterator[Iterator[Any]]:
    yield (some_batches()[number % BATCHES] for number in itertools.count(start))


def streamed(start: int):
    rows = [jax.tree.map(lambda array, n=n: array[n], one) for one in some_batches() for n in range(8)]
    return open_stream(rows, 8, seed=3, start=start)


def way(step, state, teacher, objective, batches=in_memory) -> Way:
    compiled = jit_step(step)
    return Way(state, lambda own, batch: compiled(own, teacher, objective, batch)[0], lambda _: state(), batches)


def offline(batches=in_memory) -> Way:
    step = make_train_step(phased.network, phased.network, optimizer())
    return way(step, first, phased.weights(1), SOFT, batches)


def online() -> Way:
    step = make_mutual_step([phased.network] * 2, [optimizer()] * 2)
    return way(step, lambda: (first(0), first(1)), None, (SOFT, LABELS))


def swept() -> Way:
    step = sweeps.make_sweep_step(make_train_step(phased.network, None, optimizer()), phased.network)
    objectives = sweeps.stack([SOFT, weighted_sum(labels=(0.9, cross_entropy), soft=(0.1, SOFT.terms["soft"]))])
    return way(step, lambda: sweeps.stack([first(0), first(2)]), phased.weights(1), objectives)


def in_phases() -> Way:
    phases = plan(Phase("soft", 90, SOFT, optimizer()), Phase("labels", STEPS - 90, LABELS, optax.sgd(0.1)))
    assert bounds(phases)[-1] == STEPS
    step = jit_step(make_planned_step(phases, lambda p: make_train_step(phased.network, phased.network, p.optimizer)))

    def start():
        return phased.start(phases)

    def one(state, batch):
        index = phase_at(phases, int(state.state.step))
        state = state if state.phase == index else enter(phases, index, state)
        return step(state, phased.weights(1), objectives_of(phases), batch)[0]

    return Way(start, one, lambda number: state_like(phases, number, start()), in_memory)


WAYS = {
    "offline": offline,
    "online, two students": online,
    "in phases": in_phases,
    "a sweep of two students": swept,
    "from a stream": functools.partial(offline, streamed),
}


def steps_of(state) -> int:
    return int(np.ravel(jax.tree.leaves(getattr(state, "state", state))[0])[0])


def go_on(way: Way, folder: Path, *, every: int, killed_at: int | None = None):
    """Trains from the folder's last state to the end, saving every so many steps; or until it is killed before a step."""
    with open_run(folder) as run:
        found = restore_state(run, way.like)
        state = way.start() if found is None else found[0]
        begin = 0 if found is None else found[1]["step"]
        with way.batches(begin) as batches:
            for number in range(begin, STEPS):
                if number == killed_at:
                    raise KilledError
                state = way.step(state, next(batches))
                if (number + 1) % every == 0:
                    save_state(run, number + 1, state, {"step": number + 1})
    return digest_of_tree(state)
