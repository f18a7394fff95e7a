"""What cannot be left out is said: masks that fit no batch, terms, mixed examples and connectors that cannot obey one."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from masked import (
    DIM,
    EXAMPLES,
    GOAL,
    OPTIMIZER,
    STUDENT,
    TEACHER,
    TIME,
    WITH_FEATURES,
    batch,
    fresh,
    halves,
    network,
    same,
    step,
)

from kdjax import Outputs, computed, cross_entropy, init_state, make_train_step, on_feature, weighted_sum
from kdjax.connectors import init_beside, regressor, semantic_calibration
from kdjax.data import make_views
from kdjax.losses import hint
from kdjax.objectives import _counted
from kdjax.training import jit_step


def refused(message, goal=GOAL, arrays=None, **more):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step(), fresh(), TEACHER, goal, (arrays or batch()) | more)


@pytest.mark.parametrize("shape", [(EXAMPLES, 1), (1,), (), (EXAMPLES + 1,), (EXAMPLES, DIM)])
def test_a_mask_of_another_shape_is_refused(shape):
    refused(r'batch\["mask"\] must have', mask=np.ones(shape))


def test_a_mask_of_words_is_refused():
    with pytest.raises(ValueError, match=r'batch\["mask"\] must hold numbers; got <U1'):
        step()(fresh(), TEACHER, GOAL, batch() | {"mask": np.array(["a"] * EXAMPLES)})


def test_a_mean_over_positions_cannot_leave_one_out():
    refused(
        r"The term 'hint' must return one number for each position where positions are left out, .*got shape \(8,\)",
        goal=WITH_FEATURES,
        arrays=batch(TIME),
        mask=np.ones((EXAMPLES, TIME)),
    )


def test_a_term_whose_reading_cannot_be_seen_is_refused_where_labels_are_missing():
    hidden = weighted_sum(own=(1.0, lambda student, teacher, batch: jnp.zeros(batch["labels"].shape[0])))
    with pytest.raises(ValueError, match=r"The term 'own' must show whether it reads labels.*on_outputs"):
        jax.eval_shape(step(ignore_label=-1), fresh(), TEACHER, hidden, batch())


@pytest.mark.parametrize("label", [True, 1.5, "255", [1, 2], -(2**63)])
def test_what_is_no_label_cannot_be_ignored(label):
    with pytest.raises(ValueError, match="ignore_label must be a"):
        inspect.unwrap(_counted.without_ignored)(batch(), label)


def test_whole_numbers_as_logits_and_lists_as_masks_are_refused():
    def whole(params, model_state, inputs, *, train, rng=None):
        return (inputs @ params["body"]).astype(jnp.int32), model_state

    wrong = make_train_step(whole, None, OPTIMIZER)
    with pytest.raises(ValueError, match="the student's logits must hold floating-point numbers"):
        jax.eval_shape(wrong, fresh(), None, weighted_sum(labels=(1.0, cross_entropy)), batch())
    with pytest.raises(ValueError, match=r'batch\["mask"\] must be an array; got a list of numbers'):
        step()(fresh(), TEACHER, GOAL, batch() | {"mask": [1] * EXAMPLES})


def test_mixed_examples_refuse_a_mask():
    mixed = make_views(mix=lambda key, image, partner: (image, jnp.ones(())))
    for name in ("mask", "labelled"):
        with pytest.raises(ValueError, match=f'batch must have no "{name}" where examples are mixed'):
            mixed(jax.random.key(0), batch() | {"indices": np.arange(EXAMPLES), name: np.ones(EXAMPLES)})


@pytest.mark.parametrize("normalize", [False, True])
def test_a_connector_that_keeps_statistics_refuses_a_mask(normalize):
    beside = {"hint": regressor("hidden", normalize=normalize)}
    made = init_beside(beside, jax.random.key(0), network, STUDENT, network, TEACHER, batch()["inputs"])
    goal = weighted_sum(hint=(1.0, on_feature(hint, "hint")))
    learnt = jit_step(make_train_step(network, network, OPTIMIZER, connectors=beside))
    masked, alone = halves(0.0)
    start = lambda: init_state(made, OPTIMIZER, jax.random.key(0))  # noqa: E731
    if normalize:
        with pytest.raises(ValueError, match='batch must have no "mask" beside the connectors hint'):
            learnt(start(), TEACHER, goal, masked)
    else:
        same(learnt(start(), TEACHER, goal, masked), learnt(start(), TEACHER, goal, alone))


def test_a_connector_that_compares_examples_refuses_a_mask():
    beside = {"calibrated": semantic_calibration(("hidden",), batch_size=EXAMPLES)}
    maps = lambda x: jnp.broadcast_to(x[:, None, None], (len(x), 2, 2, x.shape[-1]))  # noqa: E731

    def with_maps(params, model_state, inputs, *, train, rng=None):
        outputs, model_state = network(params, model_state, inputs, train=train)
        return Outputs(outputs.logits, {"hidden": maps(outputs.features["hidden"])}), model_state

    made = init_beside(beside, jax.random.key(0), with_maps, STUDENT, with_maps, TEACHER, batch()["inputs"])
    goal = weighted_sum(calibrated=(1.0, computed("calibrated")))
    learnt = jit_step(make_train_step(with_maps, with_maps, OPTIMIZER, connectors=beside))
    with pytest.raises(ValueError, match='batch must have no "mask" beside the connectors calibrated'):
        learnt(init_state(made, OPTIMIZER, jax.random.key(0)), TEACHER, goal, halves(0.0)[0])
