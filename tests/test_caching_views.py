"""Training on cached views is training with the teacher on those views, to the last bit; and other views are refused."""

from functools import partial

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import CLASSES, fresh_state, optimizer, teacher, teacher_weights

from kdjax import Outputs, Weights, make_train_step
from kdjax.batches import epoch_indices, take, view_key
from kdjax.caching import StaleError, cache_teacher, cache_views, features_of, view_batch
from kdjax.data import cutmix, horizontal_flip, make_views, mixup, random_crop
from kdjax.training import augmented, jit_step, make_epoch

HEIGHT, WIDTH = 3, 2


def flat(apply):
    """A dense network that takes images."""

    def of_images(params, model_state, images, *, train, rng=None):
        return apply(params, model_state, images.reshape(len(images), -1), train=train, rng=rng)

    return of_images


APPLY, STUDENT = flat(teacher), flat(dense.student())
TEACHER = teacher_weights()
PLAIN = dense.batch(27, seed=3)
TRAIN = {"inputs": PLAIN["inputs"].reshape(27, HEIGHT, WIDTH, 1), "labels": PLAIN["labels"]}
SEED, SIZE, EPOCHS, STEPS = 5, 8, 2, 3  # three examples sit each epoch out
RNG = fresh_state().rng
VIEWS = (partial(random_crop, padding=1), horizontal_flip)
ALONE, MIXED = make_views(*VIEWS), make_views(*VIEWS, mix=mixup)
KEPT = {"batch_size": SIZE, "seed": SEED, "rng": RNG, "epochs": EPOCHS}
OBJECTIVE = dense.objective()


def cached(augment, **changes):
    return cache_views(APPLY, TEACHER, augment, TRAIN, **(KEPT | changes))


def trained(step, its, batches):
    """The params after those batches."""
    state = fresh_state()
    for batch in batches:
        state, _ = step(state, its, OBJECTIVE, batch)
    return jax.device_get(state.params)


def step_for(teacher_apply):
    return augmented(make_train_step(STUDENT, teacher_apply, optimizer()), MIXED)


def plain(number):
    """A batch of a training that runs its teacher, written without the cache."""
    epoch, step = divmod(number, STEPS)
    chosen = epoch_indices(27, SIZE, seed=SEED, epoch=epoch % EPOCHS)[step]
    return take(TRAIN, chosen) | {"indices": chosen}


def key_of(number, rng=RNG):
    """The data of a view's key, on each row of a batch."""
    return np.tile(jax.random.key_data(view_key(rng, number)), (SIZE, 1))


def same(first, second):
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def test_training_on_cached_views_is_training_with_the_teacher_to_the_last_bit(tmp_path, compiled_as_users_do):
    """Mixed with their neighbours: the order of the batches counts too."""
    # In the third epoch the views of the first are seen again.
    again = [plain(n) | {"view": key_of(n % (EPOCHS * STEPS))} for n in range(3 * STEPS)]
    expected = trained(jit_step(step_for(APPLY)), TEACHER, again)
    step, features = jit_step(step_for(None)), features_of(OBJECTIVE)
    for path in (None, tmp_path / "views"):
        kept = cached(MIXED, features=features, path=path)
        assert kept["teacher"].logits.shape == (EPOCHS, STEPS, SIZE, CLASSES)
        assert isinstance(kept["teacher"].logits, np.memmap if path else jax.Array)
        batches = [view_batch(kept, TRAIN, number) for number in range(3 * STEPS)]
        assert same(trained(step, None, batches), expected)
    # By the loop, too.
    state, _ = make_epoch(step_for(None))(fresh_state(), None, OBJECTIVE, iter(batches))
    assert same(jax.device_get(state.params), expected)
    # Control: other views of the same examples in the same order are another training.
    kept["teacher"] = jax.tree.map(lambda array: array[::-1], kept["teacher"])
    assert not same(trained(step, None, (view_batch(kept, TRAIN, number) for number in range(3 * STEPS))), expected)


