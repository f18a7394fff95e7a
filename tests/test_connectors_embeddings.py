"""What connectors for contrastive losses embed and remember, example by example."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand, close, made, outputs, run

from kdjax import connectors, losses
from kdjax.connectors import Seen


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_linear_in_both_networks_flattened_features(normalize):
    connector = connectors.embeddings("f", "g", dim=4, normalize=normalize)
    pair = outputs(0, f=(3, 2, 2, 3)), outputs(1, g=(3, 5))
    weights = made(connector, *pair)
    results = run(connector, weights, *pair)[:2]
    for got, who, feature in zip(
        results, ("student", "teacher"), (pair[0].features["f"], pair[1].features["g"]), strict=True
    ):
        expected = by_hand(weights.params[who], np.asarray(feature).reshape(3, -1))
        close(got[""], expected / np.linalg.norm(expected, axis=1, keepdims=True) if normalize else expected)


def test_contrast_is_crd_of_its_embeddings_and_its_own_draws():
    labels = np.arange(20) % 4
    connector = connectors.contrast("f", size=20, dim=4, negatives=7, labels=labels, temperature=0.3, momentum=0.25)
    pair = outputs(0, f=(3, 6)), outputs(1, f=(3, 5))
    batch = {"indices": jnp.array([4, 19, 7])}
    weights = made(connector, *pair)
    of_student, of_teacher, state = run(connector, weights, *pair, batch=batch)
    assert of_student[""].shape == (3,)
    assert of_teacher == {}
    bank = weights.model_state["bank"]
    drawn = losses.draw_negatives(jax.random.key(3), batch["indices"], 7, 20, labels=jnp.asarray(labels))
    total = np.zeros(3)
    embedded = []
    for who, one in zip(("student", "teacher"), pair, strict=True):
        x = by_hand(weights.params[who], one.features["f"])
        embedded.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    for anchors, memory in ((embedded[0], bank.teacher), (embedded[1], bank.student)):
        memory = np.asarray(memory, np.float64)
        p = np.exp(anchors @ memory.T / 0.3)
        z = 20 * np.mean([p[i, j] for i in range(3) for j in np.asarray(drawn)[i]])
        noise = 7 / 20
        for i in range(3):
            own = p[i, batch["indices"][i]] / z
            total[i] -= math.log(own / (own + noise))
            for j in np.asarray(drawn)[i]:
                total[i] -= math.log(noise / (p[i, j] / z + noise))
    close(of_student[""], total)
    entry = 0.25 * np.asarray(bank.student, np.float64)[19] + 0.75 * embedded[0][1]
    close(state["bank"].student[19], entry / np.linalg.norm(entry))
    untouched = [i for i in range(20) if i not in (4, 19, 7)]
    np.testing.assert_array_equal(state["bank"].student[untouched], np.asarray(bank.student, np.float64)[untouched])
    chex.assert_trees_all_equal(
        run(connector, weights, *pair, batch=batch, train=False)[2]["bank"], jax.tree.map(np.float64, bank)
    )


@pytest.mark.parametrize("size", [3, 5, 8])
def test_a_queue_is_first_in_first_out_whatever_the_batch(size):
    connector = connectors.queue("f", size=size)
    one = outputs(0, f=(4, 2, 3))
    _, model_state = made(connector, one, one)
    close(np.linalg.norm(model_state["queue"], axis=1), np.ones(size))
    memory = [np.asarray(row, np.float64) for row in model_state["queue"]]  # oldest first
    for number in range(5):
        one = outputs(number, f=(4, 2, 3))
        _, of_teacher, model_state = connector.apply({}, model_state, Seen(one, one, {}, True, None))
        got = np.asarray(of_teacher["queue"], np.float64)
        expected = np.stack(memory)
        close(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])
        rows = np.asarray(one.features["f"], np.float64).reshape(4, 6)
        memory = [*memory, *(rows / np.linalg.norm(rows, axis=1, keepdims=True))][-size:]
    _, of_teacher, same = connector.apply({}, model_state, Seen(one, one, {}, False, None))
    chex.assert_trees_all_equal((of_teacher["queue"], same), (model_state["queue"], model_state))
