"""What is special about single losses on predictions: limits, labels that are no class, constant predictions."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from predictions import logits, value_and_gradients

from kdjax import _checks, losses
from kdjax.losses import _distributions

LABELLED = ["target_class_kd", "non_target_class_kd", "decoupled_kd", "normalized_kd"]


# Divergences of whole predictions


@pytest.mark.parametrize(("end", "beside"), [(0.0, 1e-6), (1.0, 1.0 - 1e-6)])
def test_mixed_divergence_has_its_limits_at_the_ends(end, beside):
    """Divided by the weight that vanishes, the divergence beside an end is the one at the end, in its gradient too."""
    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(a, jnp.float64) for a in logits(6, 5))
        step = jax.jit(
            jax.value_and_grad(lambda s, beta: losses.jensen_shannon(s, teacher, beta=beta, temperature=2.0).sum())
        )
        at_the_end, beside_it = step(student, end), jax.tree.map(lambda a: a / 1e-6, step(student, beside))
        one_way = losses.reverse_kl(student, teacher, temperature=2.0).sum()
        other_way = losses.soft_target_kl(student, teacher, temperature=2.0).sum()
    chex.assert_trees_all_close(at_the_end, beside_it, rtol=1e-3)
    np.testing.assert_allclose(at_the_end[0], one_way if end else other_way, 1e-12)


def plainly_mixed(name, log_student, log_teacher, share):
    """The definitions by plain logarithms, whose own derivatives jax takes."""
    student, teacher = jnp.exp(log_student), jnp.exp(log_teacher)
    to, of = (student, teacher) if name == "reverse_skewed_kl" else (teacher, student)
    log_mixture = jnp.log(share * to + (1.0 - share) * of)
    first = jnp.sum(to * (jnp.log(to) - log_mixture))
    return (
        share * first + (1.0 - share) * jnp.sum(of * (jnp.log(of) - log_mixture)) if name == "jensen_shannon" else first
    )


@pytest.mark.parametrize("name", ["jensen_shannon", "skewed_kl", "reverse_skewed_kl"])
def test_second_derivatives_of_mixed_divergences_are_those_of_their_definitions(name):
    share = "beta" if name == "jensen_shannon" else "alpha"
    with jax.enable_x64(True):
        pair = tuple(jnp.asarray(a[0], jnp.float64) for a in logits(1, 5))

        def ours(student, teacher, weight):
            return getattr(losses, name)(student, teacher, **{share: weight})

        def plain(student, teacher, weight):
            return plainly_mixed(name, jax.nn.log_softmax(student), jax.nn.log_softmax(teacher), weight)

        found, wanted = (jax.jit(jax.hessian(loss, (0, 1, 2)))(*pair, jnp.float64(0.3)) for loss in (ours, plain))
    chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_classes_that_both_exclude_count_nothing(beta):
    pair = logits(6, 5)
    masked = tuple(jnp.pad(a, ((0, 0), (0, 2)), constant_values=-jnp.inf) for a in pair)
    for loss, keywords in (
        (losses.reverse_kl, {}),
        (losses.jensen_shannon, {"beta": beta}),
        (losses.skewed_kl, {"alpha": beta}),
        (losses.reverse_skewed_kl, {"alpha": beta}),
    ):
        found, wanted = (value_and_gradients(loss, *logits, **keywords) for logits in (masked, pair))
        np.testing.assert_allclose(found[0], wanted[0], 1e-5)
        for own, its in zip(found[1], wanted[1], strict=True):
            np.testing.assert_allclose(own[:, :5], its, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(own[:, 5:], 0.0)


def test_mixed_divergence_bears_a_class_that_one_network_excludes():
    student, teacher = logits(6, 5)
    values, gradients = value_and_gradients(losses.jensen_shannon, student, teacher.at[:, 0].set(-jnp.inf))
    assert (values > 0).all()
    assert (values <= np.log(2)).all()
    chex.assert_tree_all_finite(gradients)


def test_a_cross_entropy_counts_the_class_that_is_sure_and_no_other():
    sure, second = jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]]), jnp.log(jnp.array([[0.25, 0.75], [1.0, 0.0]]))
    np.testing.assert_allclose(_distributions.cross_entropy(sure, second), [np.log(4.0), 0.0], rtol=1e-6)
    np.testing.assert_allclose(_distributions.relative_entropy(sure, second), [np.log(4.0), 0.0], rtol=1e-6)


# The labelled class and the others


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_that_is_no_class_gives_nan_to_its_example_alone(name):
    pair = logits(4, 5)
    loss = jax.jit(getattr(losses, name))
    values = loss(*pair, jnp.array([4, -1, 5, 0], jnp.int8))
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, False])
    np.testing.assert_array_equal(values[::3], loss(*pair, jnp.array([4, 0, 0, 0], jnp.uint8))[::3])


SOFTENED = ["soft_target_kl", "reverse_kl", "jensen_shannon", "standardized_kd", "dist", *LABELLED]


@pytest.mark.parametrize("name", SOFTENED)
def test_a_single_logit_is_refused_by_name(name):
    labels = [jnp.zeros(3, int)] if name in LABELLED else []
    with pytest.raises(ValueError, match=r"student must have the logits of two classes or more; got shape \(3, 1\)"):
        getattr(losses, name)(*logits(3, 1), *labels)


def test_a_single_logit_beside_zero_is_the_binary_divergence():
    student, teacher = logits(5, 1)
    p, q = jax.nn.sigmoid(teacher / 2)[:, 0], jax.nn.sigmoid(student / 2)[:, 0]
    by_hand = 4 * (p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q)))
    both = [jnp.concatenate([jnp.zeros_like(z), z], axis=1) for z in (student, teacher)]
    np.testing.assert_allclose(losses.soft_target_kl(*both, temperature=2.0), by_hand, rtol=1e-4)


@pytest.mark.parametrize("name", [*SOFTENED, "top_k_kl", "soft_target_bce"])
def test_a_temperature_may_be_each_examples_own(name):
    student, teacher = logits(5, 5)
    others = [jnp.arange(5)] if name in LABELLED else []
    if name == "top_k_kl":
        teacher, *others = jax.lax.top_k(jax.nn.log_softmax(teacher), 3)
    temperatures = jnp.linspace(1.0, 5.0, 5)
    loss = getattr(losses, name)
    keywords = {"gamma": 0.0} if name == "dist" else {}  # its other part is of the whole batch
    alone = [
        loss(*(array[i : i + 1] for array in (student, teacher, *others)), temperature=float(T), **keywords)[0]
        for i, T in enumerate(temperatures)
    ]
    for call in (loss, jax.jit(loss)):
        together = call(student, teacher, *others, temperature=temperatures, **keywords)
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*SOFTENED, "top_k_kl", "soft_target_bce"])
def test_a_temperature_may_be_each_examples_or_each_positions_own(name):
    student, teacher = logits(4, 3, 5)
    others = [jnp.arange(12).reshape(4, 3) % 5] if name in LABELLED else []
    if name == "top_k_kl":
        teacher, *others = jax.lax.top_k(jax.nn.log_softmax(teacher), 3)
    loss = jax.jit(getattr(losses, name))
    each = jnp.linspace(1.0, 5.0, 4)
    of_examples = loss(student, teacher, *others, temperature=each)
    everywhere = jnp.broadcast_to(each[:, None], (4, 3))
    np.testing.assert_allclose(of_examples, loss(student, teacher, *others, temperature=everywhere), rtol=1e-6)
    flat = loss(*(a.reshape(12, *a.shape[2:]) for a in (student, teacher, *others)), temperature=everywhere.reshape(12))
    np.testing.assert_allclose(of_examples.reshape(12), flat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (
            jnp.ones((5, 1)),
            r"temperature must be one number, or one for each example, shape \(5,\); got shape \(5, 1\)",
        ),
        (jnp.ones(3), r"temperature must be one number, or one for each example, shape \(5,\); got shape \(3,\)"),
        (jnp.array([1.0, 1.0, 0.0, 1.0, 1.0]), "temperature must be a finite number greater than 0; got "),
        (1e-30, "temperature must lie between .* so that float32 holds its square; got 1e-30"),
        (1e30, "temperature must lie between .* so that float32 holds its square; got 1e\\+30"),
    ],
)
@pytest.mark.parametrize("name", SOFTENED)
def test_a_temperature_that_fits_no_example_or_no_float_is_refused(name, temperature, message):
    labels = [jnp.zeros(5, int)] if name in LABELLED else []
    loss = inspect.unwrap(getattr(losses, name))
    with pytest.raises(ValueError, match=message):
        loss(*logits(5, 5), *labels, temperature=temperature)


@pytest.mark.parametrize("temperature", ["4", None, True, 1j, [None], np.array(["4"])])
def test_what_is_no_number_is_no_temperature(temperature):
    for check in (_checks.temperature, _checks.positive):
        with pytest.raises(_checks.OutOfRangeError, match="temperature must be ") as refused:
            check("temperature", temperature)
        assert refused.value.argument == "temperature"


def test_two_classes_leave_the_labelled_one_alone():
    student, teacher = logits(3, 2)
    labels = jnp.array([0, 1, 1])
    assert (losses.non_target_class_kd(student, teacher, labels) == 0).all()
    np.testing.assert_allclose(
        losses.target_class_kd(student, teacher, labels), losses.soft_target_kl(student, teacher), 1e-5
    )


def test_a_sure_teacher_keeps_the_digits_of_what_it_leaves_to_the_others():
    """1 − p_y is 1e-9 here, which float32's 1 − p_y knows nothing of."""
    student, teacher = jnp.array([[-21.0, 0.0, 0.0]]), jnp.array([[-20.0, 0.0, 0.5]])
    for label in (0, 1):
        wanted = references.target_class_kd(*map(np.float64, (student, teacher)), [label], temperature=1.0)
        values = losses.target_class_kd(-student, -teacher, jnp.array([0]), temperature=1.0)
        confident = references.target_class_kd(-np.float64(student), -np.float64(teacher), [0], temperature=1.0)
        np.testing.assert_allclose(values, confident, 1e-4)
        values = losses.target_class_kd(student, teacher, jnp.array([label]), temperature=1.0)
        np.testing.assert_allclose(values, wanted, 1e-4)


