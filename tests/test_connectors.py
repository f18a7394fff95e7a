"""What connectors compute, against slow forms in NumPy written from the papers, and what they refuse."""

import inspect
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from connected import head, network, paraphrased, student, teacher

from kdjax import Outputs, Weights, connectors, losses, on_outputs


def outputs(seed, **shapes):
    """Random features of these shapes, after a ReLU's manner, and logits of three classes."""
    keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    features = {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    return Outputs(jax.random.normal(keys[0], (next(iter(shapes.values()))[0], 3)), features)


def made(connector, own, others, seed=0):
    """Weights made from shapes alone, then moved, so that no bias is 0 and no scale 1."""
    shapes = jax.eval_shape(lambda one, other: (one, other), own, others)
    weights = jax.jit(lambda key: connector.init(key, *shapes))(jax.random.key(seed))
    leaves, structure = jax.tree.flatten(weights.params)
    random = np.random.default_rng(seed)
    moved = [leaf + np.float32(0.3 * random.normal(size=leaf.shape)) for leaf in map(np.asarray, leaves)]
    return Weights(jax.tree.unflatten(structure, moved), weights.model_state)


def run(connector, weights, own, others, *, train=True, batch=None):
    apply = jax.jit(connector.apply, static_argnames="train")
    result = apply(*weights, own, others, batch or {}, train=train, rng=jax.random.key(3))
    return jax.tree.map(lambda array: np.asarray(array, np.float64), result)


def by_hand(layer, x, *, state=None, strides=(1, 1), same=False):
    """One layer, position by position: product or convolution, then the batch's statistics, or the state's, or a bias."""
    layer = {name: np.asarray(value, np.float64) for name, value in layer.items()}
    x, kernel = np.asarray(x, np.float64), layer["kernel"]
    if kernel.ndim == 4:
        if same:
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        high, wide = kernel.shape[:2]
        rows = range(0, x.shape[1] - high + 1, strides[0])
        columns = range(0, x.shape[2] - wide + 1, strides[1])
        x = np.stack(
            [np.stack([np.tensordot(x[:, r : r + high, c : c + wide], kernel, 3) for c in columns], 1) for r in rows],
            1,
        )
    else:
        x = x @ kernel
    if "scale" in layer:
        flat = x.reshape(-1, x.shape[-1])
        mean, variance = (flat.mean(0), flat.var(0)) if state is None else (state["mean"], state["variance"])
        x = (x - mean) / np.sqrt(np.asarray(variance) + 1e-5) * layer["scale"]
    return x + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


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
        _, of_teacher, model_state = connector.apply({}, model_state, one, one, {}, train=True, rng=None)
        got = np.asarray(of_teacher["queue"], np.float64)
        expected = np.stack(memory)
        close(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])
        rows = np.asarray(one.features["f"], np.float64).reshape(4, 6)
        memory = [*memory, *(rows / np.linalg.norm(rows, axis=1, keepdims=True))][-size:]
    _, of_teacher, same = connector.apply({}, model_state, one, one, {}, train=False, rng=None)
    chex.assert_trees_all_equal((of_teacher["queue"], same), (model_state["queue"], model_state))


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
        of_student, of_teacher, state = jax.jit(partial(connector.apply, train=True, rng=None))(
            *weights, half, half, {}
        )
        chex.assert_tree_all_finite((of_student, of_teacher, state))
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


