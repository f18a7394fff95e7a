"""Views of images: what they compute, what they depend on, and that both networks see the same ones."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_feature, on_logits, weighted_sum
from kdjax.batches import epoch_indices, view_key
from kdjax.caching import cache_teacher
from kdjax.data import color_jitter, cutmix, example_keys, horizontal_flip, make_views, mixup, random_crop
from kdjax.losses import hint, soft_target_kl
from kdjax.objectives import mixed_cross_entropy
from kdjax.training import augmented, data_mesh, jit_step, phases, shard_batch, shard_map_step, sweeps

MANY = 400


def of_views(seed, number, kind=None):
    return view_key(jax.random.key(seed, impl=kind), number)


KEYS = example_keys(of_views(0, 0), jnp.arange(MANY))
IMAGE = np.random.default_rng(0).uniform(size=(6, 7, 3)).astype(np.float32)


def many(view, *images):
    """`view` of one image under 400 keys."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(view, (0, *[None] * len(images))))(KEYS, *images))


@pytest.mark.parametrize("mode", ["zero", "reflect", "edge"])
def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_occur_alike(mode):
    crops = many(partial(random_crop, padding=2, mode=mode), IMAGE)
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode={"zero": "constant"}.get(mode, mode))
    windows = [padded[top : top + 6, left : left + 7] for top in range(5) for left in range(5)]
    matches = np.array([[np.array_equal(crop, window) for window in windows] for crop in crops])
    assert (matches.sum(axis=1) == 1).all()
    # 400 draws among 25: 16 each, and 37 is five deviations away from it.
    assert 0 < matches.sum(axis=0).min() <= matches.sum(axis=0).max() < 37


def test_a_flip_turns_as_often_as_told():
    for probability, low, high in ((0.0, 0, 0), (0.25, 60, 140), (1.0, MANY, MANY)):
        flipped = many(partial(horizontal_flip, probability=probability), IMAGE)
        turned = [np.array_equal(image, IMAGE[:, ::-1]) for image in flipped]
        assert all(now or np.array_equal(image, IMAGE) for now, image in zip(turned, flipped, strict=True))
        assert low <= sum(turned) <= high


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114])


def test_each_colour_does_what_its_name_says():
    image = 0.3 + 0.2 * IMAGE  # far enough from black and white that nothing is clipped
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    np.testing.assert_allclose(many(partial(color_jitter, **off), image), np.stack([image] * MANY), rtol=1e-6)
    for name, kept, changed in (
        ("brightness", lambda x: x / x.mean(), np.mean),
        ("contrast", lambda x: grey(x).mean(), np.std),
        ("saturation", grey, lambda x: np.std(x, axis=-1).mean()),
    ):
        jittered = many(partial(color_jitter, **(off | {name: 0.5})), image)
        factors = np.array([changed(one) / changed(image) for one in jittered])
        assert 0.5 - 1e-5 <= factors.min() < 0.55 < 1.45 < factors.max() <= 1.5 + 1e-5
        for one in jittered[:20]:
            np.testing.assert_allclose(kept(one), kept(image), rtol=1e-4)


def test_colours_stay_within_bounds_wherever_these_are():
    jittered = many(partial(color_jitter, brightness=1.0), IMAGE)
    assert 0 <= jittered.min() <= jittered.max() <= 1
    symmetric = many(partial(color_jitter, brightness=1.0, bounds=(-1, 1)), 2 * IMAGE - 1)
    np.testing.assert_allclose(symmetric, 2 * jittered - 1, atol=1e-5)
    narrow = jax.eval_shape(color_jitter, KEYS[0], jnp.asarray(IMAGE[..., :1], jnp.bfloat16))
    assert (narrow.shape, narrow.dtype) == ((6, 7, 1), jnp.bfloat16)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_a_mean_by_shares_from_beta(alpha):
    other = IMAGE[::-1].copy()
    mixed, shares = many(partial(mixup, alpha=alpha), IMAGE, other)
    by = shares[:, None, None, None]
    np.testing.assert_allclose(mixed, by * IMAGE + (1 - by) * other, atol=1e-6)
    # Beta(α, α) has mean 1/2 and variance 1 / (4 (2α + 1)).
    assert abs(shares.mean() - 0.5) < 0.1
    np.testing.assert_allclose(shares.var(), 0.25 / (2 * alpha + 1), rtol=0.2)


def test_cutmix_puts_in_one_box_and_counts_it():
    mixed, shares = many(cutmix, np.ones((6, 7, 2), np.float32), np.zeros((6, 7, 2), np.float32))
    assert (mixed[..., 0] == mixed[..., 1]).all()
    out = mixed[..., 0] == 0
    np.testing.assert_allclose(42 * shares, 42 - out.sum((1, 2)), rtol=1e-6, atol=1e-6)
    for box in out:
        np.testing.assert_array_equal(box, np.outer(box.any(1), box.any(0)))
        for side in (box.any(1), box.any(0)):
            assert (np.diff(np.flatnonzero(side)) == 1).all()
    assert len(np.unique(shares)) > 20
    assert shares.min() < 0.1 < shares.max() == 1
    assert out.any(0).all()