def test_switching_the_cache_on_changes_no_view(tmp_path, compiled_as_users_do):
    """In the epochs that are kept, a training without a cache has the very same batches."""
    expected = trained(jit_step(step_for(APPLY)), TEACHER, map(plain, range(EPOCHS * STEPS)))
    kept = cached(MIXED, features=features_of(OBJECTIVE))
    batches = [view_batch(kept, TRAIN, number) for number in range(EPOCHS * STEPS)]
    assert same(trained(jit_step(step_for(None)), None, batches), expected)
    seen = []

    def noting(state, its, objective, batch):
        seen.append(batch)
        return state._replace(step=state.step + 1), {}

    step, states = augmented(noting, MIXED), [fresh_state(), fresh_state()]
    for number, batch in enumerate(batches):
        states = [step(state, None, None, one)[0] for state, one in zip(states, (plain(number), batch), strict=True)]
        without, with_cache = seen[-2:]
        assert {*with_cache} - {*without} == {"teacher"}
        assert same({name: with_cache[name] for name in without}, without)
    # They do differ from the plain images, and from one step to the next.
    assert not same(seen[0]["inputs"], plain(0)["inputs"])
    assert not same(MIXED(view_key(RNG, 1), plain(0))["inputs"], seen[0]["inputs"])


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "raw"])
def test_a_state_of_another_key_sees_the_views_that_were_kept(kind):
    """Else the student would see other views than those its teacher's outputs are of, without a word."""

    def key(seed):
        return jax.random.PRNGKey(seed) if kind == "raw" else jax.random.key(seed, impl=kind)

    def noisy(key, batch):
        return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, batch["inputs"].shape)}

    seen = []

    def noting(state, its, objective, batch):
        seen.append(batch["inputs"])
        return state, {}

    kept = cached(noisy, rng=key(3))
    step, state = augmented(noting, noisy), fresh_state()._replace(rng=key(4))
    for number in range(STEPS):
        step(state, None, None, view_batch(kept, TRAIN, number))
        assert same(seen[-1], noisy(view_key(key(3), number), plain(number))["inputs"])
        step(state, None, None, plain(number))
        assert not same(seen[-1], seen[-2])
    # A key of another kind draws other views from the same words, and has another number of them.
    of_another = fresh_state()._replace(rng=jax.random.key(3, impl="threefry2x32" if kind == "rbg" else "rbg"))
    with pytest.raises(
        ValueError, match=r'batch\["view"\] must be the data of the key of the views, uint32 \[batch, .\]'
    ):
        step(of_another, None, None, view_batch(kept, TRAIN, 0))
    with pytest.raises(ValueError, match=r'batch\["view"\] must be .*; got int32 \[8\]'):
        step(state, None, None, view_batch(kept, TRAIN, 0) | {"view": np.zeros(SIZE, np.int32)})


def test_views_kept_under_a_key_of_rbg_are_those_of_each_example_alone():
    rng = jax.random.key(3, impl="rbg")
    kept = cached(ALONE, rng=rng)
    for row, example in enumerate(kept["indices"][0, 0]):
        one = take(TRAIN, example[None]) | {"indices": example[None]}
        said = APPLY(*TEACHER, ALONE(view_key(rng, 0), one)["inputs"], train=False)[0].logits[0]
        np.testing.assert_allclose(kept["teacher"].logits[0, 0, row], said, rtol=1e-5, atol=1e-6)


def test_what_is_kept_is_said_of_the_views_and_of_no_others():
    kept = cached(MIXED, dtype="float16")
    assert kept["teacher"].features == {}
    wanted = np.stack([key_of(number) for number in range(EPOCHS * STEPS)])
    np.testing.assert_array_equal(kept["view"], wanted.reshape(EPOCHS, STEPS, SIZE, -1))
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(kept["indices"][epoch], epoch_indices(27, SIZE, seed=SEED, epoch=epoch))
        for step, chosen in enumerate(kept["indices"][epoch]):
            seen = MIXED(view_key(RNG, epoch * STEPS + step), take(TRAIN, chosen) | {"indices": chosen})["inputs"]
            said = APPLY(*TEACHER, seen, train=False)[0].logits
            np.testing.assert_allclose(kept["teacher"].logits[epoch, step], said, rtol=2e-3, atol=2e-3)
    top = cached(ALONE, top_k=3)
    assert top["top_indices"].shape == top["top_values"].shape == (EPOCHS, STEPS, SIZE, 3)


