"""What connectors compute, against slow forms in NumPy written from the papers."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import by_hand, close, made, outputs, relu, run
from connected import head, network, student, teacher

from kdjax import Weights, connectors, losses, on_outputs
from kdjax.connectors import Seen


@pytest.mark.parametrize(
    ("own", "wanted", "kernel"),
    [
        ((5, 3), (5, 4), (3, 4)),
        ((5, 6, 3), (5, 6, 4), (3, 4)),
        ((2, 4, 4, 3), (2, 4, 4, 4), (3, 4)),
        ((2, 8, 6, 3), (2, 4, 2, 4), (2, 3, 3, 4)),  # it divides: windows side by side
        ((2, 7, 5, 3), (2, 4, 4, 4), (4, 2, 3, 4)),  # it does not: FitNets' convolution without padding
        ((2, 14, 4, 3), (2, 4, 4, 4), (5, 1, 3, 4)),  # stride 3
    ],
)
def test_a_regressor_meets_the_teachers_shape(own, wanted, kernel):
    connector = connectors.regressor("f")
    pair = outputs(0, f=own), outputs(1, f=wanted)
    weights = made(connector, *pair)
    assert weights.params["layer1"]["kernel"].shape == kernel
    of_student, of_teacher, state = run(connector, weights, *pair)
    strides = tuple(a // b for a, b in zip(own[1:3], wanted[1:3], strict=True)) if len(own) == 4 else (1, 1)
    close(of_student[""], by_hand(weights.params["layer1"], pair[0].features["f"], strides=strides))
    assert of_student[""].shape == wanted
    close(of_teacher[""], pair[1].features["f"])
    assert state == {"layer1": {}}


def test_a_smaller_map_is_stretched_between_the_centres_of_its_cells():
    connector = connectors.regressor("f")
    pair = outputs(0, f=(2, 2, 6, 3)), outputs(1, f=(2, 4, 3, 5))
    weights = made(connector, *pair)
    x = np.asarray(pair[0].features["f"], np.float64)
    rows = [x[:, 0], 0.75 * x[:, 0] + 0.25 * x[:, 1], 0.25 * x[:, 0] + 0.75 * x[:, 1], x[:, 1]]
    close(run(connector, weights, *pair)[0][""], by_hand(weights.params["layer1"], np.stack(rows, 1), strides=(1, 2)))


def test_batch_normalisation_takes_the_batchs_statistics_and_remembers_them():
    connector = connectors.regressor("f", depth=2, width=6, normalize=True)
    pair = outputs(0, f=(3, 4, 4, 2)), outputs(1, f=(3, 4, 4, 5))
    weights = made(connector, *pair)
    first, second = weights.params["layer1"], weights.params["layer2"]
    of_student, _, state = run(connector, weights, *pair)
    middle = by_hand(first, pair[0].features["f"])
    close(of_student[""], by_hand(second, relu(middle)))
    before = np.asarray(pair[0].features["f"], np.float64) @ np.asarray(first["kernel"], np.float64)
    close(state["layer1"]["mean"], 0.1 * before.mean((0, 1, 2)))
    close(state["layer1"]["variance"], 0.9 + 0.1 * before.var((0, 1, 2)))
    later = Weights(weights.params, state)
    inferred, _, same = run(connector, later, *pair, train=False)
    middle = relu(by_hand(first, pair[0].features["f"], state=state["layer1"]))
    close(inferred[""], by_hand(second, middle, state=state["layer2"]))
    chex.assert_trees_all_equal(same, state)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 1e3])
def test_variational_starts_at_any_variance(variance):
    shapes = outputs(0, f=(2, 4, 4, 3)), outputs(1, f=(2, 4, 4, 5))
    raw = connectors.variational("f", start_variance=variance).init(jax.random.key(0), *shapes).params["raw_variance"]
    np.testing.assert_allclose(jax.nn.softplus(raw), np.full(5, variance), rtol=1e-5)


def test_variational_predicts_a_mean_and_starts_at_a_variance():
    connector = connectors.variational("f", start_variance=2.0)
    pair = outputs(0, f=(2, 4, 4, 3)), outputs(1, f=(2, 2, 2, 5))
    untouched = connector.init(jax.random.key(0), *pair)
    close(np.log1p(np.exp(np.asarray(untouched.params["raw_variance"]))), np.full(5, 2.0))
    weights = made(connector, *pair)
    of_student, of_teacher, _ = run(connector, weights, *pair)
    x = np.asarray(pair[0].features["f"], np.float64).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    for i in (1, 2, 3):
        x = by_hand(weights.params["mean"][f"layer{i}"], x if i == 1 else relu(x))
    close(of_student[""], x)
    close(of_student["raw_variance"], weights.params["raw_variance"])
    close(of_teacher[""], pair[1].features["f"])
    term = on_outputs(
        losses.variational_information, "student.vid", "teacher.vid", raw_variance="student.vid_raw_variance"
    )
    joined = connectors.connect({"vid": connector}, *({"vid": tree} for tree in weights), *pair, {}, train=True)
    assert term(*joined[:2], {}).shape == (2,)


def leaky(x):
    return np.where(x < 0, 0.1 * x, x)


def test_the_paraphraser_tells_and_retells_and_the_translator_hears_it():
    pair = outputs(0, f=(2, 4, 4, 3)), outputs(1, f=(2, 3, 3, 6))
    connector = connectors.paraphraser("f", rate=0.4)
    weights = made(connector, *pair)
    of_student, of_teacher, state = run(connector, weights, *pair)
    x = pair[1].features["f"]
    for i in (1, 2, 3):
        x = leaky(by_hand(weights.params["encoder"][f"layer{i}"], x, same=True))
    assert x.shape == of_student["factor"].shape == (2, 3, 3, 2)
    close(of_student["factor"], x)
    for i in (1, 2, 3):
        x = leaky(by_hand(weights.params["decoder"][f"layer{i}"], x, same=True))
    close(of_student[""], x)
    close(of_teacher[""], pair[1].features["f"])

    listener = connectors.translator("f", paraphraser=Weights(weights.params, state))
    own = made(listener, *pair, seed=4)
    of_student, of_teacher, after = run(listener, own, *pair)
    x, y = pair[0].features["f"], pair[1].features["f"]
    for i in (1, 2, 3):
        layer = f"layer{i}"
        x = leaky(by_hand(own.params[layer], x, same=True))
        y = leaky(by_hand(weights.params["encoder"][layer], y, same=True, state=state["encoder"][layer]))
    close(of_student[""], x)
    close(of_teacher[""], y)
    chex.assert_trees_all_close(after["paraphraser"].model_state, state["encoder"])


def test_review_fuses_from_the_deepest_stage_on():
    names = ("a", "b", "c")
    pair = (
        outputs(0, a=(2, 6, 6, 3), b=(2, 3, 3, 4), c=(2, 5)),
        outputs(1, a=(2, 4, 4, 5), b=(2, 3, 3, 6), c=(2, 7)),
    )
    connector = connectors.review(names, width=4)
    weights = made(connector, *pair)
    of_student, of_teacher, _ = run(connector, weights, *pair)
    assert sorted(of_student) == sorted(of_teacher) == ["1", "2", "3"]
    deeper = None
    for i, name in reversed(list(enumerate(names, start=1))):
        own, wanted = (np.asarray(one.features[name], np.float64) for one in pair)
        own, wanted = (x[:, None, None] if x.ndim == 2 else x for x in (own, wanted))
        layers = weights.params[name]
        x = by_hand(layers["narrow"], own)
        if deeper is not None:
            deeper = nearest(deeper, *x.shape[1:3])
            gate = 1 / (1 + np.exp(-by_hand(layers["attention"], np.concatenate([x, deeper], -1))))
            x = gate[..., :1] * x + gate[..., 1:] * deeper
        deeper = x
        close(of_student[str(i)], by_hand(layers["out"], nearest(x, *wanted.shape[1:3]), same=True))
        close(of_teacher[str(i)], wanted)
    assert "attention" not in weights.params["c"]


def nearest(x, height, width):
    return np.stack(
        [
            np.stack([x[:, r * x.shape[1] // height, c * x.shape[2] // width] for c in range(width)], 1)
            for r in range(height)
        ],
        1,
    )


@pytest.mark.parametrize("shape", [(3, 4, 4, 5), (3, 5)])
def test_the_projector_classifies_as_the_teacher_does(shape):
    pair = outputs(0, f=shape), outputs(1, f=(3, 2, 2, 7) if len(shape) == 4 else (3, 7))
    connector = connectors.projector("f", classifier_weights=head())
    weights = made(connector, *pair)
    of_student, of_teacher, _ = run(connector, weights, *pair)
    x = np.asarray(pair[0].features["f"], np.float64)
    if x.ndim == 4:
        x = x.reshape(3, 2, 2, 2, 2, 5).mean((2, 4))
    for i in (1, 2, 3):
        x = relu(by_hand(weights.params[f"layer{i}"], x, same=True))
    close(of_student[""], x)
    close(of_student["logits"], averaged(x) @ np.asarray(head()["kernel"]) + np.asarray(head()["bias"]))
    close(of_teacher[""], pair[1].features["f"])
    close(of_teacher["logits"], pair[1].logits)
    assert weights.params["layer1"]["kernel"].shape == (5, 3)
    alone, nothing, _ = run(connector, weights, pair[0], None)
    close(alone["logits"], of_student["logits"])
    assert nothing == {}


def test_the_shared_classifier_reads_the_averaged_feature():
    pair = outputs(0, f=(3, 4, 4, 5)), outputs(1, f=(3, 2, 2, 7))
    connector = connectors.shared_classifier("f", classifier_weights=head())
    weights = made(connector, *pair)
    of_student, of_teacher, _ = run(connector, weights, *pair)
    x = averaged(relu(by_hand(weights.params["layer1"], pair[0].features["f"])))
    close(of_student[""], x)
    close(of_student["logits"], x @ np.asarray(head()["kernel"]) + np.asarray(head()["bias"]))
    close(of_teacher[""], averaged(np.asarray(pair[1].features["f"], np.float64)))
    close(of_teacher["logits"], pair[1].logits)


def averaged(x):
    return x.mean((1, 2)) if x.ndim == 4 else x


def test_half_precision_features_are_connected_in_float32():
    half = jax.tree.map(lambda array: array.astype(jnp.bfloat16), outputs(0, f=(2, 4, 4, 3)))
    for connector in (
        connectors.regressor("f", normalize=True), connectors.variational("f"), connectors.embeddings("f"),
        connectors.paraphraser("f"), connectors.review(("f",)), connectors.queue("f", size=3),
    ):  # fmt: skip
        weights = made(connector, half, half)
        added = jax.jit(lambda weights, apply=connector.apply: apply(*weights, Seen(half, half, {}, True, None)))(
            weights
        )
        chex.assert_tree_all_finite(added)
        of_student, _, state = added
        assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(of_student))
        assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, weights.model_state)


def test_nothing_is_run_to_make_weights():
    def forbidden(params, model_state, inputs, *, train, rng=None):
        assert isinstance(inputs, jax.core.Tracer)
        return network(params, model_state, inputs, train=train)

    shapes = jax.eval_shape(student), jax.eval_shape(teacher)
    beside = {"hint": connectors.regressor("stage1", "stage2"), "more": connectors.embeddings("embedding")}
    made_of_shapes, made_of_arrays = (
        connectors.init_beside(beside, jax.random.key(0), forbidden, own, forbidden, others, inputs)
        for (own, others), inputs in (
            (shapes, jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)),
            ((student(), teacher()), jnp.ones((5, 4, 4, 2))),
        )
    )
    chex.assert_trees_all_equal(made_of_shapes.params["connectors"], made_of_arrays.params["connectors"])
    # One connector more changes nothing of another.
    alone = connectors.init_beside(
        {"hint": beside["hint"]}, jax.random.key(0), network, student(), network, teacher(), jnp.ones((5, 4, 4, 2))
    )
    assert jax.tree.structure(alone.params["student"]) == jax.tree.structure(student().params)
    chex.assert_trees_all_equal(alone.params["connectors"]["hint"], made_of_arrays.params["connectors"]["hint"])


def test_every_export_cites_or_is_plumbing():
    plumbing = {
        "Connector",
        "Seen",
        "average_and_dense",
        "bricks",
        "connect",
        "connector_of",
        "controlled",  # a rule of thumb
        "init_beside",
        "no_student",
        "observe",
        "read_places",
        "student_of",
        "through",
    }
    for name in set(connectors.__all__) - plumbing:
        text = inspect.getdoc(getattr(connectors, name))
        for part in ("Args:", "Returns:", "Raises:", "Example:", "Note:", "Reference:", "https://"):
            assert part in text, f"{name}'s docstring has no {part}"
