"""What a mask leaves out of a batch changes no number of a train step, whichever loss it minimises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from trials import APPLY, INIT, TRIALS, arrays, teacher

from kdjax import connectors, init_state, make_train_step, weighted_sum
from kdjax.batches import take
from kdjax.testing import Measured
from kdjax.testing._measured import OF_GRADIENTS, max_or_nan, relative_error
from kdjax.training import data_mesh, jit_step, shard_map_step

# Its update is 0, and its state the gradient itself.
GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradients, state, params=None: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)
COUNT, AMONG = 12, 16
KEPT = np.arange(AMONG) % 4 != 1  # on each of four devices three count


def left_out_by_the_step(name, rubbish=np.nan):
    """By way of running the step: metrics and gradient of digits among others that do not count, against theirs alone.

    The others' inputs are `rubbish` and their labels no class. A term whose connector needs all examples must refuse.
    """
    trial = TRIALS[name]
    train, test = arrays()
    whole = {"margin": test["margin"]} if "margin" in str(trial.term) else {}
    alone = take(train, np.arange(COUNT)) | whole
    among = {key: _among(value, rubbish if key == "inputs" else 0) for key, value in alone.items() if key not in whole}
    among |= {"labels": jnp.where(KEPT, among["labels"], -7), "mask": KEPT} | whole
    key = jax.random.key(5)
    own = INIT(key, train["inputs"][:1])
    weights = connectors.init_beside(trial.beside, key, APPLY, own, APPLY, teacher(), train["inputs"][:1])
    objective = weighted_sum(own=(1.0, trial.term))

    def ran(batch, **settings):
        step = make_train_step(APPLY, APPLY, GRADIENT, connectors=trial.beside, **settings)
        run = shard_map_step(step, data_mesh()) if settings else jit_step(step)
        return run(init_state(weights, GRADIENT, key), teacher(), objective, batch)

    try:
        found = {"one device": ran(among)}
    except ValueError as error:
        if 'no "mask" beside the connectors' in str(error):
            return {}
        raise
    if not whole:  # an array of no example cannot be split
        found["four devices"] = ran(among, axis_name="data")
    state, metrics = ran(alone)
    return {way: Measured(_error(answer, state, metrics), 1e-4) for way, answer in found.items()}


def _among(array, rubbish):
    longer = jnp.full((AMONG, *array.shape[1:]), rubbish, array.dtype)
    return longer.at[np.flatnonzero(KEPT)].set(array)


def _error(answer, state, metrics):
    own_state, own_metrics = answer
    values = [relative_error(own_metrics[name], metrics[name]) for name in metrics]
    # All of the gradient as one: of a loss that knows no shift, a bias's own is rounding alone.
    gradient, wanted = (ravel_pytree(one.opt_state)[0] for one in (own_state, state))
    return max_or_nan([*values, relative_error(gradient, wanted, OF_GRADIENTS)])
