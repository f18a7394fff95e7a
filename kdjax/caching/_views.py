"""A teacher's outputs for augmented inputs, computed once for some epochs of views, which training then goes through again.

A view is a pure function of the state's key, the number of the update and the example, and the order of an epoch one of
(seed, epoch). Outputs that were kept for a batch are therefore those that the teacher would give in the step: also where
examples are mixed with their neighbours.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from kdjax import _checks, _trees
from kdjax._apply import run
from kdjax._types import Apply, Batch, Weights
from kdjax.batches import epoch_indices, take, view_key
from kdjax.caching import _folder
from kdjax.caching._outputs import fill, in_memory, layout_of
from kdjax.caching._wish import Wish, checked, entries, wanted
from kdjax.data.mixing import Augment
from kdjax.training.loop import examples_of


def cache_views(
    apply: Apply,
    teacher: Weights,
    augment: Augment,
    arrays: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    rng: PRNGKeyArray,
    epochs: int,
    features: Sequence[str] = (),
    logits: bool = True,
    top_k: int | None = None,
    draws: int | None = None,
    dtype: str = "float32",
    path: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Runs the teacher over the views of some epochs, batch by batch in the order of training, and keeps what it says.

    Batch number n = e · steps + s are the examples ``epoch_indices(examples, batch_size, seed=seed, epoch=e)[s]``, changed
    by ``augment(view_key(rng, n), batch)``: what `kdjax.training.augmented` makes of it in the n-th update.

    Args:
      apply: the teacher's `Apply`.
      teacher: its weights.
      augment: ``augment(key, batch) -> batch``, a pure function, such as `kdjax.data.make_views` builds.
      arrays: the training data, by name [examples, …]: ``"inputs"``, and what else `augment` reads.
      batch_size: examples a batch, as in training.
      seed: of the order.
      rng: the key from which the views are drawn: ``state.rng`` of the state that will be trained, for the views that it
        would see without a cache. A state of another key sees the same ones: the batches carry their views' key.
      epochs: how many epochs of views. Training sees no others: few epochs of views are a smaller data set.
      features: as in `kdjax.caching.cache_teacher`.
      logits: likewise.
      top_k: likewise.
      draws: likewise; by `seed`.
      dtype: likewise.
      path: likewise; a folder is of these views alone, and of this version of JAX, which draws them.

    Returns:
      ``{"indices": …, "view": …, "teacher": Outputs}``, arrays [epochs, steps, batch, …]: which examples make the batch,
      the data of their views' key, and what the teacher says of them; with `top_k` or `draws`, what `cache_teacher` gives in
      the teacher's place. `view_batch` makes batches of it.

    Raises:
      ValueError: if the teacher has no such feature, or an argument is out of its range.
      StaleError: a ValueError that says what differs, if `path` holds the outputs of something else. The folder stays.
      FloatingPointError: if the teacher gives NaN or an infinity, or a number that `dtype` cannot hold.

    Example:
      Three epochs of training on two epochs of views; the teacher is run for 4 batches, not for 6.

      >>> import optax
      >>> from kdjax import Outputs, init_state, make_train_step, on_logits, weighted_sum
      >>> from kdjax.data import horizontal_flip, make_views, mixup
      >>> from kdjax.losses import soft_target_kl
      >>> from kdjax.training import augmented, make_epoch
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs.reshape(len(inputs), -1) @ params, {}), model_state
      >>> train = {"inputs": jax.random.normal(jax.random.key(0), (8, 2, 2, 1)), "labels": jnp.arange(8) % 3}
      >>> augment = make_views(horizontal_flip, mix=mixup)
      >>> teacher = Weights(jnp.ones((4, 3)), {})
      >>> state = init_state(Weights(jnp.zeros((4, 3)), {}), optax.sgd(0.1), jax.random.key(1))
      >>> kept = cache_views(network, teacher, augment, train, batch_size=4, seed=0, rng=state.rng, epochs=2)
      >>> kept["teacher"].logits.shape
      (2, 2, 4, 3)
      >>> epoch = make_epoch(augmented(make_train_step(network, None, optax.sgd(0.1)), augment))
      >>> objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl)))
      >>> for number in range(3):
      ...     batches = (view_batch(kept, train, 2 * number + step) for step in range(2))
      ...     state, means = epoch(state, None, objective, batches)

    Note:
      Space: epochs · examples · (classes + features) numbers. `kdjax.caching.choose_place` says where there is room.
    """
    wish = checked(Wish(tuple(features), logits, top_k, draws, seed, dtype))
    _checks.whole("epochs", epochs, 1)
    order = _order(examples_of(arrays), batch_size, seed, epochs)
    keys = jax.lax.map(partial(view_key, rng), jnp.arange(order.size // batch_size))

    def said(teacher: Weights, key: jax.Array, batch: Batch, rows: jax.Array) -> dict[str, jax.Array]:
        seen = augment(key, batch)
        outputs, _ = run(apply, *teacher, seen["inputs"], train=False)
        return wanted(outputs, wish, rows)

    some = (teacher, keys[0], _chosen(arrays, order[0, 0]), jnp.arange(batch_size))
    layout = layout_of(jax.eval_shape(said, *some), order.size)
    compiled = jax.jit(said)

    def parts() -> Iterator[tuple[int, dict[str, jax.Array]]]:
        for number, chosen in enumerate(order.reshape(-1, batch_size)):
            rows = number * batch_size + jnp.arange(batch_size)
            yield number * batch_size, compiled(teacher, keys[number], _chosen(arrays, chosen), rows)

    def write(kept: Mapping[str, np.ndarray]) -> None:
        fill(kept, parts(), rows_are="views")

    if path is None:
        kept: Mapping[str, Any] = in_memory(layout, write)
    else:
        # Under another JAX the same keys may draw other views.
        views = {"seed": seed, "epochs": epochs, "batch_size": batch_size, "jax": jax.__version__}
        views |= {"rng": np.asarray(jax.random.key_data(rng)).tolist()}
        identity = _folder.identity(teacher, _digest(arrays), said, some, layout) | {"views": views}
        kept = _folder.in_folder(Path(path).absolute(), identity, layout, write)
    # One key a batch, on each of its rows, so that a batch can be split over devices.
    words = np.asarray(jax.random.key_data(keys)).reshape(*order.shape[:2], 1, -1)
    whole = {"indices": order, "view": np.repeat(words, batch_size, axis=2)}
    whole |= entries({name: one.reshape(*order.shape, *one.shape[1:]) for name, one in kept.items()})
    return jax.device_put(whole) if path is None else whole


def view_batch(kept: Mapping[str, Any], arrays: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Batch number `number` of a training on the views of `cache_views`: after their last epoch comes their first again.

    Args:
      kept: from `cache_views`.
      arrays: the training data that it was given.
      number: how many updates there were before; after a resumption, ``int(state.step)``.

    Returns:
      The examples as they are, not augmented yet, their places in the data ``"indices"``, the key of their ``"view"``,
      and the teacher's outputs for it. For a step that is `kdjax.training.augmented`.

    Raises:
      ValueError: if number is negative.
    """
    if number < 0:
        raise ValueError(f"number must be 0 or greater; got {number}.")
    epochs, steps, _ = kept["indices"].shape
    epoch, step = divmod(number, steps)
    rows = jax.tree.map(lambda array: array[epoch % epochs, step], dict(kept))
    return take(arrays, rows["indices"]) | rows


def _order(examples: int, batch_size: int, seed: int, epochs: int) -> np.ndarray:
    """Which example is where: int32 [epochs, steps, batch]."""
    return np.stack([epoch_indices(examples, batch_size, seed=seed, epoch=epoch) for epoch in range(epochs)])


def _chosen(arrays: Mapping[str, Any], indices: np.ndarray) -> dict[str, Any]:
    return take(arrays, indices) | {"indices": jnp.asarray(indices)}


def _digest(arrays: Mapping[str, Any]) -> str:
    digests = {name: _folder.digest_of_rows(array) for name, array in _trees.by_path(dict(arrays)).items()}
    return blake2b(repr(sorted(digests.items())).encode(), digest_size=16).hexdigest()
