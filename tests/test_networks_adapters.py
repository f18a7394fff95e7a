"""A network of any framework is weights and an `Apply`: it says what its own model says, learns, and is transformed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from frameworks import CLASSES, INPUTS, EquinoxNet, LinenNet, NnxNet, differ, every_framework, linen_student, same

from kdjax import Outputs, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.networks import from_equinox, from_linen, from_nnx
from kdjax.training import jit_step

BATCH = {"inputs": INPUTS, "labels": jnp.arange(16) % CLASSES}


def linen_teacher():
    init, apply = from_linen(LinenNet())
    return jax.jit(init)(jax.random.key(7), INPUTS), apply


def numbers(tree):
    return jax.tree.map(np.array, tree)


def distil(student, teacher, steps):
    """The state and the losses after `steps`, with the state donated and one compilation."""
    weights, apply = student
    teacher_weights, teacher_apply = teacher
    optimizer = optax.adam(1e-2)
    step = jax.jit(make_train_step(apply, teacher_apply, optimizer), donate_argnums=0)
    objective = weighted_sum(labels=(0.1, cross_entropy), soft=(0.9, on_logits(soft_target_kl, temperature=4.0)))
    state = init_state(weights, optimizer, jax.random.key(2))
    # Adam's moments have the shape of what the optimizer sees: the params alone.
    assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(weights.params)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, teacher_weights, objective, BATCH)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return state, losses


@every_framework
def test_a_student_of_each_framework_learns_from_a_linen_teacher(make_student):
    weights, apply = make_student()
    teacher, teacher_apply = linen_teacher()
    teacher_before, state_before = numbers(teacher), numbers(weights.model_state)
    state, losses = distil((weights, apply), (teacher, teacher_apply), steps=30)
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    same(numbers(teacher), teacher_before)
    assert jax.tree.structure(state.model_state) == jax.tree.structure(state_before)
    assert differ(state.model_state, state_before)


@every_framework
def test_weights_are_plain_arrays_that_every_transformation_takes(make_student):
    weights, apply = make_student()
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in jax.tree.leaves(weights))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(weights.params))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, weights)
    assert jax.tree.structure(doubled) == jax.tree.structure(weights)

    def loss(params):
        return jnp.mean(apply(params, weights.model_state, INPUTS, train=False)[0].logits ** 2)

    gradients = jax.jit(jax.grad(loss))(weights.params)
    assert jax.tree.structure(gradients) == jax.tree.structure(weights.params)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradients))


def test_linen_says_what_the_module_says():
    weights, apply = linen_student()
    variables = {"params": weights.params, **weights.model_state}
    key = jax.random.key(3)
    outputs, model_state = apply(*weights, INPUTS, train=True, rng=key)
    (logits, features), changed = LinenNet().apply(
        variables, INPUTS, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    same((outputs, model_state), (Outputs(logits, features), changed))
    assert list(weights.model_state) == ["batch_stats"]


def test_nnx_says_what_the_model_says_and_leaves_it_alone():
    model = NnxNet(nnx.Rngs(1))
    before = numbers(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    weights, apply = from_nnx(model)
    _, model_state = apply(*weights, INPUTS, train=True, rng=jax.random.key(3))
    outputs, _ = apply(*weights, INPUTS, train=False)
    distil((weights, apply), linen_teacher(), steps=1)  # donates the weights, and must not take the model's arrays
    same(numbers(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))), before)
    assert (model.norm.use_running_average, model.dropout.deterministic) == (False, False)
    model.eval()
    same(outputs, model(INPUTS))
    model.train()
    model(INPUTS)
    same(model_state, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def test_equinox_says_what_the_model_says_and_leaves_it_alone():
    model, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(1))
    weights, apply = from_equinox(model, state)
    key = jax.random.key(3)
    trained, model_state = apply(*weights, INPUTS, train=True, rng=key)
    outputs, _ = apply(*weights, INPUTS, train=False)
    distil((weights, apply), linen_teacher(), steps=1)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(16)])
    axes = {"in_axes": (0, None, 0), "out_axes": (0, None), "axis_name": "batch"}
    (logits, features), new = jax.vmap(lambda x, state, key: model(x, state, key=key), **axes)(INPUTS, state, keys)
    np.testing.assert_allclose(trained.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(trained.features["embedding"], features["embedding"], rtol=1e-6)
    same(model_state, tuple(jax.tree.leaves(new)))
    quiet = eqx.nn.inference_mode(model)
    (logits, _), _ = jax.vmap(lambda x, state, key: quiet(x, state, key=key), **axes)(INPUTS, state, keys)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)


def test_nnx_intermediates_are_no_model_state():
    class Recording(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.seen = nnx.Intermediate(x)
            return self.linear(x)

    model = Recording()
    model(jnp.ones((1, 4)))
    weights, apply = from_nnx(model)
    assert weights.model_state == {}
    assert apply(*weights, jnp.ones((2, 4)), train=True)[1] == {}


@pytest.mark.parametrize("only_in_training", [False, True])
def test_what_a_linen_module_sows_is_replaced_and_does_not_grow(only_in_training):
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x.reshape(len(x), -1)))
            if train or not only_in_training:
                self.sow("losses", "size", jnp.mean(hidden**2))
                self.sow("batch_stats", "size", jnp.mean(hidden))  # beside real state
            return nn.Dense(CLASSES)(hidden)

    init, apply = from_linen(Sowing())
    weights = init(jax.random.key(0), INPUTS)
    step = jit_step(make_train_step(apply, None, optax.sgd(0.1)))
    state, before = init_state(weights, optax.sgd(0.1), jax.random.key(1)), weights.model_state
    for _ in range(3):
        state, _ = step(state, None, weighted_sum(labels=(1.0, cross_entropy)), BATCH)
    assert jax.tree.structure(state.model_state) == jax.tree.structure(before)
    assert step._cache_size() == 1
    assert ("losses" in before) != only_in_training
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), before, state.model_state)
    assert jax.tree.all(moved)


class Aux(nnx.Variable):
    """A kind of variable of one's own, that is sown into."""