INPUTS = np.random.default_rng(3).uniform(size=(40, 6, 6, 3)).astype(np.float32)


def data(indices):
    indices = np.array(indices, np.int32)
    return {"inputs": INPUTS[indices], "labels": indices % 10, "indices": indices}


VIEWS = (partial(random_crop, padding=2), horizontal_flip, color_jitter)
PLAIN, AUGMENT = jax.jit(make_views(*VIEWS)), jax.jit(make_views(*VIEWS, mix=mixup))


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_view_is_a_function_of_the_key_the_number_and_the_example_alone(kind):
    def seen(key, *parts):
        return np.concatenate([PLAIN(key, data(part))["inputs"] for part in parts])

    key = of_views(0, 1, kind)
    whole = seen(key, range(8), range(8, 16))
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(seen(key, order[:8], order[8:]), whole[order])
    for other in (of_views(0, 2, kind), of_views(1, 1, kind)):
        assert (np.abs(seen(other, range(8)) - whole[:8]).max((1, 2, 3)) > 1e-3).all()
    # No key that two examples, the step's own noise or the shuffle share.
    keys = [jax.random.key_data(example_keys(of_views(0, number, kind), jnp.arange(40))) for number in range(3)]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 120
    assert key != jax.random.fold_in(jax.random.key(0, impl=kind), 1)
    assert not np.array_equal(jax.random.permutation(key, 40), epoch_indices(40, 40, seed=0, epoch=1)[0])


def test_each_view_draws_for_itself():
    """Two flips with one key would always undo each other."""
    twice = jax.jit(make_views(horizontal_flip, horizontal_flip))(of_views(0, 0), data(range(40)))["inputs"]
    same = [bool((a == b).all()) for a, b in zip(twice, data(range(40))["inputs"], strict=True)]
    assert 8 < sum(same) < 32


def test_the_partner_is_the_example_before():
    indices = [4, 9, 2, 7, 0, 1, 8, 3]
    seen, views = (augment(of_views(0, 0), data(indices)) for augment in (AUGMENT, PLAIN))
    by, views = seen["share"][:, None, None, None], views["inputs"]
    np.testing.assert_allclose(
        seen["inputs"], by * views + (1 - by) * jnp.concatenate([views[-1:], views[:-1]]), atol=1e-6
    )
    assert seen["partner_labels"].tolist() == [3, *indices[:-1]]
    assert seen["labels"].tolist() == indices


def test_mixed_cross_entropy_is_that_of_soft_labels():
    logits = jax.random.normal(jax.random.key(0), (8, 10))
    seen = jax.device_get(AUGMENT(of_views(0, 0), data(range(8))))
    share = seen["share"][:, None]
    soft = share * np.eye(10)[seen["labels"]] + (1 - share) * np.eye(10)[seen["partner_labels"]]
    term = jax.jit(mixed_cross_entropy)(Outputs(logits, {}), None, seen)
    np.testing.assert_allclose(term, optax.softmax_cross_entropy(logits, soft), rtol=1e-5)
    with pytest.raises(ValueError, match='batch must have "partner_labels", as make_views'):
        mixed_cross_entropy(Outputs(logits, {}), None, data(range(8)))


def looking(params, model_state, inputs, *, train, rng=None):
    """A network that shows what it is given."""
    flat = inputs.reshape(inputs.shape[0], -1)
    return Outputs(flat @ params, {"inputs": inputs, "logits_of": flat @ params}), model_state


SEE = weighted_sum(
    same=(1.0, on_feature(hint, "inputs")), soft=(1.0, on_logits(soft_target_kl)), labels=(1.0, mixed_cross_entropy)
)


def beginning():
    weights = Weights(0.01 * jax.random.normal(jax.random.key(5), (108, 10)), {})
    return init_state(weights, optax.sgd(0.1), jax.random.key(6)), Weights(-weights.params, {})


def test_teacher_and_student_see_the_same_view():
    state, teacher = beginning()
    inner = make_train_step(looking, looking, optax.sgd(0.1))
    _, metrics = jax.jit(augmented(inner, AUGMENT))(state, teacher, SEE, data(range(8)))
    assert float(metrics["same"]) == 0
    # Control: a teacher that saw the plain images.
    plain = looking(*teacher, data(range(8))["inputs"], train=False)[0]
    shortcut = {**AUGMENT(of_views(6, 0), data(range(8))), "teacher": plain}
    assert float(jax.jit(inner)(state, teacher, SEE, shortcut)[1]["same"]) > 0.01


def test_a_resumed_run_sees_the_same_views_and_each_step_others():
    seen = []

    def noting(state, teacher, objective, batch):
        seen.append(np.asarray(batch["inputs"]))
        return state._replace(step=state.step + 1), {}

    step = augmented(noting, AUGMENT)
    state, teacher = beginning()
    for _ in range(3):
        saved, (state, _) = state, step(state, teacher, SEE, data(range(8)))
    restored = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)), saved._replace(rng=jax.random.key_data(saved.rng))
    )
    step(restored._replace(rng=jax.random.wrap_key_data(restored.rng)), teacher, SEE, data(range(8)))
    np.testing.assert_array_equal(seen[3], seen[2])
    for other in (0, 1):
        assert (np.abs(seen[other] - seen[2]).max((1, 2, 3)) > 1e-3).all()


