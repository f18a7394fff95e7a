"""kdjax's three steps: `make_train_step` under `jit_step`, one step a call."""

import jax
import numpy as np
from _cases import IMAGE, PAIRS, make, network
from _work import STUDENT, TEACHER, Batches, Step

from experiments._networks import make_model


def initial_params(name: str) -> dict:
    """Plain NumPy arrays, from which both sides start."""
    init, _ = network(make_model(name))
    seed = {TEACHER: 0, STUDENT: 1}[name]
    return jax.tree.map(np.asarray, init(jax.random.key(seed), IMAGE).params)


def steps(params: dict[str, dict], batches: Batches) -> dict[str, Step]:
    """The three pieces of work by name. The arrays lie on the device before the clock runs."""
    runners = {}
    for work, pair in PAIRS.items():
        networks = [None if name is None else make_model(name) for name in pair]
        given = tuple(None if name is None else params[name] for name in pair)
        runners[work] = make(*networks, batches, params=given).runner()
    return runners