class NnxSowing(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(36, CLASSES, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, x):
        logits = self.norm(self.dense(x.reshape(len(x), -1)))
        self.sow(Aux, "size", jnp.mean(logits**2))
        return logits


@pytest.mark.filterwarnings("ignore:Using .Module.sow:DeprecationWarning")  # flax 0.12 wants nnx.capture around it
@pytest.mark.parametrize("called_before", [False, True])
def test_what_an_nnx_model_sows_into_its_own_variables_does_not_grow(called_before):
    model = NnxSowing()
    if called_before:
        model(INPUTS)
    weights, apply = from_nnx(model)
    step = jit_step(make_train_step(apply, None, optax.sgd(0.1)))
    state, before = init_state(weights, optax.sgd(0.1), jax.random.key(1)), weights.model_state
    for _ in range(3):
        state, _ = step(state, None, weighted_sum(labels=(1.0, cross_entropy)), BATCH)
    assert jax.tree.structure(state.model_state) == jax.tree.structure(before)
    assert step._cache_size() == 1
    assert ("size" in before) == called_before
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), before, state.model_state)
    assert jax.tree.all(moved)


class LinenTokens(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)((nn.Embed(50, 8)(inputs["ids"]) * inputs["mask"][..., None]).sum(-2))


class NnxTokens(nnx.Module):
    def __init__(self):
        self.embed, self.dense = nnx.Embed(50, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def __call__(self, inputs):
        return self.dense((self.embed(inputs["ids"]) * inputs["mask"][..., None]).sum(-2))


class EquinoxTokens(eqx.Module):
    embed: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __call__(self, inputs, *, key):
        return self.dense((jax.vmap(self.embed)(inputs["ids"]) * inputs["mask"][:, None]).sum(-2))


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_inputs_may_be_arrays_by_name(framework):
    inputs = {"ids": np.arange(24, dtype=np.int32).reshape(4, 6), "mask": np.ones((4, 6), np.float32)}
    if framework == "linen":
        init, apply = from_linen(LinenTokens())
        weights = init(jax.random.key(0), inputs)
    elif framework == "nnx":
        weights, apply = from_nnx(NnxTokens())
    else:
        keys = jax.random.split(jax.random.key(0))
        weights, apply = from_equinox(
            EquinoxTokens(eqx.nn.Embedding(50, 8, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1]))
        )
    step = jax.jit(make_train_step(apply, None, optax.sgd(0.1)))
    state = init_state(weights, optax.sgd(0.1), jax.random.key(1))
    goal, data = weighted_sum(labels=(1.0, cross_entropy)), {"inputs": inputs, "labels": np.array([0, 1, 2, 0])}
    losses = []
    for _ in range(5):
        state, metrics = step(state, None, goal, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    # What the mask hides changes nothing.
    hidden = inputs | {"mask": np.float32(np.arange(24).reshape(4, 6) % 6 < 4)}
    other = hidden | {"ids": np.where(hidden["mask"] > 0, inputs["ids"], 49)}
    same(apply(*weights, hidden, train=False)[0].logits, apply(*weights, other, train=False)[0].logits)


def test_a_variable_that_is_a_tuple_is_kept_from_pass_to_pass():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            pair = self.variable("stats", "pair", lambda: (jnp.zeros(2), jnp.ones(2)))
            if not self.is_initializing():
                pair.value = (pair.value[0] + 1.0, pair.value[1])
            return nn.Dense(2)(x.reshape(len(x), -1))

    init, apply = from_linen(Counting())
    params, state = init(jax.random.key(0), INPUTS)
    for _ in range(3):
        _, state = apply(params, state, INPUTS, train=True)
    np.testing.assert_array_equal(state["stats"]["pair"], [[3.0, 3.0], [1.0, 1.0]])