PAIR = (outputs(0, f=(2, 4, 4, 3), g=(2, 5)), outputs(1, f=(2, 2, 2, 7), g=(2, 5)))


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        (lambda: connectors.regressor("h"), r"The student has no feature 'h'; it has \['f', 'g'\]"),
        (lambda: connectors.regressor("f", "h"), "The teacher has no feature 'h'"),
        (lambda: connectors.regressor("f", "g"), r"student.f must be a map .* got shapes \(2, 4, 4, 3\) and \(2, 5\)"),
        (lambda: connectors.regressor("f", depth=0), "depth must be a whole number of 1 or more; got 0"),
        (lambda: connectors.variational("f", start_variance=-1.0), "start_variance must be a finite number greater"),
        (lambda: connectors.variational("f", "g"), "student.f must be a map"),
        (lambda: connectors.embeddings("f", dim=0), "dim must be a whole number of 1 or more; got 0"),
        (lambda: connectors.contrast("f", size=1), "size must be a whole number of 2 or more; got 1"),
        (
            lambda: connectors.contrast("f", size=4, labels=[0, 1]),
            r"labels must be whole class numbers of shape \(4,\)",
        ),
        (lambda: connectors.contrast("f", size=2, labels=[1, 1]), "labels must be of two classes at least"),
        (lambda: connectors.queue("h", size=3), "The teacher has no feature 'h'"),
        (lambda: connectors.queue("f", size=0), "size must be a whole number of 1 or more; got 0"),
        (lambda: connectors.paraphraser("g"), r"teacher.g must have 4 axes"),
        (lambda: connectors.paraphraser("f", rate=0.0), "rate must be a finite number greater than 0"),
        (
            lambda: connectors.translator("f", paraphraser=paraphrased()),
            "the 8 channels that the paraphraser was trained",
        ),
        (
            lambda: connectors.translator("f", paraphraser=Weights(head(), {})),
            "paraphraser must be the Weights of a trained",
        ),
        (lambda: connectors.review(()), "students must name one feature at least"),
        (lambda: connectors.review(("f", "g"), ("f",)), r"teachers must name one feature for each of students, 2"),
        (
            lambda: connectors.projector("f", classifier_weights={"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}),
            r"classifier must turn the teacher's feature of shape \(2, 2, 2, 7\) into its logits, and cannot",
        ),
        (
            lambda: connectors.shared_classifier(
                "f", classifier_weights={"kernel": jnp.ones((7, 4)), "bias": jnp.ones(4)}
            ),
            r"into logits of shape \(2, 3\); got shape \(2, 4\)",
        ),
    ],
)
def test_what_cannot_be_connected_is_a_named_error(connector, words):
    with pytest.raises(ValueError, match=words):
        connector().init(jax.random.key(0), *PAIR)


def test_a_name_that_is_taken_and_a_batch_without_indices_are_named_errors():
    data = jnp.ones((2, 4, 4, 2))
    rest = (jax.random.key(0), network, student(), network, teacher(), data)
    with pytest.raises(ValueError, match="The connector 'stage1' would add 'stage1' to the student's features"):
        connectors.init_beside({"stage1": connectors.regressor("stage1")}, *rest)
    clash = {"a": connectors.variational("f"), "a_raw_variance": connectors.regressor("f")}
    weights = {name: made(connector, *PAIR) for name, connector in clash.items()}
    trees = [{name: one[part] for name, one in weights.items()} for part in (0, 1)]
    with pytest.raises(ValueError, match="The connector 'a_raw_variance' would add 'a_raw_variance'"):
        connectors.connect(clash, *trees, *PAIR, {}, train=True)
    contrast = connectors.contrast("g", size=5, dim=2, negatives=2)
    with pytest.raises(ValueError, match='batch must have "indices"'):
        run(contrast, made(contrast, *PAIR), *PAIR)
    with pytest.raises(ValueError, match="rng must be a key"):
        contrast.apply(*made(contrast, *PAIR), *PAIR, {"indices": jnp.arange(2)}, train=True, rng=None)
    with pytest.raises(ValueError, match="A connector reads the teacher's feature 'f', and there is no teacher"):
        run(connectors.regressor("f"), made(connectors.regressor("f"), *PAIR), PAIR[0], None)
    with pytest.raises(ValueError, match="teacher must be cached Outputs where teacher_apply is None; got Weights"):
        connectors.init_beside({}, jax.random.key(0), network, student(), None, teacher(), data)


def test_only_what_stands_beside_connectors_can_be_left_alone():
    with pytest.raises(ValueError, match=r"The params must be a student's and connectors'.*got \['bias'"):
        connectors.student_of(student())
    beside = connectors.init_beside(
        {"hint": connectors.regressor("stage1")},
        jax.random.key(0),
        network,
        student(),
        network,
        teacher(),
        jnp.ones((2, 4, 4, 2)),
    )
    with pytest.raises(ValueError, match=r"name must be one of hint; got 'hnt'\. Did you mean 'hint'"):
        connectors.connector_of(beside, "hnt")
    with pytest.raises(ValueError, match="A connector reads the teacher's feature"):
        connectors.through(network, {"hint": connectors.regressor("stage1")}, "hint")(
            *beside, jnp.ones((2, 4, 4, 2)), train=False
        )


def test_every_export_cites_or_is_plumbing():
    plumbing = {
        "Connector",
        "average_and_dense",
        "connect",
        "connector_of",
        "init_beside",
        "no_student",
        "student_of",
        "through",
    }
    for name in set(connectors.__all__) - plumbing:
        text = inspect.getdoc(getattr(connectors, name))
        for part in ("Args:", "Returns:", "Raises:", "Example:", "Note:", "Reference:", "https://"):
            assert part in text, f"{name}'s docstring has no {part}"
