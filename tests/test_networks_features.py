"""Features of a network: by name and position, made from others, and several layers fused into one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from connected import network, student, teacher
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments._networks import make_model
from kdjax import Outputs, connectors, init_state, make_train_step, on_feature, weighted_sum
from kdjax.losses import hint
from kdjax.networks import (
    average_of,
    fit_pca,
    from_linen,
    fused,
    layer_at,
    layer_names,
    projection_of,
    with_features,
)

INPUTS = np.random.default_rng(0).normal(size=(45, 4, 4, 2)).astype(np.float32)


def test_gradients_flow_through_what_is_added():
    pca = fit_pca(network, student(), [{"inputs": INPUTS}], "stage2")
    wider = with_features(network, mean=average_of("stage1"), pca=projection_of("stage2", pca))

    def total(params, name):
        return jnp.sum(wider(params, {}, INPUTS[:4], train=True)[0].features[name] ** 2)

    for name, own in (("mean", "stage1"), ("pca", "stage2")):
        gradients = jax.jit(jax.grad(total), static_argnums=1)(student().params, name)
        assert float(jnp.abs(gradients[own]).max()) > 1e-3
    outputs, _ = jax.jit(partial(wider, train=False))(*student(), INPUTS[:4])
    np.testing.assert_allclose(outputs.features["mean"], outputs.features["stage1"].mean((1, 2)), rtol=1e-6)
    assert average_of("embedding")(outputs).shape == outputs.features["embedding"].shape


def test_layers_by_name_and_position():
    init, apply = from_linen(make_model("digits_teacher", widths=(2, 3), hidden=4))
    weights = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    names = layer_names(apply, weights, jnp.ones((1, 8, 8, 1)))
    assert names == ("stage1", "stage2", "embedding", "logits")
    assert layer_at(apply, weights, jnp.ones((1, 8, 8, 1))) == "stage2"
    for position, name in enumerate(names):
        for same in (position, position - len(names)):
            assert layer_at(apply, weights, jnp.ones((1, 8, 8, 1)), same) == name
    with pytest.raises(ValueError, match=r"position must lie between -4 and 3 for the layers stage1, .*; got 4"):
        layer_at(apply, weights, jnp.ones((1, 8, 8, 1)), 4)


def test_a_name_that_is_taken_or_unknown_is_a_named_error():
    with pytest.raises(ValueError, match="with_features must add features of new names; got logits, stage1, and the"):
        with_features(network, stage1=average_of("stage2"), logits=average_of("stage2"))(
            *student(), INPUTS, train=False
        )
    with pytest.raises(ValueError, match=r"no feature 'stage3'.* Did you mean 'stage2'"):
        with_features(network, more=average_of("stage3"))(*student(), INPUTS, train=False)


def slowly_fused(maps, normalize):
    """One number at a time: of each map, the mean of the cells that a position of the smallest map covers or touches."""
    examples = len(maps[0])
    height, width = (min(one.shape[axis] for one in maps) for axis in (1, 2))
    parts = []
    for one in maps:
        part = np.zeros((examples, height, width, one.shape[3]))
        for i in range(height):
            for j in range(width):
                rows = slice(i * one.shape[1] // height, int(np.ceil((i + 1) * one.shape[1] / height)))
                columns = slice(j * one.shape[2] // width, int(np.ceil((j + 1) * one.shape[2] / width)))
                part[:, i, j] = one[:, rows, columns].astype(np.float64).mean(axis=(1, 2))
        for example in part if normalize else ():
            example /= np.sqrt((example**2).mean()) or 1.0
        parts.append(part)
    return np.concatenate(parts, axis=3)


def show_maps(maps, *names, **settings):
    outputs = Outputs(jnp.zeros((len(maps[0]), 2)), {f"m{i}": jnp.asarray(one) for i, one in enumerate(maps)})
    return jax.jit(fused(*(names or outputs.features), **settings))(outputs)


SIDES = st.integers(1, 7)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SIDES, SIDES, st.integers(1, 3)), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_layers_are_fused_as_slowly(shapes, normalize, seed):
    maps = [np.float32(np.random.default_rng(seed).normal(2.0, 3.0, size=(2, *shape))) for shape in shapes]
    got, expected = show_maps(maps, normalize=normalize), slowly_fused(maps, normalize)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_fused_layers_stand_in_the_order_of_their_names_and_count_alike():
    big, small = np.full((1, 4, 4, 2), 1e4, np.float32), np.full((1, 2, 2, 1), -1e-4, np.float32)
    np.testing.assert_array_equal(show_maps([big, small], "m1", "m0")[0, 0, 0], np.float32([-1e-4, 1e4, 1e4]))
    np.testing.assert_allclose(show_maps([big, small], normalize=True)[0, 1, 1], [1, 1, -1], rtol=1e-5)
    assert (show_maps([0 * big, small], normalize=True)[..., :2] == 0).all()
    assert show_maps([jnp.asarray(big, jnp.bfloat16)]).dtype == jnp.float32


def test_a_student_learns_what_layers_show_together():
    seen = [with_features(network, fused=fused("stage1", "stage2", normalize=True)) for _ in range(2)]
    outputs, _ = jax.jit(partial(seen[1], train=False))(*teacher(), INPUTS)
    assert outputs.features["fused"].shape == (45, 2, 2, 6 + 8)
    beside = {"fit": connectors.regressor("fused")}
    weights = connectors.init_beside(beside, jax.random.key(1), seen[0], student(), seen[1], teacher(), INPUTS)
    step = jax.jit(make_train_step(*seen, optax.adam(0.01), connectors=beside))
    state, losses = init_state(weights, optax.adam(0.01), jax.random.key(2)), []
    for _ in range(40):
        state, metrics = step(
            state, teacher(), weighted_sum(fit=(1.0, on_feature(hint, "fit"))), {"inputs": INPUTS[:8]}
        )
        losses.append(float(metrics["fit"]))
    assert losses[-1] < 0.7 * losses[0]
    own = connectors.student_of(state).params
    assert all((own[name] != student().params[name]).any() for name in ("stage1", "stage2"))


def test_layers_that_cannot_be_fused_are_a_named_error():
    maps = [np.ones((1, 2, 2, 1), np.float32)] * 2
    with pytest.raises(ValueError, match=r"names must be one feature or more, each once; got \(\)"):
        fused()
    with pytest.raises(ValueError, match=r"each once; got \('m0', 'm0'\)"):
        fused("m0", "m0")
    with pytest.raises(
        ValueError, match=r"m1 must have 4 axes, \[batch, height, width, channels\]; got shape \(1, 2\)"
    ):
        show_maps([maps[0], np.ones((1, 2), np.float32)])
    with pytest.raises(ValueError, match=r"The network has no feature 'm2'; it has \['m0', 'm1'\]\."):
        show_maps(maps, "m0", "m2")
