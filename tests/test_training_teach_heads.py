"""A head among a network's features belongs to no example: nothing gathers, masks, caches or multiplies it out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import (
    EXAMPLES,
    LINEAR,
    OPTIMIZER,
    PLAIN,
    STUDENT,
    TEACHER,
    TIME,
    WAYS,
    WORDS,
    batch,
    fresh,
    network,
    of_logits,
    programs,
    same,
    step,
    step_by,
)

from kdjax import (
    Outputs,
    Shared,
    Weights,
    init_state,
    make_eval_step,
    make_train_step,
    on_outputs,
    weighted_sum,
)
from kdjax._apply import outputs_of, run
from kdjax.batches import take
from kdjax.caching import StaleError, _wish, cache_teacher, features_of
from kdjax.losses import sampled_kl, soft_target_kl
from kdjax.metrics import agreeing
from kdjax.training import (
    augmented,
    data_mesh,
    jit_step,
    make_mutual_step,
    shard_map_step,
    sweeps,
)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_on_heads_is_one_on_logits(way):
    same(step_by(way, LINEAR), of_logits())


def test_neither_logits_are_built_nor_heads_gathered():
    """Read from the compiled program; that of the plain objective has what this one must not have."""
    of_all_words = re.compile(rf"f32\[(?:{EXAMPLES},{TIME}|{EXAMPLES * TIME}),{WORDS}\]")
    assert of_all_words.search(programs(PLAIN))
    assert not of_all_words.search(programs(LINEAR))
    assert "accuracy" not in jax.eval_shape(step(), fresh(), TEACHER, LINEAR, batch())[1]
    assert "accuracy" in jax.eval_shape(step(), fresh(), TEACHER, PLAIN, batch())[1]
    gathers = re.findall(r"= \S+\[([\d,]*)\]\S* all-gather", programs(LINEAR, axis_name="data"))
    assert gathers
    assert not any(str(WORDS) in shape.split(",") for shape in gathers)


def test_two_students_teach_each_other_by_their_heads():
    both = (LINEAR, LINEAR), (PLAIN, PLAIN)
    mutual = jit_step(make_mutual_step([network] * 2, [OPTIMIZER] * 2))
    states = lambda: (fresh(), init_state(TEACHER, OPTIMIZER, jax.random.key(1)))  # noqa: E731
    (found, _), (wanted, _) = (mutual(states(), None, one, batch()) for one in both)
    for one, its in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, its, rtol=1e-4, atol=1e-6)


def test_a_sweep_reads_heads():
    swept = jit_step(sweeps.make_sweep_step(step(), network))
    states, metrics = swept(sweeps.stack([fresh()] * 2), TEACHER, sweeps.stack([LINEAR] * 2), batch())
    for own in sweeps.unstack((states, metrics)):
        same(own, of_logits())
    kept = cache_teacher(network, TEACHER, batch()["inputs"], features=features_of(LINEAR), logits=False)
    states, metrics = swept(sweeps.stack([fresh()] * 2), TEACHER, sweeps.stack([LINEAR] * 2), batch() | kept)
    same(sweeps.unstack((states, metrics))[0], of_logits())


# Kept outputs


def test_hidden_states_alone_are_kept_and_the_head_comes_from_the_weights(tmp_path):
    names = features_of(LINEAR)
    assert names == ["head", "hidden"]
    for path in (None, tmp_path / "kept"):
        kept = cache_teacher(network, TEACHER, batch()["inputs"], features=names, logits=False, path=path)
        assert kept["teacher"].logits is None
        assert {name: one.shape for name, one in kept["teacher"].features.items()} == {"hidden": (EXAMPLES, TIME, 12)}
        cached = take(batch() | kept, np.arange(EXAMPLES))
        same(jit_step(step())(fresh(), TEACHER, LINEAR, cached), of_logits())
        split = shard_map_step(step(axis_name="data"), data_mesh())
        same(split(fresh(), TEACHER, LINEAR, cached), of_logits())
    with pytest.raises(ValueError, match=r"The teacher has no feature 'head'; it has \['hidden'\]"):
        jit_step(step())(fresh(), None, LINEAR, cached)
    with pytest.raises(ValueError, match="The teacher's logits are not in its cache, which kept features alone"):
        jit_step(step())(fresh(), TEACHER, PLAIN, cached)
    with pytest.raises(ValueError, match="The teacher's logits are not in its cache"):
        make_eval_step(network, measures={"agreeing": agreeing})(STUDENT, cached)


def test_of_the_kept_teacher_nothing_is_run_but_its_head():
    """A teacher whose network costs much: the program with the cache does not multiply by its body."""

    def deep(params, model_state, inputs, *, train, rng=None):
        hidden = jnp.tanh(params["table"][inputs] @ params["body"])
        return Outputs(hidden @ params["head"], {"hidden": hidden, "head": Shared(params["head"])}), model_state

    body = jax.random.normal(jax.random.key(9), (12, 12))
    teacher = Weights(TEACHER.params | {"body": body}, {})
    run = make_train_step(network, deep, OPTIMIZER)
    kept = cache_teacher(deep, teacher, batch()["inputs"], features=["hidden"], logits=False)
    flops = lambda arrays: (  # noqa: E731
        jax.jit(run).lower(fresh(), teacher, LINEAR, arrays).compile().cost_analysis()["flops"]
    )
    assert flops(batch()) - flops(batch() | kept) >= 2 * EXAMPLES * TIME * 12 * 12


def test_draws_are_of_the_teachers_distribution_and_of_no_batch_size(tmp_path):
    inputs = np.zeros((2_000, 1), np.int32)
    kept = cache_teacher(network, TEACHER, inputs, draws=10, seed=4, batch_size=700)
    for_all = cache_teacher(network, TEACHER, inputs, draws=10, seed=4, batch_size=2_000, path=tmp_path / "drawn")
    np.testing.assert_array_equal(kept["sampled_indices"], for_all["sampled_indices"])
    with pytest.raises(StaleError, match="program"):
        cache_teacher(network, TEACHER, inputs, draws=10, seed=5, path=tmp_path / "drawn")
    assert kept["sampled_indices"].shape == (2_000, 1, 10)
    p = np.asarray(jax.nn.softmax(network(*TEACHER, inputs[:1], train=False)[0].logits[0, 0]), np.float64)
    counts = np.bincount(np.asarray(kept["sampled_indices"]).ravel(), minlength=WORDS)
    spread = np.sqrt(20_000 * p * (1 - p))
    assert (np.abs(counts - 20_000 * p) < 4.5 * spread + 1).all()
    stored = np.asarray(kept["sampled_values"])[0, 0]
    np.testing.assert_allclose(stored, np.log(p)[np.asarray(kept["sampled_indices"])[0, 0]], rtol=1e-5)


def test_rare_classes_are_drawn_and_impossible_ones_never():
    """Each of many rare classes as often as it should be, beside one that is nearly sure; half of all are impossible."""
    classes, draws = 65_536, 400_000
    p = np.zeros(classes)
    p[::2] = 0.02 / (classes // 2 - 1)
    p[1234] = 0.98
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    drawn = np.concatenate(
        [np.asarray(_wish._drawn(jax.random.key(seed), log_p[None], draws // 20)) for seed in range(20)]
    )
    assert (p[drawn] > 0).all()
    rare = drawn[drawn != 1234]
    assert abs(len(rare) - 0.02 * draws) < 4.5 * np.sqrt(0.02 * draws)
    others = classes // 2 - 1
    expected = others * (1 - (1 - 1 / others) ** len(rare))
    assert abs(len(np.unique(rare)) - expected) < 0.03 * expected


def test_what_is_kept_is_refused_where_it_is_of_other_views():
    inputs = jnp.ones((EXAMPLES, 4))
    plain = lambda params, model_state, inputs, *, train, rng=None: (inputs @ params, model_state)  # noqa: E731
    teacher = Weights(jnp.ones((4, 3)), {})
    kept = cache_teacher(plain, teacher, inputs, draws=2)
    noisy = augmented(make_train_step(plain, None, OPTIMIZER), lambda key, batch: dict(batch))
    state = init_state(teacher, OPTIMIZER, jax.random.key(0))
    places = ("student.logits", "batch.sampled_values", "batch.sampled_indices")
    with pytest.raises(ValueError, match=r"cached outputs where the inputs are augmented.*sampled_values"):
        noisy(state, None, weighted_sum(soft=(1.0, on_outputs(sampled_kl, *places))), {"inputs": inputs} | kept)


def test_features_that_are_all_shared_are_features():
    pair = lambda params, model_state, inputs, *, train, rng=None: (  # noqa: E731
        inputs @ params,
        {"head": Shared(params)},
    )
    outputs, _ = run(pair, jnp.ones((4, 3)), {}, jnp.ones((2, 4)), train=False)
    assert isinstance(outputs.features["head"], Shared)
    named = outputs_of({"logits": outputs.logits, "heads": (Shared(jnp.ones(3)), jnp.ones((2, 1)))}, "it")
    assert sorted(named.features) == ["heads_0", "heads_1"]
    with pytest.raises(ValueError, match="features must name one that belongs to examples"):
        cache_teacher(pair, Weights(jnp.ones((4, 3)), {}), jnp.ones((2, 4)), features=["head"], logits=False)


def test_a_student_is_trained_on_draws():
    run = jit_step(make_train_step(network, None, optax.adam(0.05)))
    inputs = batch(masked=False)["inputs"]
    kept = cache_teacher(network, TEACHER, inputs, draws=2_000)
    drawn = weighted_sum(
        soft=(1.0, on_outputs(sampled_kl, "student.logits", "batch.sampled_values", "batch.sampled_indices"))
    )
    state = init_state(STUDENT, optax.adam(0.05), jax.random.key(0))
    divergence = lambda params: float(  # noqa: E731
        soft_target_kl(
            network(params, {}, inputs, train=False)[0].logits,
            network(*TEACHER, inputs, train=False)[0].logits,
            temperature=1.0,
        ).mean()
    )
    before = divergence(state.params)
    for _ in range(100):
        state, _ = run(state, None, drawn, {"inputs": inputs} | kept)
    assert divergence(state.params) < 0.3 * before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logits": False}, "features must name what is kept where logits are not; got none"),
        ({"draws": 3, "top_k": 2}, "top_k and draws exclude each other; got 2 and 3"),
        (
            {"draws": 3, "features": ["hidden"]},
            r"features must be empty with draws.*; got \['hidden'\]",
        ),
        ({"draws": 3, "logits": False}, r"logits must be True with draws.*; got False"),
        ({"draws": 0}, "draws must be a whole number of 1 or more; got 0"),
        ({"draws": 3, "seed": 2**32}, r"seed must be below 2\*\*32, which a key holds; got 4294967296"),
        ({"draws": 3, "seed": -1}, "seed must be a whole number of 0 or more; got -1"),
    ],
)
def test_wishes_that_no_teacher_could_fulfil_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        cache_teacher(network, TEACHER, batch()["inputs"], **settings)
