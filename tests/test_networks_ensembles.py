"""Several teachers as one: their means, their shares, their own noise, and that they teach."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import linen as nn

from kdjax import Outputs, cross_entropy, make_train_step, on_feature, on_logits, on_outputs, weighted_sum
from kdjax.losses import attention_transfer, soft_target_kl
from kdjax.networks import by_confidence, ensemble, ensemble_weights, from_linen

INPUTS = networks.batch()["inputs"]


def softmax(z):
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def two_networks():
    """A teacher without BatchNorm, and one of another architecture with BatchNorm and dropout."""
    init, apply = networks.student()
    return (networks.teacher_weights(), networks.teacher()[1]), (init(jax.random.key(1), INPUTS), apply)


def constant(params, model_state, inputs, *, train, rng=None):
    return Outputs(params, {}), model_state


def said(*members, **keywords):
    return ensemble(*[constant] * len(members), **keywords)(members, ({},) * len(members), INPUTS, train=False)[0]


@pytest.mark.parametrize("shares", [None, [3, 1]])
def test_an_ensemble_of_two_architectures_is_the_mean_of_their_predictions(shares):
    (first, first_apply), (second, second_apply) = two_networks()
    weights = ensemble_weights(first, second)
    z = [
        np.asarray(apply(*own, INPUTS, train=False)[0].logits, np.float64)
        for own, apply in ((first, first_apply), (second, second_apply))
    ]
    w = [0.5, 0.5] if shares is None else [0.75, 0.25]
    outputs, model_state = ensemble(first_apply, second_apply, shares=shares)(*weights, INPUTS, train=False)
    expected = np.log(w[0] * softmax(z[0]) + w[1] * softmax(z[1]))
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, model_state, (first.model_state, second.model_state))
    expected = second_apply(*second, INPUTS, train=False)[0]
    np.testing.assert_array_equal(outputs.features["1/embedding"], expected.features["embedding"])
    np.testing.assert_array_equal(outputs.features["1/logits"], expected.logits)
    by_logits, _ = ensemble(first_apply, second_apply, mean="logits", shares=shares)(*weights, INPUTS, train=False)
    np.testing.assert_allclose(by_logits.logits, w[0] * z[0] + w[1] * z[1], rtol=1e-5, atol=1e-5)


def test_shares_by_confidence_are_each_examples_own():
    z = np.random.default_rng(0).normal(size=(3, 4, 5)) * np.array([0.1, 1.0, 10.0])[:, None, None]
    p = softmax(z)
    certainty = np.exp((p * np.log(p)).sum(-1))
    expected = certainty / certainty.sum(0)
    np.testing.assert_allclose(by_confidence(jnp.asarray(z)), expected, rtol=1e-5)
    outputs = said(*map(jnp.asarray, z), shares=by_confidence)
    np.testing.assert_allclose(np.exp(outputs.logits), (expected[:, :, None] * p).sum(0), rtol=1e-5)
    assert np.isfinite(by_confidence(jnp.full((2, 3, 4), 1e4).at[0].set(-1e4))).all()
    excluded = jnp.asarray(z).at[..., 0].set(-jnp.inf)
    np.testing.assert_allclose(by_confidence(excluded), by_confidence(jnp.asarray(z[..., 1:])), rtol=1e-6)


def test_members_teach_together_and_each_by_itself():
    members = two_networks()
    weights = ensemble_weights(*(own for own, _ in members))
    before = jax.tree.map(np.array, weights)
    step = jax.jit(
        make_train_step(networks.student()[1], ensemble(*(apply for _, apply in members)), networks.optimizer())
    )
    objective = weighted_sum(
        labels=(0.5, cross_entropy),
        together=(0.5, on_logits(soft_target_kl)),
        first=(0.5, on_outputs(soft_target_kl, "student.logits", "teacher.0/logits")),
        shallow=(1.0, on_feature(attention_transfer, "stage1", teacher="0/stage1")),
        deep=(1.0, on_feature(attention_transfer, "stage2", teacher="1/stage2")),
    )
    state, losses = networks.fresh_state(), []
    for _ in range(8):
        state, metrics = step(state, weights, objective, networks.batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, weights, before)


def test_an_ensemble_is_finite_at_huge_logits_and_float32_at_bfloat16():
    sure = jnp.array([[1e4, 0.0, -1e4]])
    np.testing.assert_allclose(said(sure, -sure).logits, [[np.log(0.5), -1e4, np.log(0.5)]], rtol=1e-6)
    assert said(sure.astype(jnp.bfloat16)).logits.dtype == jnp.float32


class Noise(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_members_draw_their_own_noise():
    apply = from_linen(Noise())[1]
    both = ensemble(apply, apply, mean="logits")(
        ({}, {}), ({}, {}), jnp.ones((4, 32)), train=True, rng=jax.random.key(0)
    )[0]
    assert set(np.unique(both.logits)) == {0.0, 1.0, 2.0}  # 1.0: kept by one member alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ensemble(), "ensemble needs at least one Apply; got none"),
        (lambda: ensemble(constant, mean="logit"), r"got 'logit'. Did you mean 'logits'"),
        (lambda: ensemble(constant, shares=[1, 2]), r"shares must be 1 finite numbers .* one a member; got \[1, 2\]"),
        (lambda: ensemble(constant, constant, shares=[1, 0]), r"greater than 0.*got \[1, 0\]"),
        (lambda: ensemble(constant, constant, shares=[1, float("nan")]), r"finite numbers.*nan"),
        (
            lambda: ensemble(constant, constant)((jnp.ones((1, 2)),), ({}, {}), INPUTS, train=False),
            "params must be a tuple with one entry a member, 2; got 1",
        ),
        (
            lambda: ensemble(constant)((jnp.ones((1, 2)),), {}, INPUTS, train=False),
            "model_state must be a tuple with one entry a member, 1; got dict",
        ),
        (
            lambda: said(jnp.ones((1, 2)), jnp.ones((1, 3))),
            "logits of member 0 and logits of member 1 must have the same shape",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
