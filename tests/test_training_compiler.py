"""Options of XLA's compiler: which, on which jaxlib and devices; they reach the compiler, and change rounding alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.caching import cache_teacher
from kdjax.training import compiler, compiler_options, jit_step, make_epoch, make_evaluation

YNN, ONEDNN = "xla_cpu_experimental_ynn_fusion_type", "xla_cpu_experimental_onednn_custom_call"
ARRAYS = {"inputs": np.eye(4, dtype=np.float32), "labels": np.arange(4)}
GOAL = weighted_sum(labels=(1.0, cross_entropy))
WEIGHTS = Weights(np.zeros((4, 4), np.float32), {})
OPTIMIZER = optax.sgd(0.5)


def network(params, model_state, inputs, *, train, rng=None):
    return inputs @ params, model_state


def one_step(options):
    step = jit_step(make_train_step(network, None, OPTIMIZER), compiler_options=options)
    return step(init_state(WEIGHTS, OPTIMIZER, jax.random.key(0)), None, GOAL, ARRAYS)


def one_epoch(options):
    epoch = make_epoch(make_train_step(network, None, OPTIMIZER), compiler_options=options)
    return epoch(init_state(WEIGHTS, OPTIMIZER, jax.random.key(0)), None, GOAL, ARRAYS, [[0, 1, 2, 3]])


CALLS = {
    "jit_step": one_step,
    "make_epoch": one_epoch,
    "make_evaluation": lambda options: make_evaluation(network, compiler_options=options)(WEIGHTS, ARRAYS),
    "cache_teacher": lambda options: cache_teacher(network, WEIGHTS, ARRAYS["inputs"], compiler_options=options),
}


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("0.10.1", set()),
        ("0.10.2", {YNN}),
        ("0.11.1", {YNN}),
        ("0.11.2", {YNN, ONEDNN}),
        ("0.12.0.1", {YNN, ONEDNN}),
        ("0.13.0", set()),
        ("0.13.0.dev20261127", set()),
    ],
)
def test_a_jaxlib_is_given_the_options_that_it_knows(version, names, monkeypatch):
    monkeypatch.setattr(compiler, "jaxlib_version", version)
    assert compiler_options("residual").keys() == names
    assert compiler_options(None) == {}
    assert compiler.is_known({})
    assert compiler.is_known({ONEDNN: True}) == (ONEDNN in names)


def test_other_devices_are_given_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options("residual") == {}


def test_a_kind_of_network_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"network must be one of residual; got 'residuals'\. Did you mean 'residual'"):
        compiler_options("residuals")


@pytest.mark.parametrize("name", CALLS)
def test_options_reach_the_compiler(name):
    CALLS[name](compiler_options("residual"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        CALLS[name]({"xla_no_such_option": True})


def test_options_change_a_convolution_by_rounding_alone():
    draw = np.random.default_rng(0)
    inputs, kernel = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((4, 8, 8, 32), (3, 3, 32, 32)))

    def both(inputs, kernel):
        def convolve(*arrays):
            return lax.conv_general_dilated(*arrays, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        value, back = jax.vjp(convolve, inputs, kernel)
        return value, *back(value)

    plain, asked = (jax.jit(both, compiler_options=one)(inputs, kernel) for one in (None, compiler_options("residual")))
    for one, other in zip(plain, asked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max())
