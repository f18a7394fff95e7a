"""What an adapted network may return and what is refused: results, modules, states and keys that do not fit."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from frameworks import INPUTS, EquinoxNet, LinenNet, nnx_student, same

from kdjax import Outputs, Weights
from kdjax.networks import from_equinox, from_linen, from_nnx


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
    [(lambda x: x[0], r"of shape \(3,\)"), (lambda x: (x, x), "tuple"), (lambda x: {"scores": x}, "dict")],
)
def test_any_other_result_is_named(says, got):
    with pytest.raises(ValueError, match=rf"Fixed must return logits \[batch, classes\].*its logits were {got}"):
        from_linen(Fixed(says))[1]({}, {}, jnp.ones((2, 3)), train=False)


def test_linen_errors():
    class TwoInputs(nn.Module):
        def __call__(self, x, mask, train=False):
            return x

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
