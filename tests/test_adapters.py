import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax._types import Outputs, Weights
from kdjax.adapters import from_equinox, from_linen, from_nnx
from kdjax.losses import soft_target_kl
from kdjax.training import init_state, make_train_step

CLASSES = 5
INPUTS = jax.random.normal(jax.random.key(0), (16, 6, 6, 1))
BATCH = {"inputs": INPUTS, "labels": jnp.arange(16) % CLASSES}


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(12)(x.reshape(x.shape[0], -1))
        embedding = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.3, deterministic=not train)(embedding)
        return nn.Dense(CLASSES)(x), {"embedding": embedding}


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(36, 12, rngs=rngs), nnx.Linear(12, CLASSES, rngs=rngs)])
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        embedding = nnx.relu(self.norm(self.layers[0](x.reshape(x.shape[0], -1))))
        return Outputs(self.layers[1](self.dropout(embedding)), {"embedding": embedding})


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, stride=2, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch", momentum=0.9)
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(16, CLASSES, key=second)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.conv(jnp.transpose(x, (2, 0, 1))), state)
        embedding = jax.nn.relu(x).ravel()
        return (self.head(self.dropout(embedding, key=key)), {"embedding": embedding}), state


def linen_student():
    init, apply = from_linen(LinenNet())
    return init(jax.random.key(1), INPUTS), apply


def nnx_student():
    return from_nnx(NnxNet(nnx.Rngs(1)))


def equinox_student():
    return from_equinox(*eqx.nn.make_with_state(EquinoxNet)(jax.random.key(1)))


every_framework = pytest.mark.parametrize("make_student", [linen_student, nnx_student, equinox_student])


def linen_teacher():
    init, apply = from_linen(LinenNet())
    return init(jax.random.key(7), INPUTS), apply


def numbers(tree):
    return jax.tree.map(np.array, tree)


def differ(first, second):
    return any(bool(np.any(a != b)) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


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
def test_noise_is_a_function_of_the_key_and_only_while_training(make_student):
    weights, apply = make_student()
    first, other = jax.random.key(3), jax.random.key(4)
    same(apply(*weights, INPUTS, train=True, rng=first), apply(*weights, INPUTS, train=True, rng=first))
    assert differ(
        apply(*weights, INPUTS, train=True, rng=first)[0].logits,
        apply(*weights, INPUTS, train=True, rng=other)[0].logits,
    )
    quiet = apply(*weights, INPUTS, train=False)
    same(quiet, apply(*weights, INPUTS, train=False, rng=first))
    same(quiet[1], weights.model_state)


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
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))


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


class LinenNoise(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(x)


class EquinoxNoise(eqx.Module):
    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key):
        return self.dropout(x, key=key)


class NnxNoise(nnx.Module):
    """Two layers with a stream each, and two more stacked into one, whose stream's keys have shape [2]."""

    def __init__(self):
        stack = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs)))
        self.stacked = stack(nnx.Rngs(0))
        self.first, self.second = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        stacked = nnx.vmap(lambda dropout, x: dropout(x), in_axes=(0, None))(self.stacked, x)
        return stacked.sum(axis=0), {"single": self.first(x) + self.second(x)}


def noise(framework, axis_name):
    if framework == "linen":
        apply = from_linen(LinenNoise(), axis_name=axis_name)[1]
    elif framework == "nnx":
        apply = from_nnx(NnxNoise(), axis_name=axis_name)[1]
    else:
        apply = from_equinox(EquinoxNoise(eqx.nn.Dropout(0.5)), axis_name=axis_name)[1]
    model_state = () if framework == "equinox" else {}
    params = EquinoxNoise(eqx.nn.Dropout(None)) if framework == "equinox" else {}
    return lambda x: apply(params, model_state, x, train=True, rng=jax.random.key(5))[0].logits


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_devices_draw_their_own_noise_where_the_axis_is_named(framework):
    ones = jnp.ones((2, 4, 32))
    first, second = jax.vmap(noise(framework, None))(ones)
    same(first, second)
    first, second = jax.vmap(noise(framework, "data"), axis_name="data")(ones)
    assert differ(first, second)
    if framework == "equinox":  # keyed per example: two devices draw what one would
        same(jnp.concatenate([first, second]), noise(framework, None)(ones.reshape(8, 32)))


