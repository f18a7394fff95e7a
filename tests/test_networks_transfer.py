"""A part of the teacher's weights in the student: what is copied, that it computes the same, and what is said of it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import Weights
from kdjax.models import CNN
from kdjax.networks import Transfer, copy_matching, from_linen, transfer_lines

IMAGES = jax.random.normal(jax.random.key(9), (5, 8, 8, 1))
ORDER = ("stage1", "stage2", "hidden", "logits")


@cache
def network(widths, hidden, seed, **settings):
    """Numbers that no two channels share, statistics and biases too: whoever mixed up channels would be seen."""
    init, apply = from_linen(CNN(widths=widths, hidden=hidden, **settings))
    noise = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), IMAGES)  # cheaper than to compile what initialises
    signs = jax.tree.map(lambda leaf: 1.0 if leaf.ndim == 1 else noise.choice([-1.0, 1.0], leaf.shape), shapes)
    return jax.tree.map(lambda leaf, sign: np.float32(sign * noise.uniform(0.1, 0.4, leaf.shape)), shapes, signs), apply


def outputs_of(apply, weights):
    return jax.jit(lambda weights: apply(*weights, IMAGES, train=False)[0])(weights)


def embedded(student: Weights, teacher: Weights, places) -> Weights:
    """A teacher that computes what the student does, at these of its channels; the others are dead."""
    one, two, hidden = places
    positions = student.params["hidden"]["kernel"].shape[0] // len(two)
    rows = (np.arange(positions)[:, None] * teacher.params["stage2"]["kernel"].shape[-1] + np.array(two)).ravel()
    where = {
        "stage1": {"kernel": np.ix_(range(3), range(3), [0], one), "bias": one},
        "stage2": {"kernel": np.ix_(range(3), range(3), one, two), "bias": two},
        "hidden": {"kernel": np.ix_(rows, hidden), "bias": hidden},
        "logits": {"kernel": np.ix_(hidden, range(10)), "bias": range(10)},
    }
    params = {}
    for layer, leaves in where.items():
        params[layer] = {}
        for name, at in leaves.items():
            whole = np.zeros(teacher.params[layer][name].shape, np.float32)
            whole[at] = student.params[layer][name]
            params[layer][name] = jnp.asarray(whole)
    return Weights(params, {})


def test_equal_architectures_are_copied_whole_and_all_is_reported():
    teacher, _ = network((4, 6), 8, 0, batch_norm=True)
    student, _ = network((4, 6), 8, 1, batch_norm=True)
    weights, report = copy_matching(teacher, student)
    jax.tree.map(np.testing.assert_array_equal, weights, teacher)
    assert {entry.what for entry in report} == {"copied"}
    assert len(report) == len(jax.tree.leaves(student))


def test_without_selection_what_does_not_fit_keeps_its_bits_and_says_why():
    teacher, _ = network((4, 6), 8, 0, batch_norm=True)
    student, _ = network((4, 5), 8, 1)
    weights, report = copy_matching(teacher, student)
    said = {entry.name or entry.source: entry for entry in report}
    copied = {name for name, entry in said.items() if entry.what == "copied"}
    assert copied == {"params/stage1/kernel", "params/hidden/bias", "params/logits/kernel", "params/logits/bias"}
    for layer, leaves in weights.params.items():
        for name, leaf in leaves.items():
            origin = teacher if f"params/{layer}/{name}" in copied else student
            np.testing.assert_array_equal(leaf, origin.params[layer][name])
    assert said["params/stage2/kernel"] == Transfer(
        "params/stage2/kernel",
        "params/stage2/kernel",
        "left",
        "the teacher's shape is (3, 3, 4, 6), the student's (3, 3, 4, 5)",
    )
    assert said["params/stage1/bias"].why == "the teacher has no such leaf"
    unused = said["model_state/batch_stats/stage1/norm/mean"]
    assert unused == Transfer(
        None, "model_state/batch_stats/stage1/norm/mean", "unused", "the student has no such leaf"
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("channels", ["first", "largest"])
def test_the_first_narrowed_layer_computes_exactly_the_teachers_maps(channels, batch_norm):
    teacher, large = network((6, 8), 12, 0, batch_norm=batch_norm)
    student, small = network((3, 8), 12, 1, batch_norm=batch_norm)
    weights, report = copy_matching(teacher, student, channels=channels, order=ORDER)
    norms = np.abs(np.asarray(teacher.params["stage1"]["kernel"])).sum((0, 1, 2))
    kept = [0, 1, 2] if channels == "first" else sorted(np.argsort(norms)[-3:])
    assert channels == "first" or kept != [0, 1, 2], "this teacher's largest must not be its first"
    maps = outputs_of(large, teacher).features["stage1"][..., np.array(kept)]
    np.testing.assert_allclose(outputs_of(small, weights).features["stage1"], maps, rtol=1e-6, atol=1e-7)
    said = {entry.name: (entry.what, entry.why) for entry in report}
    assert said["params/stage1/kernel"] == ("selected", "3 of 6 channels")
    assert said["params/stage2/kernel"] == ("selected", "3 of 6 inputs")
    assert said["params/hidden/kernel"] == ("copied", "")
    assert (said.get("model_state/batch_stats/stage1/norm/var") == ("selected", "3 of 6 channels")) == batch_norm


def test_a_student_hidden_in_a_larger_teacher_is_found_whole():
    """Its channels lie scattered among dead ones; through all layers, the flattening too, the chain follows them."""
    twin, small = network((3, 4), 5, 2)
    teacher, large = network((7, 9), 12, 0)
    teacher = embedded(twin, teacher, ([1, 3, 6], [0, 4, 5, 8], [2, 3, 7, 9, 11]))
    student, _ = network((3, 4), 5, 1)
    weights, report = copy_matching(teacher, student, channels="largest", order=ORDER)
    jax.tree.map(np.testing.assert_array_equal, weights, twin)
    assert {entry.what for entry in report} == {"selected", "copied"}  # copied: the logits' biases
    np.testing.assert_allclose(
        outputs_of(small, weights).logits, outputs_of(large, teacher).logits, rtol=1e-5, atol=1e-6
    )


def test_a_normalisation_that_stands_apart_follows_the_layer_before():
    teacher = Weights(
        {"Conv_0": {"kernel": jnp.arange(8.0).reshape(1, 1, 2, 4)}, "BatchNorm_0": {"scale": jnp.arange(4.0)}},
        {"batch_stats": {"BatchNorm_0": {"mean": jnp.arange(4.0)}}},
    )
    student = jax.tree.map(lambda leaf: -jnp.ones_like(leaf[..., :2]), teacher)
    weights, _ = copy_matching(teacher, student, channels="largest", order=("Conv_0", "BatchNorm_0"))
    assert weights.params["Conv_0"]["kernel"].tolist() == [[[[2, 3], [6, 7]]]]
    assert weights.params["BatchNorm_0"]["scale"].tolist() == [2, 3]
    assert weights.model_state["batch_stats"]["BatchNorm_0"]["mean"].tolist() == [2, 3]


def test_after_a_layer_that_is_left_nothing_is_selected_by_guess():
    teacher, _ = network((6, 8), 12, 0)
    wider, _ = network((7, 4), 12, 1)
    weights, report = copy_matching(teacher, wider, channels="first", order=ORDER)
    said = {entry.name: entry for entry in report}
    assert [said[f"params/{name}/kernel"].what for name in ORDER] == ["left", "left", "left", "copied"]
    assert said["params/stage1/bias"].why == "the kernel of stage1 is left"
    np.testing.assert_array_equal(weights.params["stage2"]["bias"], wider.params["stage2"]["bias"])
    narrower, _ = network((3, 8), 12, 1)
    with_only, report = copy_matching(teacher, narrower, channels="first", order=ORDER, only=("stage2|hidden",))
    said = {entry.name: entry for entry in report}
    assert said["params/stage1/kernel"].why == said["params/logits/bias"].why == "not named by only"
    assert said["params/stage2/kernel"].what == said["params/stage2/bias"].what == "left"
    assert said["params/hidden/kernel"].what == "copied"
    np.testing.assert_array_equal(with_only.params["logits"]["bias"], narrower.params["logits"]["bias"])


def test_a_depthwise_kernel_is_never_taken_for_one_of_a_single_plane():
    """After a layer that was left: its filters would stand on channels that are the student's own."""

    def separable(channels, seed):
        draw = np.random.default_rng(seed).normal
        shapes = {"first": (1, 1, 3, channels), "point": (1, 1, channels, channels), "depth": (3, 3, 1, channels)}
        shapes = {name: shapes[name] for name in ("first", "depth", "point")} | {"last": shapes["depth"]}
        return Weights({name: {"kernel": draw(size=shape).astype(np.float32)} for name, shape in shapes.items()}, {})

    teacher, student = separable(8, 0), separable(4, 1)
    weights, report = copy_matching(teacher, student, channels="largest", order=("first", "depth", "point", "last"))
    said = {entry.name: entry for entry in report}
    # The first depthwise layer reads selected channels, which it has not as inputs; then nothing is known of what comes in.
    assert [said[f"params/{name}/kernel"].what for name in teacher.params] == ["selected", "left", "left", "left"]
    assert "it may be depthwise, and what comes in from point is the student's own" in said["params/last/kernel"].why
    np.testing.assert_array_equal(weights.params["last"]["kernel"], student.params["last"]["kernel"])


