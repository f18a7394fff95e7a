"""Masked generation and semantic calibration against slow forms in NumPy, written from the papers' equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand, close, made, outputs, relu, run
from connected import ROWS, batch, beside, network, objective, student, teacher
from dense import total

from kdjax import connectors
from kdjax.connectors import Seen


@pytest.mark.parametrize("channels", [3, 5])
def test_what_is_generated_comes_from_the_positions_that_are_not_masked(channels):
    connector = connectors.masked_generative("f", "g", share=0.5)
    pair = outputs(0, f=(2, 4, 4, 3)), outputs(1, g=(2, 4, 4, channels))
    weights = made(connector, *pair)
    drawn = np.asarray(jax.random.uniform(jax.random.key(3), (2, 4, 4, 1)))
    assert 0.2 < (drawn < 0.5).mean() < 0.8
    for train in (True, False):
        of_student, of_teacher, _ = run(connector, weights, *pair, train=train)
        x = np.asarray(pair[0].features["f"], np.float64)
        if channels != 3:
            x = by_hand(weights.params["align"]["layer1"], x)
        for b, i, j in np.argwhere(drawn[..., 0] < 0.5) if train else ():
            x[b, i, j] = 0.0
        first, second = (weights.params["generate"][name] for name in ("layer1", "layer2"))
        close(of_student[""], by_hand(second, relu(by_hand(first, x, same=True)), same=True))
        close(of_teacher[""], pair[1].features["g"])
    assert ("layer1" in weights.params["align"]) == (channels != 3)


def test_the_larger_map_is_averaged_down_before_it_is_masked():
    connector = connectors.masked_generative("f", share=0.0)
    pair = outputs(0, f=(2, 4, 4, 3)), outputs(1, f=(2, 2, 2, 3))
    weights = made(connector, *pair)
    x = np.asarray(pair[0].features["f"], np.float64).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    layers = [weights.params["generate"][name] for name in ("layer1", "layer2")]
    close(run(connector, weights, *pair)[0][""], by_hand(layers[1], relu(by_hand(layers[0], x, same=True)), same=True))


def test_the_mask_is_the_steps_and_each_examples_own():
    connector = connectors.masked_generative("f", share=0.4)
    one = outputs(0, f=(50, 8, 8, 2))
    # Kernels that hand every position on, with 1 added: what is masked is exactly 1, unless it was 0.
    still = {"kernel": jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2)), "bias": jnp.ones(2)}
    params = {"align": {}, "generate": {"layer1": still, "layer2": still | {"bias": jnp.zeros(2)}}}
    state = {"align": {}, "generate": {"layer1": {}, "layer2": {}}}
    positive = one._replace(features={"f": jnp.abs(one.features["f"]) + 0.1})
    masks = []
    for key in (0, 0, 1):
        made_of, _, _ = connector.apply(params, state, Seen(positive, positive, {}, True, jax.random.key(key)))
        masked = np.asarray(made_of[""]) == 1.0
        np.testing.assert_array_equal(masked[..., 0], masked[..., 1])  # one mask for all channels
        masks.append(masked[..., 0])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert (masks[0][0] != masks[0][1]).any()
    assert abs(masks[0].mean() - 0.4) < 5 * np.sqrt(0.4 * 0.6 / masks[0].size)


def test_semantic_calibration_by_hand():
    students, teachers = ("a", "b"), ("c", "d", "e")
    pair = outputs(0, a=(4, 4, 4, 2), b=(4, 2, 2, 3)), outputs(1, c=(4, 4, 4, 2), d=(4, 2, 2, 4), e=(4, 1, 1, 3))
    connector = connectors.semantic_calibration(students, teachers, batch_size=4)
    weights = made(connector, *pair)
    own, others = (
        {name: np.asarray(x, np.float64) for name, x in one.features.items()} for one in pair
    )  # fmt: skip

    def embedded(place, x):
        rows = np.array([[np.sum(x[i] * x[j]) for j in range(4)] for i in range(4)])
        layers = weights.params[place]
        vectors = by_hand(layers["layer2"], relu(by_hand(layers["layer1"], rows)))
        return np.array([vector / np.linalg.norm(vector) for vector in vectors])

    def pooled(x, size):
        step = x.shape[1] // size
        return x.reshape(4, size, step, size, step, -1).mean((2, 4))

    loss, attention = np.zeros(4), np.zeros((4, 2, 3))
    for s, one in enumerate(students):
        for i in range(4):
            scores = [
                np.exp(embedded(f"student.{one}", own[one])[i] @ embedded(f"teacher.{other}", others[other])[i])
                for other in teachers
            ]
            attention[i, s] = np.array(scores) / np.sum(scores)
        for t, other in enumerate(teachers):
            size = min(own[one].shape[1], others[other].shape[1])
            layers = weights.params[f"student.{one} to teacher.{other}"]
            x = by_hand(layers["layer1"], pooled(own[one], size))
            x = by_hand(layers["layer3"], relu(by_hand(layers["layer2"], relu(x), same=True)))
            for i in range(4):
                loss[i] += attention[i, s, t] * np.mean((pooled(others[other], size)[i] - x[i]) ** 2)
    of_student, of_teacher, _ = run(connector, weights, *pair)
    close(of_student["attention"], attention)
    close(of_student[""], loss)
    assert of_teacher == {}
    assert weights.params["student.a"]["layer2"]["kernel"].shape == (2, 1)


def value(name, seen, trees):
    params, model_state = trees
    joined = connectors.connect(ROWS[name][0], params, model_state, *seen, {}, train=True, rng=jax.random.key(0))
    return jnp.mean(total(objective(name)(*joined[:2], {}, 0)))


@pytest.mark.parametrize("name", ["masked_generative", "semantic_calibration"])
def test_gradients_reach_every_parameter_and_are_finite_at_zeros(name):
    weights = beside(name)
    params, model_state = weights.params["connectors"], weights.model_state["connectors"]
    both = [network(*one, batch()["inputs"], train=False)[0] for one in (student(), teacher())]
    zeros = jax.tree.map(jnp.zeros_like, both)

    @jax.jit
    def gradients(params, own, others):
        def of(params, own):
            return value(name, (own, others), (params, model_state))

        return jax.value_and_grad(of, argnums=(0, 1))(params, own)

    loss, (of_params, of_student) = gradients(params, *both)
    assert loss > 0
    # The biases before the length is taken of scores start at 0 like all, and learn all the same.
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert np.abs(of_student.features["stage1"]).max() > 0
    for trees in (params, jax.tree.map(jnp.zeros_like, params)):
        chex.assert_tree_all_finite(gradients(trees, *zeros))
