"""The bricks of connectors, against NumPy, and what they refuse. Layers and chains: in the tests of the connectors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import close

from kdjax.connectors import bricks

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)


def test_averaging_to_a_size_takes_windows_that_cover_everything():
    got = bricks.average_to_size(X, 2, 4)
    close(got, jnp.stack([X[:, 0:3].mean(1), X[:, 2:5].mean(1)], 1))
    close(bricks.average_to_size(X, 1, 1)[:, 0, 0], bricks.average_to_vector(X))
    first, second = bricks.average_to_one_size(X, jnp.ones((2, 2, 6, 7)))
    assert (first.shape, second.shape) == ((2, 2, 4, 3), (2, 2, 4, 7))


def test_resizing_keeps_what_has_the_size_and_takes_the_nearest_or_what_lies_between():
    assert bricks.resize(X, 5, 4) is X
    close(bricks.resize(X, 3, 8, method="nearest"), np.asarray(X)[:, [0, 1, 3]][:, :, [0, 0, 1, 1, 2, 2, 3, 3]])
    between = bricks.resize(X, 5, 8)
    close(between[:, :, 1], 0.75 * X[:, :, 0] + 0.25 * X[:, :, 1])


def test_half_precision_is_computed_in_float32():
    half = jnp.asarray(X, jnp.bfloat16)
    kernel = jnp.full((3, 2), 1 / 3, jnp.float32)
    got = bricks.dense(half, kernel)
    assert got.dtype == jnp.float32
    close(got, np.asarray(half, np.float32).sum(-1, keepdims=True).repeat(2, -1) / 3)
    assert bricks.convolution(half, kernel[None, None]).dtype == jnp.float32


def test_sums_and_squares_of_half_precision_do_not_overflow():
    maps = jnp.full((1, 300, 300, 1), 200.0, jnp.float16)
    for pooled in (bricks.average_to_size(maps, 1, 1), *bricks.average_to_one_size(maps, maps[:, :1, :1])):
        assert pooled.ravel().tolist() == [200.0]
    far = jnp.asarray([100.0, 101.0], jnp.bfloat16).reshape(1, 1, 2, 1)
    close(bricks.resize(far, 1, 4).ravel(), [100.0, 100.25, 100.75, 101.0])
    params, model_state = bricks.init_layer(jax.random.key(0), (1, 1), normalize=True)
    params, model_state = (
        {name: value for name, value in tree.items() if name != "kernel"} for tree in (params, model_state)
    )
    values = jnp.asarray([[-300.0], [300.0]], jnp.float16)
    normal, after = bricks.normalize(params, model_state, values, train=True)
    close(normal.ravel(), [-1.0, 1.0])
    assert np.isfinite(after["variance"]).all()


def test_no_layer_at_all_is_the_identity():
    params, model_state = bricks.init_chain(jax.random.key(0), [])
    assert bricks.apply_chain(params, model_state, X, train=True)[0] is X


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("init_layer", (jax.random.key(0), (3, 3, 4)), r"shape must be \(in, out\) or .*; got \(3, 3, 4\)"),
        ("dense", (X, jnp.ones((4, 2))), r"x must have the kernel's 4 channels .* \(2, 5, 4, 3\)"),
        ("convolution", (X[:, 0], jnp.ones((1, 1, 3, 2))), r"x must have 4 axes, .*\(2, 4, 3\)"),
        ("average_to_size", (X, 6, 4), "height must be at most that of x, 5; got 6"),
        ("average_to_size", (X, 5, 0), "width must be a whole number of 1 or more; got 0"),
        ("average_to_one_size", (X, X[0]), "second must have 4 axes"),
        ("resize", (X, 5, 0), "width must be a whole number of 1 or more; got 0"),
    ],
)
def test_what_does_not_fit_is_a_named_error(name, arguments, words):
    function = inspect.unwrap(getattr(bricks, name))  # without the tests' own check of shapes
    with pytest.raises(ValueError, match=words):
        function(*arguments)
    with pytest.raises(ValueError, match=r"method must be one of .* Did you mean 'nearest'"):
        bricks.resize(X, 5, 4, method="neerest")
