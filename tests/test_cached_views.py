"""Training on cached views is training with the teacher on those views, to the last bit; and other views are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from kdjax import Outputs, Weights, make_train_step
from kdjax.batches import epoch_indices, take
from kdjax.caching import StaleError, cache_views, features_of, on_views, view_batch
from kdjax.data import cutmix, horizontal_flip, make_views, mixup, random_crop, view_key
from kdjax.training import jit_step

_, APPLY = networks.teacher()
TEACHER = networks.teacher_weights()
TRAIN = networks.batch(size=27, seed=3)
SEED, SIZE, EPOCHS, STEPS = 5, 8, 2, 3  # three examples sit each epoch out
VIEWS = (partial(random_crop, padding=1), horizontal_flip)
ALONE, MIXED = make_views(*VIEWS), make_views(*VIEWS, mix=mixup)
KEPT = {"batch_size": SIZE, "seed": SEED, "epochs": EPOCHS}


def cached(augment, **changes):
    return cache_views(APPLY, TEACHER, augment, TRAIN, **(KEPT | changes))


def trained(step, teacher, batches):
    """The params after those batches."""
    state = networks.fresh_state()
    for batch in batches:
        state, _ = step(state, teacher, networks.objective(), batch)
    return jax.device_get(state.params)


def step_for(teacher_apply):
    step = make_train_step(networks.student()[1], teacher_apply, networks.optimizer())
    return jit_step(on_views(step, MIXED, seed=SEED))


def online(epochs):
    """The batches of a training that runs its teacher, written without the cache."""
    for epoch in range(epochs):
        for chosen in epoch_indices(27, SIZE, seed=SEED, epoch=epoch % EPOCHS):
            where = {"indices": chosen, "epoch": jnp.full(SIZE, epoch % EPOCHS)}
            yield take(TRAIN, chosen) | where


def same(first, second):
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def test_training_on_cached_views_is_training_with_the_teacher_to_the_last_bit(tmp_path):
    """Mixed with their neighbours: the order of the batches counts too."""
    expected = trained(step_for(APPLY), TEACHER, online(3))
    step, features = step_for(None), features_of(networks.objective())
    for path in (None, tmp_path / "views"):
        kept = cached(MIXED, features=features, path=path)
        assert kept["teacher"].logits.shape == (EPOCHS, STEPS, SIZE, 10)
        assert isinstance(kept["teacher"].logits, np.memmap if path else jax.Array)
        # Two epochs of views, and the first again.
        assert same(trained(step, None, (view_batch(kept, TRAIN, number) for number in range(3 * STEPS))), expected)
    # Control: other views of the same examples in the same order are another training.
    kept["teacher"] = jax.tree.map(lambda array: array[::-1], kept["teacher"])
    assert not same(trained(step, None, (view_batch(kept, TRAIN, number) for number in range(3 * STEPS))), expected)


def test_what_is_kept_is_said_of_the_views_and_of_no_others():
    kept = cached(MIXED, dtype="float16")
    assert kept["teacher"].features == {}
    assert kept["epoch"].tolist() == np.repeat([0, 1], STEPS * SIZE).reshape(EPOCHS, STEPS, SIZE).tolist()
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(kept["indices"][epoch], epoch_indices(27, SIZE, seed=SEED, epoch=epoch))
        for step, chosen in enumerate(kept["indices"][epoch]):
            seen = MIXED(view_key(SEED, epoch), take(TRAIN, chosen) | {"indices": chosen})["inputs"]
            said = APPLY(*TEACHER, seen, train=False)[0].logits
            np.testing.assert_allclose(kept["teacher"].logits[epoch, step], said, rtol=2e-3, atol=2e-3)
    top = cached(ALONE, top_k=3)
    assert top["top_indices"].shape == top["top_values"].shape == (EPOCHS, STEPS, SIZE, 3)


def test_other_views_another_teacher_or_other_data_are_refused(tmp_path):
    path = tmp_path / "views"
    cached(MIXED, path=path)
    np.testing.assert_array_equal(cached(MIXED, path=path)["teacher"].logits, cached(MIXED)["teacher"].logits)

    def shifted_by(offset):
        def augment(key, batch):
            return {**batch, "inputs": batch["inputs"] + offset}

        return augment

    other_data = TRAIN | {"inputs": TRAIN["inputs"].at[0, 0, 0, 0].add(1e-3)}
    for wanted, message in [
        (lambda: cached(MIXED, path=path, seed=6), "the views are others"),
        (lambda: cached(MIXED, path=path, epochs=3), "the views are others.*, other arrays"),
        (lambda: cached(MIXED, path=path, batch_size=9), "the views are others"),
        (lambda: cached(ALONE, path=path), "the teacher's program is another"),
        (lambda: cached(make_views(*VIEWS, mix=cutmix), path=path), "the teacher's program is another"),
        (lambda: cache_views(APPLY, TEACHER, MIXED, other_data, **KEPT, path=path), "the inputs are others"),
        (
            lambda: cache_views(APPLY, networks.teacher_weights(8), MIXED, TRAIN, **KEPT, path=path),
            "weights are others",
        ),
    ]:
        with pytest.raises(StaleError, match=message):
            wanted()
    # An array that a view brings along has no place in the program's text, and counts too.
    cached(shifted_by(np.full((1, 8, 8, 1), 0.5, np.float32)), path=tmp_path / "shifted")
    with pytest.raises(StaleError, match="the teacher's program is another"):
        cached(shifted_by(np.full((1, 8, 8, 1), 0.7, np.float32)), path=tmp_path / "shifted")


def test_what_is_wrong_is_said(tmp_path):
    for changes, message in [
        ({"epochs": 0}, "epochs must be a whole number of 1 or more; got 0"),
        ({"batch_size": 28}, "batch_size must lie between 1 and the 27 examples"),
        ({"features": ["stage9"]}, r"features must be among the teacher's, .*; got 'stage9'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16; got 'int8'"),
    ]:
        with pytest.raises(ValueError, match=message):
            cached(ALONE, **changes)
    broken = Weights(jax.tree.map(lambda leaf: leaf * jnp.nan, TEACHER.params), TEACHER.model_state)
    with pytest.raises(FloatingPointError, match=r"logits are not all finite as float32, for views 0 to 7"):
        cache_views(APPLY, broken, ALONE, TRAIN, **KEPT, path=tmp_path / "views")
    assert list(tmp_path.iterdir()) == []
    kept = {"indices": np.zeros((1, 1, 2), np.int32), "teacher": Outputs(np.zeros((1, 1, 2, 3)), {})}
    with pytest.raises(ValueError, match="number must be 0 or greater; got -1"):
        view_batch(kept, TRAIN, -1)
    step = on_views(make_train_step(networks.student()[1], None, networks.optimizer()), ALONE, seed=SEED)
    with pytest.raises(ValueError, match=r'batch must have "epoch", as view_batch adds it; it has \[\'indices\''):
        step(networks.fresh_state(), None, networks.objective(), TRAIN | {"indices": np.arange(27)})
