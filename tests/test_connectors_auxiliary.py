"""Auxiliary classifiers: what they compute and refuse. That they train and are left behind: test_connectors_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, Weights, connectors, cross_entropy, init_state, make_train_step, on_outputs, weighted_sum

CLASSES = 3
KEYS = jax.random.split(jax.random.key(0), 4)
SEEN = Outputs(
    jax.random.normal(KEYS[0], (5, CLASSES)),
    {"stage1": jax.random.normal(KEYS[1], (5, 4, 4, 2)), "embedding": jax.random.normal(KEYS[2], (5, 6))},
)
LABELS = {"labels": jnp.array([0, 2, 1, 1, 0])}
FROM_LABELS = on_outputs(optax.softmax_cross_entropy_with_integer_labels, "student.aux1")


def seen_through(connector, teacher=None):
    @jax.jit
    def run(teacher):
        weights = connector.init(KEYS[3], *[jax.eval_shape(lambda outputs: outputs, SEEN)] * 2)
        own, others, _ = connectors.connect(
            {"aux1": connector}, *({"aux1": part} for part in weights), SEEN, teacher, {}, train=False
        )
        return weights.params, own, others

    return run(teacher)


def test_logits_are_a_dense_layer_of_the_average():
    params, own, others = seen_through(connectors.auxiliary("stage1"))
    mean = np.asarray(SEEN.features["stage1"], np.float64).mean((1, 2))
    np.testing.assert_allclose(own.features["aux1"], mean @ params["logits"]["kernel"], rtol=1e-5, atol=1e-6)
    assert others is None
    params, own, _ = seen_through(connectors.auxiliary("embedding"))
    np.testing.assert_allclose(
        own.features["aux1"], SEEN.features["embedding"] @ params["logits"]["kernel"], rtol=1e-5, atol=1e-6
    )


def test_a_hidden_layer_convolves_maps_and_not_vectors():
    for name, shape in (("stage1", (3, 3, 2, 7)), ("embedding", (6, 7))):
        params, own, _ = seen_through(connectors.auxiliary(name, width=7))
        assert params["hidden"]["kernel"].shape == shape
        assert own.features["aux1"].shape == (5, CLASSES)


def test_its_teacher_is_the_teacher_and_its_labels_are_the_batchs():
    teacher = SEEN._replace(logits=SEEN.logits + 1)
    _, own, others = seen_through(connectors.auxiliary("stage1"), teacher)
    np.testing.assert_array_equal(others.features["aux1"], teacher.logits)
    as_the_students = cross_entropy(Outputs(own.features["aux1"], {}), None, LABELS)
    np.testing.assert_allclose(FROM_LABELS(own, None, LABELS), as_the_students, rtol=1e-6)


def test_it_learns_from_labels_without_a_teacher():
    def network(params, model_state, inputs, *, train, rng=None):
        return Outputs(inputs[:, :CLASSES], {"embedding": jnp.tanh(inputs @ params)}), model_state

    beside, nobody = {"aux1": connectors.auxiliary("embedding")}, connectors.no_student
    inputs = SEEN.features["embedding"]
    student = Weights(jnp.eye(6), {})
    weights = connectors.init_beside(beside, KEYS[3], network, student, nobody, Weights({}, {}), inputs)
    step = jax.jit(make_train_step(network, None, optax.sgd(0.5), connectors=beside))
    state, losses = init_state(weights, optax.sgd(0.5), KEYS[3]), []
    for _ in range(30):
        state, metrics = step(state, None, weighted_sum(aux=(1.0, FROM_LABELS)), {"inputs": inputs, **LABELS})
        losses.append(float(metrics["aux"]))
    assert losses[-1] < 0.5 * losses[0]
    assert float(jnp.abs(connectors.student_of(state).params - student.params).max()) > 1e-3


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        (lambda: connectors.auxiliary("stage1", width=0), "width must be a whole number of 1 or more; got 0"),
        (
            lambda: connectors.auxiliary("stage9"),
            r"The student has no feature 'stage9'; it has \['embedding', 'stage1'",
        ),
        (lambda: connectors.auxiliary("steps"), r"student.steps must be .* got shape \(5, 4, 4\)"),
    ],
)
def test_what_cannot_be_classified_is_a_named_error(connector, words):
    outputs = Outputs(SEEN.logits, {**SEEN.features, "steps": jnp.ones((5, 4, 4))})
    outputs.features.pop("steps") if "stage9" in words else None
    with pytest.raises(ValueError, match=words):
        connector().init(KEYS[3], outputs, outputs)
