"""Options of XLA's compiler: which, on which jaxlib and devices; they reach the compiler, and change rounding alone.

And a network's start as one program.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.caching import cache_teacher
from kdjax.models import CNN, ViT
from kdjax.networks import from_linen
from kdjax.training import compiler, compiler_options, jit_init, jit_step, make_epoch, make_evaluation

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


@pytest.mark.parametrize("module", [CNN(widths=(4, 8), hidden=16, batch_norm=True), ViT(width=8, depth=1, heads=2)])
def test_a_start_in_one_program_has_the_same_numbers(module):
    init, _ = from_linen(module)
    images = jnp.zeros((1, 32, 32, 3))
    # As users have it: the tests' own programs are optimized less still, and round otherwise.
    plain = jax.jit(init, compiler_options={"xla_backend_optimization_level": 3})(jax.random.key(3), images)
    compiled = jit_init(init)(jax.random.key(3), images)
    assert jax.tree.structure(plain) == jax.tree.structure(compiled)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_array_equal(one, other)


def start(traced):
    def init(rng, inputs):
        traced.append(isinstance(inputs["pictures"], jax.core.Tracer))
        return Weights(jax.random.normal(rng, inputs["pictures"].shape[1:]), {})

    return init


def test_a_start_is_compiled_once_for_all_seeds():
    traced = []
    begin = jit_init(start(traced))
    found = [begin(rng=jax.random.key(seed), inputs={"pictures": np.ones((1, 3))}).params for seed in range(3)]
    assert traced == [True]
    assert not np.array_equal(found[0], found[1])


def test_a_start_within_another_program_is_a_part_of_it():
    begin, keys = jit_init(start([])), jax.random.split(jax.random.key(0), 4)
    inputs = {"pictures": np.ones((1, 3), np.float32)}
    each = np.stack([begin(key, inputs).params for key in keys])
    np.testing.assert_array_equal(jax.vmap(lambda key: begin(key, inputs).params)(keys), each)
    np.testing.assert_array_equal(jax.jit(begin)(keys[0], inputs).params, each[0])
    assert jax.eval_shape(begin, keys[0], inputs).params.shape == (3,)
    # Nothing that it is given is traced, and yet it is within another program.
    np.testing.assert_array_equal(jax.jit(lambda: begin(keys[0], inputs).params)(), each[0])
    assert jax.eval_shape(lambda: begin(keys[0], inputs)).params.shape == (3,)


def test_a_start_is_compiled_quickly_on_a_cpu_alone(monkeypatch):
    inputs = {"pictures": np.ones((1, 3))}
    monkeypatch.setattr(compiler, "RUN_ONCE", {"xla_no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        jit_init(start([]))(jax.random.key(0), inputs)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert jit_init(start([]))(jax.random.key(0), inputs).params.shape == (3,)


def test_a_start_that_is_no_function_is_named():
    with pytest.raises(ValueError, match=r"init must be a function, init\(rng, inputs\); got"):
        inspect.unwrap(jit_init)(Weights(np.ones(3), {}))  # as users have it, who have no checker of types
