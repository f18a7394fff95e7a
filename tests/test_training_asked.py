"""Optimisers that ask for more than the gradient: line searches, sharpness-aware minimisation, whatever lists its wants."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from masked import DIM, GOAL, STUDENT, TEACHER, batch, network

from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.training import accumulate, asking, data_mesh, freeze, jit_step, pmap_step, shard_map_step, split_batch
from kdjax.training.divergence import at_rate

LABELS = weighted_sum(labels=(1.0, cross_entropy))


def seen(record):
    def update(gradient, state, params=None, **asked):
        record.update(asked, gradient=gradient)
        return jax.tree.map(jnp.zeros_like, gradient), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def trained(optimizer, steps, make=lambda optimizer: jit_step(make_train_step(network, None, optimizer))):
    step, state, losses = make(optimizer), init_state(STUDENT, optimizer, jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = step(state, None, LABELS, batch())
        losses.append(float(metrics["loss"]))
    return state, losses


def test_a_line_search_has_its_value_function():
    """L-BFGS on a loss that is not noisy falls at every step, faster than gradient descent."""
    lbfgs, sgd = (trained(optimizer, 8)[1] for optimizer in (optax.lbfgs(), optax.sgd(0.1)))
    assert all(later < earlier for earlier, later in pairwise(lbfgs))
    assert lbfgs[-1] < 0.2 * sgd[-1]
    told_apart = trained(
        optax.lbfgs(), 8, lambda optimizer: jit_step(make_train_step(network, None, optimizer, term_gradients=True))
    )
    assert told_apart[1] == pytest.approx(lbfgs, rel=1e-3)


def test_what_an_optimizer_may_ask_for_is_given():
    record = {}
    optimizer = seen(record)
    step = make_train_step(network, network, optimizer, term_gradients=True)
    jax.eval_shape(step, init_state(STUDENT, optimizer, jax.random.key(0)), TEACHER, GOAL, batch())
    assert {*record} == {"counts", "grad", "grad_fn", "gradient", "term_gradients", "value", "value_fn"}
    assert {*record["counts"]} == {"labels", "soft"}
    assert record["counts"]["labels"] is record["counts"]["soft"]
    assert record["term_gradients"]["soft"]["body"].shape == (DIM, DIM)


def gradient_by_hand(params):
    def loss(params):
        outputs, _ = network(params, {}, batch()["inputs"], train=True)
        return cross_entropy(outputs, None, batch()).mean()

    return jax.grad(loss)(params)


def sharpness_aware(rho, rate, *, opaque):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    return optax.contrib.sam(optax.sgd(rate), adversary, sync_period=2, opaque_mode=opaque)


def one_of_sam(rho, rate):
    """By hand: up along the normalised gradient, and from the start down along the gradient there."""
    first = gradient_by_hand(STUDENT.params)
    norm = optax.tree.norm(first)
    there = gradient_by_hand(jax.tree.map(lambda a, g: a + rho * g / norm, STUDENT.params, first))
    return jax.tree.map(lambda a, g: a - rate * g, STUDENT.params, there)


@pytest.mark.parametrize("opaque", [False, True])
def test_sharpness_aware_minimisation_takes_what_it_lists(opaque):
    """In one step that asks for the gradient elsewhere, or in two steps of which the first goes up."""
    state, _ = trained(sharpness_aware(0.1, 0.5, opaque=opaque), 1 if opaque else 2)
    chex.assert_trees_all_close(state.params, one_of_sam(0.1, 0.5), rtol=1e-4, atol=1e-6)
    plain, _ = trained(optax.sgd(0.5), 1)
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, plain.params)
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_the_gradient_elsewhere_is_of_the_whole_batch_on_all_devices():
    def over_devices(optimizer):
        return shard_map_step(make_train_step(network, None, optimizer, axis_name="data"), data_mesh())

    state, _ = trained(sharpness_aware(0.1, 0.5, opaque=True), 1, over_devices)
    chex.assert_trees_all_close(state.params, one_of_sam(0.1, 0.5), rtol=1e-4, atol=1e-6)


def test_inside_another_transformation_it_takes_what_it_lists_too():
    frozen, _ = trained(freeze(sharpness_aware(0.1, 0.5, opaque=False), "head"), 2)
    chex.assert_trees_all_equal(frozen.params["head"], STUDENT.params["head"])
    gathered, _ = trained(accumulate(sharpness_aware(0.1, 0.5, opaque=False), 2), 4)
    chex.assert_trees_all_close(gathered.params, one_of_sam(0.1, 0.5), rtol=1e-4, atol=1e-6)


def test_a_line_search_goes_one_way_on_all_devices():
    """Under an axis whose types do not tell, each device must come to the gradient of the whole batch, as on one device."""

    def over_parts(optimizer):
        step = make_train_step(network, None, optimizer, axis_name="data")
        mapped = jax.jit(jax.vmap(step, in_axes=(None, None, None, 0), axis_name="data"))

        def one(state, teacher, objective, batch):
            states, metrics = mapped(state, teacher, objective, split_batch(batch, 4))
            for leaf in jax.tree.leaves(states.params):
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
            return jax.tree.map(lambda a: a[0], (states, metrics))

        return one

    def over_devices(optimizer):
        step = pmap_step(make_train_step(network, None, optimizer, axis_name="data"))
        return lambda state, teacher, objective, batch: step(state, teacher, objective, split_batch(batch, 4))

    wanted, losses = trained(optax.lbfgs(), 5)
    for make in (over_parts, over_devices):
        found, others = trained(optax.lbfgs(), 5, make)
        assert others == pytest.approx(losses, rel=1e-3)
        chex.assert_trees_all_close(found.params, wanted.params, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("build", [lambda: optax.lbfgs(), lambda: sharpness_aware(0.1, 0.5, opaque=True)])
def test_a_frozen_part_stays_where_the_others_ask_for_the_loss_elsewhere(build):
    """As on a network that has no more params than those."""
    alone = init_state(STUDENT, build(), jax.random.key(0)).params
    rest = {name: value for name, value in alone.items() if name != "head"}

    def without_head(params, model_state, inputs, *, train, rng=None):
        return network({**params, "head": alone["head"]}, model_state, inputs, train=train, rng=rng)

    optimizer = build()
    step, wanted = (
        jit_step(make_train_step(without_head, None, optimizer)),
        init_state(Weights(rest, {}), optimizer, jax.random.key(0)),
    )
    for _ in range(4):
        wanted, _ = step(wanted, None, LABELS, batch())
    found, _ = trained(freeze(build(), "head"), 4)
    chex.assert_trees_all_equal(found.params["head"], alone["head"])
    chex.assert_trees_all_close({name: found.params[name] for name in rest}, wanted.params, rtol=1e-3, atol=1e-4)


def test_a_part_of_a_chain_that_refuses_what_is_offered_is_told_how_to_be_wrapped():
    sam = sharpness_aware(0.1, 0.5, opaque=False)
    with pytest.raises(TypeError, match=r"a part of it refuses counts: .* Wrap that part in kdjax.training.asking"):
        trained(optax.chain(optax.clip_by_global_norm(1e6), sam), 2)
    wrapped, _ = trained(optax.chain(optax.clip_by_global_norm(1e6), asking(sam)), 2)
    chex.assert_trees_all_close(wrapped.params, one_of_sam(0.1, 0.5), rtol=1e-4, atol=1e-6)


def test_an_error_of_the_optimizers_own_is_not_explained_away():
    def update(gradient, state, params=None, **more):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        trained(optax.GradientTransformationExtraArgs(lambda params: (), update), 1)


def test_a_gradient_may_be_called_grad():
    def update(grad, state, params=None, *, value, **more):
        assert {*more} == {"counts", "grad_fn", "value_fn"}
        return jax.tree.map(lambda g: -value * g, grad), state

    def listed(grad, state, *params, value):
        return jax.tree.map(lambda g: -value * g, grad), state

    both = [trained(optax.GradientTransformationExtraArgs(lambda params: (), one), 2)[0] for one in (update, listed)]
    chex.assert_trees_all_equal(both[0].params, both[1].params)


def test_an_update_that_takes_nothing_more_is_given_nothing():
    plain = optax.GradientTransformation(lambda params: (), lambda gradient, state, params=None: (gradient, state))
    listed = optax.GradientTransformationExtraArgs(
        lambda params: (),
        lambda gradient, state, params, *, value: (jax.tree.map(lambda g: value * g, gradient), state),
    )
    (one, (loss,)), (other, _) = (trained(optimizer, 1) for optimizer in (plain, listed))
    moves = [jax.tree.map(lambda a, b: a - b, state.params, STUDENT.params) for state in (one, other)]
    chex.assert_trees_all_close(moves[1], jax.tree.map(lambda move: loss * move, moves[0]), rtol=1e-4, atol=1e-6)


def test_a_lower_rate_of_an_optimizer_that_lists_what_it_takes():
    """It is given what it takes, as by the step itself."""
    lower, _ = trained(at_rate(sharpness_aware(0.1, 0.5, opaque=True), 0.5), 1)
    chex.assert_trees_all_close(lower.params, one_of_sam(0.1, 0.25), rtol=1e-4, atol=1e-6)
