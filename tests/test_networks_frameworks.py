"""Keras on JAX, and pairs of plain functions as Haiku's: right, trained in training mode, and the model left as it was."""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.networks import from_equinox, from_haiku, from_keras, from_linen, into_keras
from kdjax.training import jit_step, weights_of

os.environ.setdefault("KERAS_BACKEND", "jax")
INPUTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
BATCH = {"inputs": INPUTS, "labels": (np.arange(12) % 3).astype(np.int32)}
GOAL = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl)))


@pytest.fixture
def keras():
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases by it
        yield pytest.importorskip("keras", reason="Keras is not installed")


def keras_model(keras, rate=0.5, activation=None):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(rate, seed=1),
            layers.Dense(3, activation=activation),
        ]
    )


class Pair(NamedTuple):
    init: Any
    apply: Any


def haiku_pair():
    """As ``haiku.transform_with_state`` of a network with dropout and batch normalisation."""

    def init(rng, inputs, is_training):
        assert not is_training
        return {"w": jax.random.normal(rng, (4, 3))}, {"mean": jnp.zeros(3)}

    def apply(params, state, rng, inputs, is_training):
        logits = inputs @ params["w"]
        if not is_training:
            return logits - state["mean"][None], state
        logits = logits - logits.mean(0, keepdims=True)
        kept = jax.random.bernoulli(rng, 0.5, logits.shape)
        return jnp.where(kept, 2 * logits, 0.0), {"mean": 0.9 * state["mean"] + 0.1 * (inputs @ params["w"]).mean(0)}

    return Pair(init, apply)


def adapted(kind, keras):
    if kind == "keras":
        return from_keras(keras_model(keras))
    init, apply = from_haiku(haiku_pair(), modes={"is_training": True})
    return init(jax.random.key(0), INPUTS), apply


each_kind = pytest.mark.parametrize("kind", ["keras", "haiku"])


@each_kind
def test_a_student_with_dropout_and_batch_normalisation_is_really_in_training_mode(kind, keras):
    weights, apply = adapted(kind, keras)
    run = lambda key, train: apply(*weights, INPUTS, train=train, rng=jax.random.key(key))  # noqa: E731
    (first, state), (again, _), (other, _) = (run(key, True) for key in (1, 1, 2))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert (first.logits != other.logits).any()
    moved = jax.tree.map(lambda old, new: (old != new).any(), weights.model_state, state)
    assert any(jax.tree.leaves(moved))
    (still, same), (also, _) = run(1, False), run(2, False)
    np.testing.assert_array_equal(still.logits, also.logits)
    chex.assert_trees_all_equal(same, weights.model_state)


@each_kind
def test_it_teaches_and_learns_in_the_step(kind, keras):
    weights, apply = adapted(kind, keras)
    optimizer = optax.adam(1e-2)
    step = jit_step(make_train_step(apply, apply, optimizer))
    state = init_state(weights, optimizer, jax.random.key(3))
    before = jax.tree.map(np.asarray, weights)
    for _ in range(30):
        state, metrics = step(state, weights, GOAL, BATCH)
    assert step._cache_size() == 1
    assert np.isfinite(metrics["loss"])
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, weights))
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), weights_of(state).params, weights.params)))


def test_a_keras_model_infers_as_it_does_itself_and_takes_its_weights_back(keras):
    model = keras_model(keras)
    weights, apply = from_keras(model)
    outputs, _ = jax.jit(lambda weights: apply(*weights, INPUTS, train=False))(weights)
    np.testing.assert_allclose(outputs.logits, model(INPUTS, training=False), rtol=1e-5, atol=1e-6)
    doubled = jax.tree.map(lambda array: 2 * array, weights.params)
    moved = jax.tree.map(lambda array: array + 0.5, weights.model_state)
    into_keras(model, Weights(doubled, moved))
    outputs, _ = apply(doubled, moved, INPUTS, train=False)
    np.testing.assert_allclose(outputs.logits, model(INPUTS, training=False), rtol=1e-5, atol=1e-6)


def test_a_keras_model_whose_variables_have_one_path_takes_each_back(keras):
    class Twins(keras.Model):
        def __init__(self):
            super().__init__(name="twins")
            self.first, self.second = (keras.layers.Dense(4, name="dense") for _ in range(2))

        def call(self, inputs, training=False):
            return self.second(self.first(inputs))

    model = Twins()
    model(INPUTS)
    weights, apply = from_keras(model)
    assert len(weights.params) == 4
    changed = {name: array + number for number, (name, array) in enumerate(weights.params.items())}
    into_keras(model, Weights(changed, weights.model_state))
    outputs, _ = apply(changed, weights.model_state, INPUTS, train=False)
    np.testing.assert_allclose(outputs.logits, model(INPUTS), rtol=1e-5, atol=1e-6)
    before = [np.asarray(variable.value) for variable in model.variables]
    for wrong in ({name: array[:1] for name, array in changed.items()}, dict(list(changed.items())[1:])):
        with pytest.raises(ValueError, match=r"weights must be of this model; in params, .*/(bias|kernel) is "):
            into_keras(model, Weights(wrong, weights.model_state))
    for one, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(one, variable.value)


