"""A network that trains really is in training mode, whatever its argument for that is called; or an error asks for it."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from frameworks import differ, same

from kdjax.networks import from_equinox, from_linen, from_nnx
from kdjax.networks.adapters import TRAINING

INPUTS = jax.random.normal(jax.random.key(0), (32, 8))


def linen(name, default, while_training=True):
    """A Linen module with dropout whose mode is set by an argument `name`, and its adapter's result."""

    def call(self, x, mode):
        return nn.Dropout(0.5, deterministic=mode != while_training)(nn.Dense(3)(x))

    # Linen wraps the methods that a class has when it is made.
    method = nn.compact(with_argument(call, name, default))
    Net = types.new_class("Net", (nn.Module,), exec_body=lambda namespace: namespace.update(__call__=method))
    return lambda **modes: initialised(*from_linen(Net(), **modes))


def initialised(init, apply):
    return init(jax.random.key(0), INPUTS), apply


def of_nnx(name, default, while_training=True):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense, self.dropout = nnx.Linear(8, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def call(self, x, mode):
        return self.dropout(self.dense(x), deterministic=mode != while_training)

    Net.__call__ = with_argument(call, name, default)
    return lambda **modes: from_nnx(Net(nnx.Rngs(0)), **modes)


def equinox(name, default, while_training=True):
    class Net(eqx.Module):
        dense: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        __call__ = with_argument(
            lambda self, x, mode, key: self.dropout(self.dense(x), key=key, inference=mode != while_training),
            name,
            default,
            key=True,
        )

    dense, dropout = eqx.nn.Linear(8, 3, key=jax.random.key(0)), eqx.nn.Dropout(0.5)
    return lambda **modes: from_equinox(Net(dense, dropout), **modes)


def with_argument(call, name, default, *, key=False):
    """`call` as a method whose signature names its mode `name`; only source can give a parameter a name of our choice."""
    own, handed = (", *, key=None", ", key") if key else ("", "")
    scope = {"call": call, "default": default}
    exec(f"def method(self, x, {name}=default{own}): return call(self, x, {name}{handed})", scope)
    return scope["method"]


def acts_in_two_modes(weights, apply):
    first, second = (apply(*weights, INPUTS, train=True, rng=jax.random.key(n))[0].logits for n in (1, 2))
    quiet = apply(*weights, INPUTS, train=False)[0].logits
    assert differ(first, quiet)
    assert differ(first, second)
    same(quiet, apply(*weights, INPUTS, train=False)[0].logits)
    assert bool((first == 0).any())
    assert not bool((quiet == 0).any())


every_framework = pytest.mark.parametrize("make", [linen, of_nnx, equinox])


@every_framework
@pytest.mark.parametrize(("name", "while_training"), TRAINING.items())
@pytest.mark.parametrize("default_is_training", [True, False])
def test_the_usual_names_are_known(make, name, while_training, default_is_training):
    default = while_training if default_is_training else not while_training
    acts_in_two_modes(*make(name, default, while_training)())


@every_framework
def test_another_name_is_asked_for(make):
    with pytest.raises(ValueError, match=r"modes must tell whether stochastic of Net.__call__ says that .* got None"):
        make("stochastic", False)()
    acts_in_two_modes(*make("stochastic", False)(modes={"stochastic": True}))


@every_framework
def test_a_mode_may_be_a_word(make):
    with pytest.raises(ValueError, match=r"modes must tell whether mode of Net.__call__"):
        make("mode", "eval", "fit")()
    acts_in_two_modes(*make("mode", "eval", "fit")(modes={"mode": ("fit", "eval")}))


@every_framework
def test_a_bool_that_is_no_mode_stays_at_its_default(make):
    weights, apply = make("with_extras", False)(modes={})
    same(*(apply(*weights, INPUTS, train=False)[0].logits == 0 for _ in range(2)))


@every_framework
def test_a_mode_that_the_network_lacks_is_named(make):
    with pytest.raises(ValueError, match=r"modes must name arguments of Net.__call__; it has no 'training'"):
        make("train", False)(modes={"training": True})


@pytest.mark.parametrize("name", ["train", "training", "deterministic"])
def test_a_mode_that_is_a_field_is_not_left_as_it_is(name):
    """Training and inference would be one: no noise, and statistics that stay."""
    fields = {"__annotations__": {name: bool}, name: False, "__call__": nn.compact(lambda self, x: nn.Dense(3)(x))}
    module = type("Fixed", (nn.Module,), fields)()
    with pytest.raises(ValueError, match=rf"modes cannot set {name}, which Fixed has as a field: it would be False"):
        from_linen(module)
    from_linen(module, modes={})

    class Own(eqx.Module):
        training: bool = False

        def __call__(self, x, *, key=None):
            return x

    with pytest.raises(ValueError, match="modes cannot set training, which Own has as a field"):
        from_equinox(Own())


def test_an_attribute_of_an_nnx_model_is_set_with_the_mode():
    class Part(nnx.Module):
        def __init__(self):
            self.training = True

        def __call__(self, x):
            return 2 * x if self.training else x

    class Whole(nnx.Module):
        def __init__(self):
            self.part, self.training = Part(), False

        def __call__(self, x):
            return self.part(x) + 10 * self.training

    model = Whole()
    weights, apply = from_nnx(model)
    x = jnp.ones((1, 3))
    assert apply(*weights, x, train=True)[0].logits.tolist() == [[12.0] * 3]
    assert apply(*weights, x, train=False)[0].logits.tolist() == [[1.0] * 3]
    assert (model.training, model.part.training) == (False, True)


def test_an_attribute_of_such_a_name_that_is_no_flag_stays_as_it_is():
    class Own(nnx.Module):
        def __init__(self):
            self.inference, self.is_train = 2.0, {"epochs": 3}

        def enable_dropout(self, x):
            return x + self.is_train["epochs"]

        def __call__(self, x):
            return self.enable_dropout(self.inference * x)

    weights, apply = from_nnx(Own())
    for train in (True, False):
        assert apply(*weights, jnp.ones((1, 3)), train=train)[0].logits.tolist() == [[5.0] * 3]


def test_a_network_without_modes_needs_none():
    init, apply = from_linen(nn.Dense(3))
    same(apply(*init(jax.random.key(0), INPUTS), jnp.ones((2, 8)), train=True)[0].logits.shape, (2, 3))