def test_the_default_weight_of_normalized_kd_is_what_its_signature_shows():
    student, teacher = logits(6, 5)
    labels = jnp.arange(6) % 5
    given = losses.normalized_kd(student, teacher, labels=labels, gamma=1.5)
    np.testing.assert_array_equal(losses.normalized_kd(student, teacher, labels=labels), given)
    assert np.abs(losses.normalized_kd(student, teacher, labels=labels, gamma=2.5) - given).min() > 1e-3


# Patterns


def test_shares_of_the_batch_have_the_mean_of_one_minus_pearson():
    student, teacher = logits(6, 4)
    q, p = jax.nn.softmax(student), jax.nn.softmax(teacher)
    of_classes = np.mean([1 - np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(4)])
    of_examples = np.mean([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(6)])
    np.testing.assert_allclose(losses.dist(student, teacher, beta=0.0).mean(), of_classes, 1e-5)
    np.testing.assert_allclose(losses.dist(student, teacher, gamma=0.0).mean(), of_examples, 1e-5)


def test_rounding_noise_in_constant_probabilities_is_no_pattern():
    """Equal predictions of shifted logits differ in their last bits: among examples they are constant all the same."""
    student = 3.0 * jax.random.normal(jax.random.key(0), (1, 1000)) + 0.1 * jnp.arange(6.0)[:, None]
    assert len(np.unique(jax.nn.softmax(student)[:, 0])) > 1
    teacher = jax.random.normal(jax.random.key(1), (6, 1000))
    values, (gradient, _) = value_and_gradients(losses.dist, student, teacher, beta=0.0)
    np.testing.assert_allclose(values.mean(), 0.5, 1e-5)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