def test_names_are_changed_and_numbers_are_cast():
    teacher = Weights({"net": {"a": jnp.ones(2), "ab": jnp.ones(3)}}, {"stats": {"net": {"a": jnp.ones(2, jnp.int32)}}})
    student = Weights({"b": jnp.zeros(2, jnp.bfloat16), "ab": jnp.zeros(3)}, {"stats": {"b": jnp.zeros(2)}})
    weights, report = copy_matching(teacher, student, rename={"net/a": "b", "net/ab": "ab"})
    assert weights.params["b"].dtype == jnp.bfloat16
    assert transfer_lines(report) == [
        "copied  params/ab            from params/net/ab",
        "copied  params/b             from params/net/a, cast from float32 to bfloat16",
        "left    model_state/stats/b  from model_state/stats/net/a, the teacher's dtype is int32, the student's float32",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": "biggest"}, "channels must be one of refuse, first, largest; got 'biggest'"),
        ({"channels": "first"}, "order must name the layers that are narrowed"),
        ({"order": ORDER}, "order must name the layers that are narrowed"),
        ({"channels": "first", "order": ("stage_1",)}, r"'stage_1' stands in no path. Did you mean 'stage1'"),
        ({"channels": "first", "order": ("params",)}, "'params' has params/hidden/kernel, params/logits/kernel"),
        (
            {"channels": "first", "order": ("stage1", "stage1")},
            "layers that share no leaf; 'stage1' has params/stage1/bias",
        ),
        ({"only": ("hiden",)}, "only must name parts of the tree; 'hiden' stands in no path. Did you mean 'hidden'"),
        ({"rename": {"stage3": "x"}}, "rename must name parts of the tree; 'stage3' stands in no path"),
        ({"rename": {"stage1": "stage2"}}, "params/stage1/bias and params/stage2/bias both get params/stage2/bias"),
        (
            {"only": ("stage2/kernel",)},
            "source must have something that fits the target; params/hidden/bias: not named",
        ),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    teacher, _ = network((4, 6), 8, 0)
    student, _ = network((4, 5), 8, 1)
    with pytest.raises(ValueError, match=message):
        copy_matching(teacher, student, **arguments)