def test_keras_layers_that_are_frozen_are_no_params(keras):
    model = keras_model(keras)
    model.layers[0].trainable = False
    weights, _ = from_keras(model)
    assert not any("dense/" in name and "dense_" not in name for name in weights.params if name.startswith("dense/"))
    assert len(weights.params) == 4  # the normalisation's two, the last layer's two


def test_what_keras_cannot_be_is_said(keras):
    with pytest.raises(ValueError, match="its last layer makes probabilities, by softmax"):
        from_keras(keras_model(keras, activation="softmax"))
    with pytest.raises(ValueError, match="model must be built"):
        from_keras(keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"model must be a keras\.Model; got Dense"):
        from_keras(keras.layers.Dense(3))
    weights, apply = from_keras(keras_model(keras))
    with pytest.raises(ValueError, match="rng must be a key while training a Keras model that draws noise"):
        apply(*weights, INPUTS, train=True)


def test_a_pair_without_a_state():
    pair = Pair(lambda rng, inputs: {"w": jnp.ones((4, 3))}, lambda params, rng, inputs: inputs @ params["w"])
    init, apply = from_haiku(pair, modes={})
    weights = init(jax.random.key(0), INPUTS)
    outputs, state = apply(*weights, INPUTS, train=True, rng=jax.random.key(0))
    assert (outputs.logits.shape, state) == ((12, 3), {})
    with pytest.raises(ValueError, match="transformed must have functions init and apply; got int"):
        from_haiku(3, modes={})
    without = Pair(pair.init, lambda params, *arguments, **named: arguments[0] @ params["w"])  # as of without_apply_rng
    with pytest.raises(
        ValueError, match=r"transformed must take a key, .*; its apply takes \(params, arguments, named\)"
    ):
        from_haiku(without, modes={})
    named = Pair(pair.init, lambda params, key, inputs: inputs @ params["w"])
    assert from_haiku(named, modes={})[1](*weights, INPUTS, train=True)[0].logits.shape == (12, 3)


# What a network may return


@jax.tree_util.register_dataclass
@dataclass
class ModelOutput:
    """As the usual transformers return it."""

    logits: Any
    hidden_states: Any = None
    attentions: Any = None


def hidden(inputs):
    return tuple(inputs * factor for factor in (1.0, 2.0))


RETURNED = {
    "a dataclass": lambda z, x: ModelOutput(z, hidden(x)),
    "a dict": lambda z, x: {"logits": z, "hidden_states": hidden(x), "past": None},
    "Outputs": lambda z, x: Outputs(z, {"hidden_states_0": x, "hidden_states_1": 2.0 * x}),
}


@pytest.mark.parametrize("form", RETURNED)
@pytest.mark.parametrize("positions", [(), (5,)])
def test_what_transformers_return_has_its_features_by_name(form, positions):
    import equinox as eqx
    from flax import linen as nn

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return RETURNED[form](nn.Dense(3)(x), x)

    class Own(eqx.Module):
        w: jax.Array

        def __call__(self, x, *, key=None):
            return RETURNED[form](x @ self.w, x)

    inputs = jnp.ones((2, *positions, 4))
    init, apply = from_linen(Linen())
    own, own_apply = from_equinox(Own(jnp.ones((4, 3))))
    plain = lambda params, model_state, inputs, *, train, rng=None: RETURNED[form](inputs @ params, inputs)  # noqa: E731
    for weights, run in ((init(jax.random.key(0), inputs), apply), (own, own_apply)):
        outputs, _ = run(*weights, inputs, train=False)
        assert outputs.logits.shape == (2, *positions, 3)
        np.testing.assert_array_equal(outputs.features["hidden_states_1"], 2 * inputs)
        assert set(outputs.features) == {"hidden_states_0", "hidden_states_1"}
    step = make_train_step(plain, None, optax.sgd(0.1))
    state = init_state(Weights(jnp.ones((4, 3)), {}), optax.sgd(0.1), jax.random.key(0))
    labels = jnp.zeros((2, *positions), jnp.int32)
    _, metrics = jax.jit(step)(
        state, None, weighted_sum(labels=(1.0, cross_entropy)), {"inputs": inputs, "labels": labels}
    )
    assert np.isfinite(metrics["loss"])
