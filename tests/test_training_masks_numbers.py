"""Numbers that stand among the arrays, such as each entry's own T, beside a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import HEADS
from heads import TEACHER as OF_HEADS
from heads import batch as tokens
from heads import fresh as with_head
from heads import network as gives_head
from masked import CLASSES, EXAMPLES, OPTIMIZER, STUDENT, TEACHER, TIME, batch, fresh, network, same, step

from kdjax import (
    Outputs,
    Shared,
    Weights,
    init_state,
    make_train_step,
    on_heads,
    on_logits,
    on_outputs,
    scaled,
    weighted_sum,
)
from kdjax.losses import soft_target_kl
from kdjax.training import jit_step


def each_scaled(student, teacher, *, scale):
    return jnp.sum(scale[None] * (student - teacher) ** 2, axis=-1)


@pytest.mark.parametrize("positions", [(), (TIME,)], ids=["of examples", "of positions"])
@pytest.mark.parametrize("of", ["examples", "entries"])
def test_a_number_of_each_entry_stands_in_where_it_does_not_count(positions, of):
    """0 in the padding is no T: neither the loss nor a slope is NaN, whichever axes mask and T have."""
    arrays = batch(TIME)
    mask = np.random.default_rng(8).random((EXAMPLES, *positions)) < 0.5
    heat = np.linspace(1.0, 3.0, EXAMPLES * TIME).reshape(EXAMPLES, TIME).astype(np.float32)
    heat = heat[:, 0] if of == "examples" else heat
    counts = mask if mask.ndim <= heat.ndim else mask.any(axis=1)
    filled_up = np.where(counts.reshape(counts.shape + (1,) * (heat.ndim - counts.ndim)), heat, 0.0)
    places = {"temperature": "batch.T"}
    goal = weighted_sum(soft=(1.0, on_outputs(soft_target_kl, "student.logits", "teacher.logits", **places)))
    found, wanted = (
        step()(fresh(), TEACHER, goal, {"inputs": arrays["inputs"], "mask": mask, "T": one})
        for one in (filled_up, heat)
    )
    same(found, wanted)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[0].params))


def test_what_belongs_to_no_example_is_left_as_it_is():
    """As many classes as examples: a weight of each class is not taken for one of each example."""
    scale = jnp.linspace(1.0, 3.0, CLASSES)

    def scaling(params, model_state, inputs, *, train, rng=None):
        outputs, model_state = network(params, model_state, inputs, train=train)
        return Outputs(outputs.logits, {"scale": Shared(scale)}), model_state

    goal = weighted_sum(apart=(1.0, on_logits(each_scaled, scale="student.scale")))
    arrays = batch(examples=CLASSES) | {"mask": np.arange(CLASSES) < 2}
    _, metrics = jit_step(make_train_step(scaling, network, OPTIMIZER))(fresh(), TEACHER, goal, arrays)
    own, its = (network(*one, arrays["inputs"], train=False)[0].logits for one in (STUDENT, TEACHER))
    np.testing.assert_allclose(metrics["apart"], each_scaled(own, its, scale=scale)[:2].mean(), rtol=1e-5)


def test_a_vector_of_an_example_is_none_of_a_number_a_position():
    """As many classes as positions."""

    def to_prior(student, teacher, *, prior):
        return jnp.sum(prior[:, None] * (student - teacher) ** 2, axis=-1)

    arrays = batch(CLASSES) | {"prior": np.random.default_rng(1).random((EXAMPLES, CLASSES)).astype(np.float32)}
    mask = np.random.default_rng(2).random((EXAMPLES, CLASSES)) < 0.4
    goal = weighted_sum(apart=(1.0, on_logits(to_prior, prior="batch.prior")))
    _, metrics = step()(fresh(), TEACHER, goal, arrays | {"mask": mask})
    own, its = (network(*one, arrays["inputs"], train=False)[0].logits for one in (STUDENT, TEACHER))
    np.testing.assert_allclose(metrics["apart"], to_prior(own, its, prior=arrays["prior"])[mask].mean(), rtol=1e-5)


def weighing(params, model_state, inputs, *, train, rng=None):
    """The student of `heads`, and a number that it learns, by which a term is weighed."""
    outputs, model_state = gives_head(params["own"], model_state, inputs, train=train)
    return Outputs(outputs.logits, dict(outputs.features) | {"w": params["w"]}), model_state


@pytest.mark.parametrize("way", ["heads", "logits"])
def test_a_learnt_weight_of_0_learns_beside_a_mask(way):
    soft = on_heads(soft_target_kl, *HEADS, chunk=5) if way == "heads" else on_logits(soft_target_kl)
    goal = weighted_sum(soft=(1.0, scaled(soft, by="student.w")))
    weights = Weights({"own": with_head().params, "w": jnp.zeros(())}, {})
    state = init_state(weights, optax.sgd(1.0), jax.random.key(0))
    new, _ = jit_step(make_train_step(weighing, gives_head, optax.sgd(1.0)))(state, OF_HEADS, goal, tokens())
    plain = weighted_sum(soft=(1.0, on_logits(soft_target_kl)))
    _, metrics = make_train_step(gives_head, gives_head, optax.sgd(1.0))(
        init_state(Weights(with_head().params, {}), optax.sgd(1.0), jax.random.key(0)), OF_HEADS, plain, tokens()
    )
    np.testing.assert_allclose(new.params["w"], -metrics["soft"], rtol=1e-4)


def test_weights_of_tokens_may_be_nan_where_these_do_not_count():
    arrays = tokens()
    arrays["w"] = np.where(arrays["mask"], 2.0, np.nan).astype(np.float32)
    terms = on_heads(soft_target_kl, *HEADS, chunk=5), on_logits(soft_target_kl)
    goals = [weighted_sum(soft=(1.0, scaled(one, by="batch.w"))) for one in terms]
    found, wanted = (jit_step(make_train_step(gives_head, gives_head, OPTIMIZER)) for _ in range(2))
    (one, metrics), (other, others) = (
        run(init_state(Weights(with_head().params, {}), OPTIMIZER, jax.random.key(0)), OF_HEADS, goal, arrays)
        for run, goal in zip((found, wanted), goals, strict=True)
    )
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    np.testing.assert_allclose(one.params["head"], other.params["head"], rtol=1e-4, atol=1e-6)
    assert np.isfinite(one.params["head"]).all()
