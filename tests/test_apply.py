"""What a network may be called with and return, and what is said of one that is none."""

from functools import partial

import chex
import dense
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import fresh_state, objective, teacher_weights

from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_eval_step,
    make_train_step,
    on_feature,
    on_logits,
    weighted_sum,
)
from kdjax._apply import outputs_of, run
from kdjax.losses import hint, soft_target_kl

INPUTS = jnp.arange(12.0).reshape(4, 3)
PARAMS = jnp.arange(6.0).reshape(3, 2)
LOGITS, FEATURES = INPUTS @ PARAMS, {"inputs": INPUTS}
COUNT = {"count": jnp.zeros(())}


def network(result, model_state=None):
    """An Apply that returns `result` of its arguments."""

    def apply(params, model_state, inputs, *, train, rng=None):
        return result(inputs @ params, inputs, jax.tree.map(lambda leaf: leaf + 1, model_state))

    return apply


# What it returns, whether it has features, and whether its model_state is a new one.
FORMS = {
    "outputs and state": (lambda logits, inputs, new: (Outputs(logits, {"inputs": inputs}), new), True, True),
    "logits and state": (lambda logits, inputs, new: (logits, new), False, True),
    "a pair and state": (lambda logits, inputs, new: ((logits, {"inputs": inputs}), new), True, True),
    "outputs": (lambda logits, inputs, new: Outputs(logits, {"inputs": inputs}), True, False),
    "logits": (lambda logits, inputs, new: logits, False, False),
    "a pair": (lambda logits, inputs, new: (logits, {"inputs": inputs}), True, False),
}


