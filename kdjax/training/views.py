"""Training on views: both networks see the same changed inputs, drawn anew at every step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Batch, TrainState
from kdjax.batches import view_key

CACHED = ("teacher", "top_values", "top_indices", "sampled_values", "sampled_indices")
"""The entries of a batch that hold what a teacher said of it."""
VIEW = "view"
"""The entry of a batch that says whose views they are: the data of their `view_key`, uint32 [batch, words]."""


def augmented(step: Callable[..., Any], augment: Callable[[PRNGKeyArray, Batch], Batch]) -> Callable[..., Any]:
    """Turns a step into one that changes the batch first: teacher and student then see the same view.

    The key is ``view_key(state.rng, state.step)``: it changes with the step and is part of the state, so that a resumed run
    sees the views that an unbroken one would. A batch of `kdjax.caching.view_batch` carries the key of its views, and the
    teacher's outputs for those: the student sees them whatever its own key, and switching that cache on changes no view.

    Args:
      step: any of this package's steps; its teacher is run on the changed inputs.
      augment: ``augment(key, batch) -> batch``, a pure function, such as `kdjax.data.make_views` builds.

    Returns:
      A step like the one given, to be compiled, sharded and scanned in the same ways. A batch split over devices is changed
      part by part, all parts with the same key: each example's noise must come from its own index, as `make_views` does it.
      **Examples that are mixed** see their neighbour in the whole batch under `kdjax.training.jit_step`; under `jax.pmap`
      and `jax.shard_map` they see that in the device's part, and outputs that were kept are then of other views. Networks
      that learn together see the views of the first one's key.

    Raises:
      ValueError: later, if the batch holds a teacher's cached outputs and does not say of which views, or its ``"view"`` is
        no key of the state's kind, as far as their sizes tell: keys of rbg and unsafe_rbg look alike.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from kdjax import Outputs, Weights, init_state, make_train_step, on_logits, weighted_sum
      >>> from kdjax.losses import soft_target_kl
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {}), model_state
      >>> def noisy(key, batch):
      ...     return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, batch["inputs"].shape)}
      >>> step = augmented(make_train_step(network, network, optax.sgd(0.1)), noisy)
      >>> state = init_state(Weights(jnp.zeros((4, 3)), {}), optax.sgd(0.1), jax.random.key(0))
      >>> objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl)))
      >>> state, metrics = step(state, Weights(jnp.ones((4, 3)), {}), objective, {"inputs": jnp.ones((2, 4))})
      >>> int(state.step)
      1

    Note:
      Soft targets from a teacher that saw the plain image, for a student that sees a changed one, are the usual shortcut;
      the paper measures that they are worse than the same view for both. It also asks for patience: its students go on
      improving for thousands of epochs.

    Reference:
      Beyer et al., Knowledge distillation: A good teacher is patient and consistent, 2022, section 3.
      https://arxiv.org/abs/2106.05237
    """
    _checks.function("step", step, "step(state, teacher, objective, batch)")
    _checks.function("augment", augment, "augment(key, batch) -> batch")

    def on_views(state: Any, teacher: Any, objective: Any, batch: Batch) -> tuple[Any, Any]:
        taught = {name: batch[name] for name in CACHED if name in batch}
        if taught and VIEW not in batch:
            raise ValueError(
                f"batch must not hold a teacher's cached outputs where the inputs are augmented: they are of other views; "
                f"got {', '.join(taught)}. Run the teacher in the step, or cache epochs of views and train on those, by "
                "kdjax.caching.cache_views."
            )
        first = next(part for part in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(part))
        # Of students that train together, stacked, each has its own key and step; they see one batch.
        rng, number = (leaf if jnp.ndim(first.step) == 0 else leaf[0] for leaf in (first.rng, first.step))
        key = _key_of(batch[VIEW], rng) if VIEW in batch else view_key(rng, number)
        plain = {name: value for name, value in batch.items() if name not in (*taught, VIEW)}
        return step(state, teacher, objective, {**augment(key, plain), **taught})

    return on_views


def _key_of(data: Any, rng: PRNGKeyArray) -> PRNGKeyArray:
    """The key whose data each row of a batch holds, of the same kind as `rng`."""
    words = jax.random.key_data(rng)
    found = jnp.shape(data), getattr(data, "dtype", None)
    if len(found[0]) != 2 or found[0][1:] != words.shape or found[1] != words.dtype:
        raise ValueError(
            f'batch["view"] must be the data of the key of the views, {words.dtype} [batch, {words.size}], as '
            f"kdjax.caching.view_batch gives it; got {found[1]} {list(found[0])}."
        )
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return jnp.asarray(data[0])
    return jax.random.wrap_key_data(jnp.asarray(data[0]), impl=jax.random.key_impl(rng))


def _is_state(part: Any) -> bool:
    return isinstance(part, TrainState)