def test_nnx_streams_of_one_model_draw_differently():
    apply = from_nnx(NnxNoise())[1]
    outputs, _ = apply({}, {}, jnp.ones((4, 64)), train=True, rng=jax.random.PRNGKey(0))  # raw keys do as well
    # 2.0: dropped by one of the two layers and kept by the other
    assert set(np.unique(outputs.logits)) == {0.0, 2.0, 4.0}
    assert set(np.unique(outputs.features["single"])) == {0.0, 2.0, 4.0}


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


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Fixed(nn.Module):
    says: object

    def __call__(self, x):
        return self.says(x)


@pytest.mark.parametrize(
    ("says", "features"),
    [
        (lambda x: x, {}),
        (lambda x: (x, {"here": x}), {"here"}),
        (lambda x: Outputs(x, {"here": x}), {"here"}),
    ],
)
def test_a_network_may_return_logits_a_pair_or_outputs(says, features):
    init, apply = from_linen(Fixed(says))
    x = jnp.ones((2, 3))
    weights = init(jax.random.key(0), x)
    assert weights == Weights({}, {})
    outputs, _ = apply(*weights, x, train=True, rng=jax.random.key(0))
    assert isinstance(outputs, Outputs)
    assert set(outputs.features) == set(features)
    same(outputs.logits, x)


@pytest.mark.parametrize(
    ("says", "got"),
    [(lambda x: x[0], r"of shape \(3,\)"), (lambda x: (x, x), "tuple"), (lambda x: {"logits": x}, "dict")],
)
def test_any_other_result_is_named(says, got):
    with pytest.raises(ValueError, match=rf"Fixed must return logits \[batch, classes\].*its logits were {got}"):
        from_linen(Fixed(says))[1]({}, {}, jnp.ones((2, 3)), train=False)


def test_linen_errors():
    class Deterministic(nn.Module):
        def __call__(self, x, deterministic=True):
            return x

    class TwoInputs(nn.Module):
        def __call__(self, x, mask, train=False):
            return x

    with pytest.raises(
        ValueError, match=r"Deterministic also takes deterministic. Wrap it in a module that takes train"
    ):
        from_linen(Deterministic())
    with pytest.raises(ValueError, match="TwoInputs also takes mask"):
        from_linen(TwoInputs())
    with pytest.raises(ValueError, match=r"module must be a flax.linen.Module, with init and apply; got dict"):
        from_linen({})


def test_nnx_errors():
    with pytest.raises(ValueError, match=r"model must be a flax.nnx.Module; got LinenNet"):
        from_nnx(LinenNet())
    weights, apply = nnx_student()
    with pytest.raises(ValueError, match="rng must be a key while training NnxNet, which draws noise; got None"):
        apply(*weights, INPUTS, train=True)


def test_a_flax_whose_nnx_does_not_fit_jax_is_named(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "flax.nnx":
                raise AttributeError("module 'jax' has no attribute 'gone'")

    monkeypatch.delattr(sys.modules["flax"], "nnx")
    monkeypatch.delitem(sys.modules, "flax.nnx")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"flax [\d.]+ with jax [\d.]+ has no working one: .*no attribute 'gone'"):
        from_nnx(object())


def test_equinox_errors():
    class Keyless(eqx.Module):
        def __call__(self, x):
            return x

    model, _ = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(1))
    with pytest.raises(ValueError, match="whose __call__ takes key; Keyless does not"):
        from_equinox(Keyless())
    with pytest.raises(ValueError, match="state must be given beside a model that has one"):
        from_equinox(model)
    with pytest.raises(ValueError, match=r"state must be the equinox.nn.State of eqx.nn.make_with_state; got dict"):
        from_equinox(model, {})