@pytest.mark.parametrize("on_disk", [False, True])
def test_whole_numbers_and_bools_keep_their_type_and_inputs_may_be_a_pytree(tmp_path, on_disk):
    """301 is 300 in bfloat16. And of two arrays of inputs there are 5 examples, not 2."""

    def network(params, model_state, inputs, *, train, rng=None):
        found = {"cluster": inputs["place"] + 300, "odd": inputs["place"] % 2 == 1}
        return Outputs(inputs["x"] @ params, found), model_state

    inputs, weights = {"x": jnp.ones((5, 3)), "place": jnp.arange(5)}, Weights(jnp.eye(3), {})
    settings = {"features": ["cluster", "odd"], "dtype": "bfloat16"}
    paths = [tmp_path / name if on_disk else None for name in ("plain", "views")]
    plain = cache_teacher(network, weights, inputs, **settings, path=paths[0])["teacher"]
    views = cache_views(
        network,
        weights,
        lambda key, batch: batch,
        {"inputs": inputs},
        **(KEPT | settings | {"batch_size": 2}),
        path=paths[1],
    )
    assert views["indices"].shape == (EPOCHS, 2, 2)
    assert {*np.ravel(views["indices"])} == set(range(5))
    for found, places in ((plain, np.arange(5)), (views["teacher"], np.asarray(views["indices"]))):
        assert found.logits.dtype == jnp.bfloat16
        for name, wanted in (("cluster", 300 + places.astype(np.int32)), ("odd", places % 2 == 1)):
            np.testing.assert_array_equal(found.features[name], wanted, strict=True)


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
        (lambda: cached(MIXED, path=path, rng=jax.random.key(6)), "the views are others"),
        (lambda: cached(MIXED, path=path, epochs=3), "the views are others.*, other arrays"),
        (lambda: cached(MIXED, path=path, batch_size=9), "the views are others"),
        (lambda: cached(ALONE, path=path), "the teacher's program is another"),
        (lambda: cached(make_views(*VIEWS, mix=cutmix), path=path), "the teacher's program is another"),
        (lambda: cache_views(APPLY, TEACHER, MIXED, other_data, **KEPT, path=path), "the inputs are others"),
        (
            lambda: cache_views(APPLY, teacher_weights(8), MIXED, TRAIN, **KEPT, path=path),
            "weights are others",
        ),
    ]:
        with pytest.raises(StaleError, match=message):
            wanted()
    # An array that a view brings along has no place in the program's text, and counts too.
    cached(shifted_by(np.full((1, HEIGHT, WIDTH, 1), 0.5, np.float32)), path=tmp_path / "shifted")
    with pytest.raises(StaleError, match="the teacher's program is another"):
        cached(shifted_by(np.full((1, HEIGHT, WIDTH, 1), 0.7, np.float32)), path=tmp_path / "shifted")


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
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"path must not be a symbolic link to nothing; .*link leads to .*nothing"):
        cached(ALONE, path=tmp_path / "link")
    assert [one.name for one in tmp_path.iterdir()] == ["link"]
    kept = {"indices": np.zeros((1, 1, 2), np.int32), "teacher": Outputs(np.zeros((1, 1, 2, 3)), {})}
    with pytest.raises(ValueError, match="number must be 0 or greater; got -1"):
        view_batch(kept, TRAIN, -1)
    # Outputs that do not say of which views.
    batch = {name: value for name, value in view_batch(cached(ALONE), TRAIN, 0).items() if name != "view"}
    step = augmented(make_train_step(STUDENT, None, optimizer()), ALONE)
    with pytest.raises(ValueError, match=r"batch must not hold a teacher's cached outputs .*; got teacher"):
        step(fresh_state(), None, OBJECTIVE, batch)
