"""Training on views: both networks see the same changed inputs, drawn anew at every step."""

import zlib
from collections.abc import Callable

import jax
from jaxtyping import PRNGKeyArray

from kdjax._types import Batch, TrainState, Weights
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._step import Metrics, TrainStep

CACHED = ("teacher", "top_values", "top_indices")
"""The entries of a batch that `cache_teacher` makes: what a teacher said of the inputs as they are."""
# Away from the key of the step itself, ``fold_in(rng, step)``.
_OF_VIEWS = zlib.crc32(b"views")


def augmented(step: TrainStep, augment: Callable[[PRNGKeyArray, Batch], Batch]) -> TrainStep:
    """Turns a step into one that changes the batch first: teacher and student then see the same view.

    The key is ``fold_in(fold_in(state.rng, views), state.step)``: it moves with the step and stands in the state, so that a
    resumed run sees the views that an unbroken one would.

    Args:
      step: from `make_train_step`; its teacher is run on the changed inputs.
      augment: ``augment(key, batch) -> batch``, a pure function, such as `kdjax.data.make_views` builds.

    Returns:
      A step like the one given, to be compiled, sharded and scanned in the same ways. A batch split over devices is changed
      part by part, all parts with the same key: each example's noise must come from its own index, as `make_views` does it.

    Raises:
      ValueError: later, if the batch holds a teacher's cached outputs, which are of other inputs. Where they are of the
        same views, the step is to be made by `kdjax.caching.on_views`.

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

    def on_views(
        state: TrainState, teacher: Weights | None, objective: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if stale := [name for name in CACHED if name in batch]:
            raise ValueError(
                f"batch must not hold a teacher's cached outputs where the inputs are augmented: they are of other views; "
                f"got {', '.join(stale)}. Run the teacher in the step, or cache epochs of views and train on those, by "
                "kdjax.caching."
            )
        key = jax.random.fold_in(jax.random.fold_in(state.rng, _OF_VIEWS), state.step)
        return step(state, teacher, objective, augment(key, batch))

    return on_views