def test_an_example_alone_has_no_pattern_among_examples():
    student, teacher = logits(1, 5)
    values, gradients = value_and_gradients(losses.dist, student, teacher, beta=0.0)
    chex.assert_trees_all_equal((values, gradients), jax.tree.map(jnp.zeros_like, (values, gradients)))


def test_vanishing_probabilities_have_finite_gradients():
    """Down to float32's smallest numbers, where 1 over a column's length would overflow."""
    depths = jnp.linspace(60.0, 110.0, 101)
    student = jnp.array([[0.0, -1.0], [0.0, -2.0]])[None] * jnp.stack([jnp.ones(101), depths], 1)[:, None]
    step = jax.jit(jax.vmap(jax.value_and_grad(lambda s: losses.dist(s, jnp.eye(2)).sum())))
    chex.assert_tree_all_finite(step(student))


def test_standardized_logits_are_the_reference():
    z, _ = logits(6, 5)
    np.testing.assert_allclose(losses.standardize_logits(z), references.standardize_logits(np.float64(z)), 1e-5, 1e-6)
    several_axes = losses.standardize_logits(z.reshape(2, 3, 5))
    np.testing.assert_array_equal(several_axes.reshape(6, 5), losses.standardize_logits(z))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("level", [0.0, 0.1, 3e4])
@pytest.mark.parametrize("classes", [1, 7, 1000])
def test_equal_logits_are_standardized_to_zero_with_zero_gradient(dtype, level, classes):
    z = jnp.full((2, classes), level, dtype)
    standardized, pull_back = jax.vjp(losses.standardize_logits, z)
    (gradient,) = pull_back(jax.random.normal(jax.random.key(0), (2, classes)))
    assert standardized.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(standardized, np.zeros((2, classes)))
    np.testing.assert_array_equal(gradient, np.zeros((2, classes)))


def test_standardized_logits_show_nan_and_name_a_wrong_argument():
    assert np.isnan(losses.standardize_logits(jnp.array([[1.0, jnp.nan, 2.0]]))).all()
    with pytest.raises(ValueError, match="z must hold floating-point numbers"):
        losses.standardize_logits.__wrapped__(jnp.arange(3))
    with pytest.raises(ValueError, match=r"z must have at least 1 axis, \[..., classes\]"):
        losses.standardize_logits.__wrapped__(jnp.array(1.0))


def test_levels_are_at_the_papers_temperatures():
    pair = logits(4, 5)
    each = [losses.soft_target_kl(*pair, temperature=float(T)) for T in range(2, 7)]
    np.testing.assert_allclose(losses.multi_level_instance(*pair), np.mean(each, axis=0), rtol=1e-5)