@pytest.mark.parametrize("state", [{}, COUNT], ids=["no state", "a state"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_understood(form, state):
    result, has_features, is_new = FORMS[form]
    outputs, after = run(network(result), PARAMS, state, INPUTS, train=True, rng=jax.random.key(0))
    assert isinstance(outputs, Outputs)
    chex.assert_trees_all_equal(outputs, Outputs(LOGITS, FEATURES if has_features else {}))
    chex.assert_trees_all_equal(after, jax.tree.map(lambda leaf: leaf + 1, state) if is_new else state)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_and_a_teacher_of_each_form_train_alike(form):
    result, has_features, _ = FORMS[form]
    terms = {"labels": (1.0, cross_entropy), "soft": (1.0, on_logits(soft_target_kl))}
    goal = weighted_sum(**terms, **({"same": (1.0, on_feature(hint, "inputs"))} if has_features else {}))
    batch, weights = {"inputs": INPUTS, "labels": jnp.array([0, 1, 0, 1])}, Weights(PARAMS, COUNT)

    def trained(form):
        apply = network(FORMS[form][0])
        state = init_state(Weights(PARAMS / 10, COUNT), optax.sgd(0.1), jax.random.key(0))
        return make_train_step(apply, apply, optax.sgd(0.1))(state, weights, goal, batch)

    state, metrics = trained(form)
    expected, of_it = trained("outputs and state")
    chex.assert_trees_all_equal(state.params, expected.params)
    chex.assert_trees_all_equal(metrics, {name: of_it[name] for name in metrics})
    sums = make_eval_step(network(result))(weights, batch)
    assert sums["correct"] == (LOGITS.argmax(-1) == batch["labels"]).sum()


def grown(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, {**model_state, "mean": jnp.zeros(2)}


def grown_by_a_number(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, {**model_state, "mean": 0.0}


def test_a_model_state_that_has_grown_is_refused():
    """And not taken for features beside logits."""
    for state in ({}, COUNT):
        for apply in (grown, grown_by_a_number):
            with pytest.raises(
                ValueError,
                match=r"grown\w* must return a model_state of the structure that it was given, .* got .*'mean'",
            ):
                run(apply, PARAMS, state, INPUTS, train=True)


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, inputs: inputs @ params,
        lambda params, model_state, inputs: inputs @ params,
        lambda params, model_state, inputs, *, train: inputs @ params,
        lambda params, model_state, inputs, *, train, rng, more: inputs @ params,
    ],
)
def test_a_function_of_another_signature_is_told_what_an_apply_is(apply):
    message = (
        r"An Apply must be a function \(params, model_state, inputs, \*, train, rng=None\) -> .*; .*lambda.* is none: "
    )
    with pytest.raises(ValueError, match=message):
        run(apply, PARAMS, {}, INPUTS, train=True)
    state = init_state(Weights(PARAMS, {}), optax.sgd(0.1), jax.random.key(0))
    for student, teacher in ((apply, None), (network(FORMS["logits"][0]), apply)):
        step = make_train_step(student, teacher, optax.sgd(0.1))
        with pytest.raises(ValueError, match=message):
            step(state, Weights(PARAMS, {}), weighted_sum(soft=(1.0, on_logits(soft_target_kl))), {"inputs": INPUTS})


def test_objects_and_partial_functions_are_applies_too():
    class Network:
        def __call__(self, params, model_state, inputs, *, train, rng=None):
            return inputs @ params

        def method(self, params, model_state, inputs, **how):
            return inputs @ params

    def scaled(by, params, model_state, inputs, *, train, rng=None):
        return by * inputs @ params

    for apply in (
        Network(),
        Network().method,
        partial(scaled, 1.0),
        jax.jit(network(FORMS["logits"][0]), static_argnames="train"),
    ):
        np.testing.assert_allclose(run(apply, PARAMS, {}, INPUTS, train=False)[0].logits, LOGITS)


@pytest.mark.parametrize(
    ("result", "got"),
    [(None, "NoneType"), ([1.0, 2.0], "list"), ({"scores": LOGITS}, "dict"), (((LOGITS, LOGITS), COUNT), "tuple")],
)
def test_what_is_no_outputs_is_named(result, got):
    def odd(params, model_state, inputs, *, train, rng=None):
        return result

    with pytest.raises(
        ValueError, match=rf"odd must return logits .*, a pair .*, Outputs, .*; its logits were {got}\."
    ):
        run(odd, PARAMS, COUNT, INPUTS, train=False)


def test_features_without_names_are_no_model_state():
    """Logits and an array beside them: the array would have become the model_state."""

    def pair(params, model_state, inputs, *, train, rng=None):
        return LOGITS, LOGITS

    with pytest.raises(ValueError, match=r"pair must return its model_state second, .* or features by name"):
        run(pair, PARAMS, {"count": COUNT}, INPUTS, train=True)


def test_a_cached_teacher_may_be_outputs_logits_or_a_pair():
    said = dense.teacher(*teacher_weights(), dense.batch()["inputs"], train=False)[0]
    step = jax.jit(make_train_step(dense.student(), None, dense.optimizer()))
    state, batch = fresh_state(), dense.batch()
    expected = step(state, None, objective(), {**batch, "teacher": said})
    pair = step(state, None, objective(), {**batch, "teacher": (said.logits, said.features)})
    chex.assert_trees_all_equal((pair[0].params, pair[1]), (expected[0].params, expected[1]))
    with pytest.raises(ValueError, match=r'batch\["teacher"\] must return logits .*; its logits were list'):
        step(state, None, objective(), {**batch, "teacher": [said.logits, said.features]})
    soft = weighted_sum(soft=(1.0, on_logits(soft_target_kl)))
    bare = step(state, None, soft, {**batch, "teacher": said.logits})
    whole = step(state, None, soft, {**batch, "teacher": said})
    chex.assert_trees_all_equal((bare[0].params, bare[1]), (whole[0].params, whole[1]))
    evaluate = make_eval_step(dense.student())
    for cached in (said, said.logits, (said.logits, {})):
        sums = evaluate(Weights(state.params, state.model_state), {**batch, "teacher": cached})
        assert 0 < sums["agreeing"] < 16


def test_features_stay_by_name():
    outputs = outputs_of((LOGITS, FEATURES), "it")
    assert outputs.features == FEATURES
    assert outputs_of(outputs, "it").features == FEATURES