def test_any_state_has_the_views_of_its_first_students_key():
    first, teacher = beginning()
    second = first._replace(rng=jax.random.key(9), step=jnp.int32(5))
    plan = phases.plan(phases.Phase("all", 2, SEE, optax.sgd(0.1)))
    batch, seen = data(range(8)), []

    def noting(state, teacher, objective, batch):
        seen.append(np.asarray(batch["inputs"]))
        return state, {}

    for state in (
        first,
        (first, second),
        (first, teacher),
        phases.enter(plan, 0, first),
        sweeps.stack([first, second]),
    ):
        augmented(noting, AUGMENT)(state, None, SEE, batch)
    augmented(noting, AUGMENT)((second, first), None, SEE, batch)
    *same, other = seen
    for views in same:
        np.testing.assert_array_equal(views, AUGMENT(of_views(6, 0), batch)["inputs"])
    np.testing.assert_array_equal(other, AUGMENT(of_views(9, 5), batch)["inputs"])


def test_a_batch_split_over_devices_sees_the_views_of_the_whole():
    state, teacher = beginning()
    objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl)), labels=(1.0, cross_entropy))
    mesh, batch = data_mesh(), data(range(8, 16))

    def step(axis_name=None):
        return augmented(make_train_step(looking, looking, optax.sgd(0.1), axis_name=axis_name), make_views(*VIEWS[:2]))

    def start():  # the wrappers donate
        return beginning()[0]

    expected, _ = jit_step(step())(start(), teacher, objective, batch)
    for got, _ in (
        jit_step(step())(start(), teacher, objective, shard_batch(batch, mesh)),
        shard_map_step(step("data"), mesh)(start(), teacher, objective, batch),
    ):
        np.testing.assert_allclose(got.params, expected.params, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(expected.params - state.params).max()) > 1e-4


@pytest.mark.parametrize("kept", [{}, {"top_k": 3}])
def test_a_cached_teacher_is_refused(kept):
    state, teacher = beginning()
    batch = data(range(8))
    cached = cache_teacher(looking, teacher, batch["inputs"], **kept)
    step = augmented(make_train_step(looking, looking, optax.sgd(0.1)), AUGMENT)
    with pytest.raises(
        ValueError, match="cached outputs where the inputs are augmented.* got " + sorted(cached)[0][:3]
    ):
        step(state, teacher, SEE, {**batch, **cached})


@pytest.mark.parametrize(
    ("view", "images", "keywords", "words"),
    [
        (random_crop, (IMAGE,), {"mode": "zeros"}, r"mode must be one of .*; got 'zeros'\. Did you mean 'zero'"),
        (random_crop, (IMAGE,), {"padding": 6, "mode": "reflect"}, "padding must be a .* 0 and 5 for 'reflect' and an"),
        (random_crop, (IMAGE,), {"padding": 1.5}, "padding must be a whole number .*; got 1.5"),
        (horizontal_flip, (IMAGE,), {"probability": 2}, "probability must lie between 0.0 and 1.0; got 2"),
        (horizontal_flip, (IMAGE[None],), {}, "image must have 3 axes.*one image; jax.vmap takes a batch"),
        (color_jitter, (IMAGE,), {"contrast": -0.1}, "contrast must lie between 0.0 and 1.0; got -0.1"),
        (color_jitter, (IMAGE,), {"bounds": (1, 0)}, r"bounds must be a lower and a higher number; got \(1, 0\)"),
        (color_jitter, (IMAGE,), {"bounds": 1}, "bounds must be a lower and a higher number; got 1"),
        (color_jitter, (IMAGE,), {"bounds": (0, np.inf)}, r"bounds must be a finite number; got \(0, inf\)"),
        (color_jitter, (IMAGE[..., :2],), {}, r"image must have 1 or 3 channels .* got shape \(6, 7, 2\)"),
        (color_jitter, (np.uint8(IMAGE),), {}, "image must hold floating-point numbers"),
        (mixup, (IMAGE, IMAGE), {"alpha": 0}, "alpha must be a finite number greater than 0; got 0"),
        (mixup, (IMAGE, IMAGE[1:]), {}, "image and partner must have the same shape"),
        (cutmix, (IMAGE[0], IMAGE[0]), {}, "image must have 3 axes"),
    ],
)
def test_what_cannot_be_done_is_a_named_error(view, images, keywords, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(view)(KEYS[0], *map(jnp.asarray, images), **keywords)


def test_examples_must_be_numbered():
    with pytest.raises(ValueError, match='batch must have "indices", the examples'):
        make_views()(of_views(0, 0), {"inputs": IMAGE[None]})
    with pytest.raises(ValueError, match="indices must be whole numbers of shape"):
        inspect.unwrap(example_keys)(of_views(0, 0), np.zeros(3))
