"""Frozen is frozen: no update, no momentum, no weight decay, no state, no statistics; and the words that name parts."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.training import freeze, freeze_model_state, train_only

PARAMS = {
    "stage1": {"kernel": jnp.array([[-0.0, 1.0], [1e-30, -2.0]]), "bias": jnp.array([-0.0])},
    "stage10": {"kernel": jnp.ones((2, 3))},
    "head": {"kernel": jnp.ones(5), "bias": jnp.array([1.0, 2.0])},
}


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


def moved(optimizer, steps=3):
    """The paths whose bits changed under gradients that are never zero."""

    @jax.jit
    def step(params, state):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    before, after = (jax.tree.leaves_with_path(bits(tree)) for tree in (PARAMS, params))
    return {
        jax.tree_util.keystr(a[0], simple=True, separator="/") for a, b in zip(before, after, strict=True) if a != b
    }


ALL = {"stage1/kernel", "stage1/bias", "stage10/kernel", "head/kernel", "head/bias"}


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (["stage1"], {"stage1/kernel", "stage1/bias"}),
        (["stage10", "head/bias"], {"stage10/kernel", "head/bias"}),
        ([r"stage\d+/kernel"], {"stage1/kernel", "stage10/kernel"}),
        (["bias"], {"stage1/bias", "head/bias"}),
        (["^head"], {"head/kernel", "head/bias"}),
        ([".*"], ALL),
    ],
)
def test_frozen_parameters_keep_their_bits_and_all_others_move(patterns, named):
    adamw = optax.adamw(0.1, weight_decay=0.3)
    assert moved(adamw) == ALL
    assert moved(freeze(adamw, *patterns)) == ALL - named
    assert moved(train_only(adamw, *patterns)) == named


def test_minus_zero_stays_minus_zero_also_where_the_addition_of_zero_is_carried_out():
    """Compiled, x + 0 may be dropped; outside jit it is computed, and −0 + 0 is +0."""
    optimizer = freeze(optax.sgd(0.1), "stage1")
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert bits(optax.apply_updates(PARAMS, updates)["stage1"]) == bits(PARAMS["stage1"])


def test_the_optimizer_knows_nothing_of_frozen_parameters():
    optimizer = freeze(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), "stage1", "stage10")
    shapes = [leaf.shape for leaf in jax.tree.leaves(optimizer.init(PARAMS))]
    assert sorted(shapes) == [(), (2,), (2,), (5,), (5,)]
    # Nor does the clipped norm.
    clipped = freeze(optax.clip_by_global_norm(1.0), "stage1", "stage10")
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 100.0), PARAMS)
    updates, _ = clipped.update(gradients, clipped.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], np.full(5, 7**-0.5), rtol=1e-6)


def test_a_step_of_the_house_moves_the_rest_as_it_did_and_saves_the_frozen_parts_gradient():
    _, apply = networks.student()
    optimizer = freeze(networks.optimizer(), "stage[12]")
    plain = networks.fresh_state()
    state = plain._replace(opt_state=optimizer.init(plain.params))
    batch, objective = networks.batch(), weighted_sum(labels=(1.0, cross_entropy))

    def compiled(transform, state):
        return jax.jit(make_train_step(apply, None, transform)).lower(state, None, objective, batch).compile()

    frozen, whole = compiled(optimizer, state), compiled(networks.optimizer(), plain)
    after, _ = frozen(state, None, objective, batch)
    expected, _ = whole(plain, None, objective, batch)
    for part in ("hidden", "logits"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            after.params[part],
            expected.params[part],
        )
        assert bits(after.params[part]) != bits(state.params[part])
    for part in ("stage1", "stage2"):
        assert bits(after.params[part]) == bits(state.params[part])
        assert bits(expected.params[part]) != bits(state.params[part])
    assert frozen.cost_analysis()["flops"] < 0.8 * whole.cost_analysis()["flops"]


def test_statistics_that_are_held_stay_and_the_outputs_are_the_same():
    _, apply = networks.student()
    state = networks.fresh_state()
    inputs, rng = networks.batch()["inputs"], jax.random.key(3)

    def run(network):
        return jax.jit(lambda state: network(state.params, state.model_state, inputs, train=True, rng=rng))(state)

    outputs, held = run(freeze_model_state(apply, "stage1"))
    expected, free = run(apply)
    jax.tree.map(np.testing.assert_array_equal, outputs, expected)
    old, new, all_new = (tree["batch_stats"] for tree in (state.model_state, held, free))
    assert bits(new["stage1"]) == bits(old["stage1"]) != bits(all_new["stage1"])
    assert bits(new["stage2"]) == bits(all_new["stage2"]) != bits(old["stage2"])


def test_a_part_beside_connectors_is_named_by_where_it_begins():
    weights = Weights({"student": {"hidden": jnp.ones(2)}, "connectors": {"hint": {"hidden": jnp.ones(2)}}}, {})
    state = init_state(weights, freeze(optax.sgd(0.1, momentum=0.9), "^student"), jax.random.key(0))
    assert len(jax.tree.leaves(state.opt_state)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: freeze(optax.sgd(0.1)), "patterns must name at least one part, such as 'stage1'; got none"),
        (lambda: train_only(optax.sgd(0.1), "stage["), r"patterns must be regular expressions; 'stage\[' is none"),
        (lambda: freeze(optax.sgd(0.1), "hed").init(PARAMS), "'hed' stands in no path. Did you mean 'head'"),
        (lambda: freeze(optax.sgd(0.1), "ead").init(PARAMS), "'ead' stands in no path"),
        (
            lambda: train_only(optax.sgd(0.1), "head", "xyz").init(PARAMS),
            "The tree's own parts are head, stage1, stage10",
        ),
        (
            lambda: freeze_model_state(lambda p, s, x, *, train, rng=None: (x, {}), "a")(
                {}, {"a": 1.0}, jnp.ones((1, 2)), train=True
            ),
            "must return a model_state of the structure that it was given",
        ),
        (
            lambda: freeze_model_state(lambda p, s, x, *, train, rng=None: (x, s), "b")(
                {}, {"a": 1.0}, jnp.ones((1, 2)), train=True
            ),
            "patterns must name parts of the tree; 'b' stands in no path. The tree's own parts are a",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
