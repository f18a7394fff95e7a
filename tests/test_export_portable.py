"""A program for any platform: every model is one at inference, with the same values; loops and branches have it in them."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kdjax.export._portable import for_any_platform
from kdjax.models import CNN, WideResNet
from kdjax.networks import from_linen

MODELS = {
    "cnn": (CNN((4, 8), hidden=16), (8, 9, 1)),
    "normalised": (CNN((128, 128), batch_norm=True, dropout=0.3, padding="VALID"), (10, 10, 3)),
    "wide_resnet": (WideResNet(depth=10, width=8), (8, 8, 3)),
}
CONVOLUTIONS = {"cnn": 2, "normalised": 2, "wide_resnet": 10}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_at_inference_is_a_plain_program(name):
    module, shape = MODELS[name]
    init, apply = from_linen(module)
    inputs = jax.random.normal(jax.random.key(0), (2, *shape))
    weights = jax.jit(init)(jax.random.key(1), inputs)

    def logits_of(inputs):
        return apply(*weights, inputs, train=False)[0].logits

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    program = str(jax.make_jaxpr(for_any_platform(logits_of))(shapes))
    assert not re.search(r"platform_index|custom_|cond\[| gather\[| slice\[", program)
    # None of the forms that are for XLA on a CPU: convolution and pooling are one operation each.
    assert program.count("conv_general_dilated[") == CONVOLUTIONS[name]
    assert program.count("reduce_window_max[") == (0 if name == "wide_resnet" else 2)
    assert "platform_index" in str(jax.make_jaxpr(logits_of)(shapes))  # or this proves nothing
    expected = jax.jit(logits_of)(inputs)
    assert jnp.ptp(expected) > 0.1
    np.testing.assert_allclose(jax.jit(for_any_platform(logits_of))(inputs), expected, rtol=1e-5, atol=1e-5)


def times(factor, x):
    return factor * x


CHOICE = partial(lax.platform_dependent, cpu=partial(times, 2), default=partial(times, 3))


@jax.custom_jvp
def with_rule(x):
    return CHOICE(x)


with_rule.defjvp(lambda primals, tangents: (CHOICE(*primals), tangents[0]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (CHOICE, 15.0),
        (jax.jit(CHOICE), 15.0),
        (jax.checkpoint(CHOICE), 15.0),
        (with_rule, 15.0),
        (lambda x: lax.scan(lambda carry, _: (CHOICE(carry), None), x, None, length=3)[0], 135.0),
        (lambda x: lax.fori_loop(0, jnp.int32(x), lambda _, carry: CHOICE(carry), 1.0), 243.0),
        (lambda x: lax.cond(x > 0, CHOICE, lambda x: x, x), 15.0),
        (lambda x: lax.cond(x < 0, CHOICE, lambda x: x, x), 5.0),
        (lambda x: jax.vmap(CHOICE)(jnp.stack([x, -x]))[1], -15.0),
        (lambda x: lax.platform_dependent(x, cuda=partial(times, 4), cpu=partial(times, 5)), 20.0),
        (lambda x: lax.select(False, jnp.nan, x), 5.0),
        (lambda x: {"two": [x, CHOICE(x)]}["two"][1], 15.0),
    ],
)
def test_the_default_is_taken_wherever_the_choice_stands(function, expected):
    portable = for_any_platform(function)
    assert portable(5.0) == expected
    program = str(jax.make_jaxpr(portable)(5.0))
    assert "platform_index" not in program
    assert "custom_jvp" not in program


def test_trees_go_in_and_come_out():
    def swapped(first, second):
        return {"sum": CHOICE(first["a"]) + second, "constant": jnp.arange(3)}

    found = for_any_platform(swapped)({"a": jnp.ones(2)}, jnp.full(2, 4.0))
    assert {name: array.tolist() for name, array in found.items()} == {"sum": [7.0, 7.0], "constant": [0, 1, 2]}
