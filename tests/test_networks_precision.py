"""Half precision in the computation only: what is kept from step to step, and the loss, are float32, and it still learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments._networks import make_model
from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    models,
    on_feature,
    on_logits,
    weighted_sum,
)
from kdjax.batches import epoch_indices
from kdjax.data import load, on_device, unit_range
from kdjax.losses import attention_transfer, soft_target_kl
from kdjax.networks import computed_in, from_linen
from kdjax.networks.precision import product_types
from kdjax.training import make_epoch
from kdjax.training.sweeps import make_sweep_step, stack

SEEDS, EPOCHS, MARGIN = 4, 12, 0.02
OPTIMIZER = optax.adam(1e-2)
OBJECTIVE = weighted_sum(
    labels=(0.5, cross_entropy),
    soft=(0.5, on_logits(soft_target_kl, temperature=4.0)),
    attention=(1.0, on_feature(attention_transfer, "stage1")),
)


def students(dtype):
    """Four students after twelve epochs on the digits, what the last step said, and their accuracy on the test split."""
    train, test = (on_device(load("digits", split), unit_range) for split in ("train", "test"))
    init, apply = from_linen(make_model("digits_student", dtype=dtype))
    # A teacher that knows the labels, more or less: a peaked distribution over the right class.
    logits = 4.0 * jax.nn.one_hot(train["labels"], 10)
    features = {"stage1": train["inputs"][:, ::2, ::2, :].astype(dtype)}
    train["teacher"] = Outputs(logits, features)
    starts = [jax.jit(init)(jax.random.key(seed), train["inputs"][:1]) for seed in range(SEEDS)]
    states = stack([init_state(start, OPTIMIZER, jax.random.key(0)) for start in starts])
    epoch = make_epoch(make_sweep_step(make_train_step(apply, None, OPTIMIZER)))
    objectives, newest = stack([OBJECTIVE] * SEEDS), []
    for number in range(EPOCHS):
        order = epoch_indices(len(train["labels"]), 32, seed=0, epoch=number)
        states, _ = epoch(states, None, objectives, train, order, watch=lambda done, metrics: newest.append(metrics))

    @jax.jit
    @jax.vmap
    def outputs_of(weights):
        return apply(*weights, test["inputs"], train=False)[0]

    outputs = outputs_of(Weights(states.params, states.model_state))
    accuracy = (outputs.logits.argmax(-1) == test["labels"][None]).mean()
    return states, newest[-1], outputs, float(accuracy)


@pytest.fixture(scope="module")
def trained():
    return {dtype: students(dtype) for dtype in (jnp.float32, jnp.bfloat16)}


def test_what_is_kept_and_the_losses_are_float32(trained):
    states, metrics, outputs, _ = trained[jnp.bfloat16]
    for leaf in jax.tree.leaves((states.params, states.opt_state, metrics, outputs.logits)):
        assert leaf.dtype in (jnp.float32, jnp.int32)  # Adam counts in whole numbers
        assert np.isfinite(leaf).all()
    assert {leaf.dtype.name for leaf in jax.tree.leaves((states.params, metrics))} == {"float32"}
    # Else nothing was computed in half precision at all.
    assert outputs.features["stage1"].dtype == outputs.features["embedding"].dtype == jnp.bfloat16
    assert trained[jnp.float32][2].features["stage1"].dtype == jnp.float32


def test_half_precision_learns_the_digits_to_within_two_points(trained):
    (*_, single), (*_, half) = trained[jnp.float32], trained[jnp.bfloat16]
    assert single > 0.9
    assert abs(half - single) < MARGIN
    kernels = [np.asarray(trained[dtype][0].params["logits"]["kernel"]) for dtype in trained]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3  # they did not compute the same


def test_the_types_of_both_factors_are_told_also_within_loops():
    half, rows = jnp.ones((2, 2), jnp.bfloat16), jnp.ones((4, 2))
    mixed = product_types(lambda x: jax.lax.dot_general(half, x, (((1,), (0,)), ((), ()))), jnp.ones((2, 2)))
    assert mixed == {"bfloat16", "float32"}
    assert product_types(lambda x: jax.lax.map(lambda row: row @ x, rows), jnp.ones((2, 2))) == {"float32"}
    assert product_types(lambda x: jax.lax.ragged_dot(rows, x, jnp.array([4])), jnp.ones((1, 2, 2))) == {"float32"}
    assert product_types(lambda x: x + 1, half) == set()


MODELS = {
    "CNN": (models.CNN, {"widths": (4, 8), "hidden": 8}),
    "CNN, normalised": (models.CNN, {"widths": (4, 8), "batch_norm": True}),
    "WideResNet": (models.WideResNet, {"depth": 10, "width": 1}),
    "ResNet": (models.ResNet, {"depth": 8}),
    "VGG": (models.VGG, {"depth": 8}),
    "MobileNetV2": (models.MobileNetV2, {}),
    "ShuffleNetV1": (models.ShuffleNetV1, {}),
    "ShuffleNetV2": (models.ShuffleNetV2, {}),
    "ViT": (models.ViT, {"patch": 4, "width": 8, "depth": 1, "heads": 2}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_computes_in_the_type_that_is_asked_for(name):
    kind, settings = MODELS[name]
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    init, as_it_is = from_linen(kind(**settings))
    weights = jax.eval_shape(init, jax.random.key(1), images)

    def types(apply, train):
        def loss(params, model_state, inputs):
            outputs, state = apply(params, model_state, inputs, train=train, rng=jax.random.key(2))
            return outputs.logits.sum(), state

        return product_types(jax.grad(loss, has_aux=True) if train else loss, *weights, images)

    assert types(as_it_is, train=False) == types(as_it_is, train=True) == {"float32"}
    _, in_half = from_linen(kind(**settings, dtype=jnp.bfloat16))
    for train in (False, True):
        assert types(computed_in(as_it_is, jnp.bfloat16), train) == types(in_half, train) >= {"bfloat16"}


@pytest.mark.parametrize("name", MODELS)
def test_wide_images_change_no_type(name):
    """With 64 bits switched on NumPy's images are float64; networks of float32 stay so, and their states."""
    kind, settings = MODELS[name]
    init, apply = from_linen(kind(**settings))
    with jax.enable_x64(True):
        images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float64)
        weights = jax.eval_shape(init, jax.random.key(1), images)
        outputs, state = jax.eval_shape(lambda *given: apply(*given, train=True), *weights, images)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(weights)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((outputs, state))} == {"float32"}


@pytest.mark.parametrize("name", ["CNN, normalised", "ResNet", "WideResNet", "ViT"])
def test_a_cast_network_is_the_one_that_was_made_for_the_type(name):
    kind, settings = MODELS[name]
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    init, as_it_is = from_linen(kind(**settings))
    weights = jax.jit(init)(jax.random.key(1), images)
    for train in (False, True):
        made, cast = (
            jax.jit(lambda inputs, apply=apply, train=train: apply(*weights, inputs, train=train)[0])(images)
            for apply in (from_linen(kind(**settings, dtype=jnp.bfloat16))[1], computed_in(as_it_is, jnp.bfloat16))
        )
        assert cast.logits.dtype == jnp.float32
        np.testing.assert_array_equal(made.logits, cast.logits)
        assert np.abs(cast.logits - as_it_is(*weights, images, train=train)[0].logits).max() > 0
