"""`kdjax.testing` passes what is right, and finds what is wrong: by its law, its input and its size."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import wrong_losses
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses
from kdjax.testing import LAWS, BadCall, BrokenLaws, check_loss, inputs, invariances, strategies

ON_LOGITS = {"reference": wrong_losses.kl, "keywords": {"temperature": 2.5}}
ON_RELATIONS = {"couples_batch": True}
DRAWN = "drawn: finite and bounded below"

# Of each mistake: what is said of the loss, and laws that must be among those that it breaks.
MISTAKES = {
    "log_probabilities_as_targets": (
        inputs.logits,
        ON_LOGITS,
        {"value of the reference, float64", "finite at bad points"},
    ),
    "probabilities_as_logarithms": (inputs.logits, ON_LOGITS, {"zero at equality", "never below its lowest"}),
    "without_the_square": (inputs.logits, ON_LOGITS, {"value of the reference, float64", "gradient of the reference"}),
    "exchanged": (inputs.logits, ON_LOGITS, {"value of the reference, float32", "drawn: value of the reference"}),
    "mean_over_the_batch": (inputs.logits, {}, {"one number per example"}),
    "mean_for_each": (inputs.logits, ON_LOGITS, {"coupled where declared", "masks and padding"}),
    "naive_softmax": (inputs.logits, ON_LOGITS, {"finite at bad points", DRAWN}),
    "half_precision": (inputs.logits, ON_LOGITS, {"finite at bad points"}),
    "static_temperature": (inputs.logits, ON_LOGITS, {"traced once"}),
    "hidden_nan": (inputs.logits, ON_LOGITS, {"NaN is shown"}),
    "detached_student": (inputs.equal_embeddings, {}, {"gradient by finite differences", "coupled where declared"}),
    "naive_distances": (inputs.embeddings, ON_RELATIONS, {"finite at bad points"}),
    "alignment_called_pkt": (
        inputs.embeddings,
        {**ON_RELATIONS, "invariances": (invariances.scaled_each_example,)},
        {"invariance"},
    ),
    "mask_without_effect": (inputs.embeddings, ON_RELATIONS, {"masks and padding"}),
}


def broken_by(name, laws):
    make, declared, _ = MISTAKES[name]
    with pytest.raises(BrokenLaws) as raised:
        check_loss(getattr(wrong_losses, name), make, laws=laws, examples=10, **declared)
    return raised.value


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_loss_is_found(name):
    wanted = MISTAKES[name][2]
    error = broken_by(name, wanted)
    assert wanted == {breach.law for breach in error.breaches}
    for breach in error.breaches:
        assert f"- {breach.law}: {breach.found.error:.3g}, where at most {breach.found.limit:g}" in str(error)
        assert re.search(
            r"make\(np.random.default_rng\(|drawn arrays \[|three batches|an input at which", breach.found.at
        )


def test_no_law_but_the_right_one_is_broken_by_a_mistake():
    assert {
        breach.law
        for breach in broken_by(
            "hidden_nan", {"NaN is shown", "zero at equality", "order of the batch", "traced once", "jit, vmap, scan"}
        ).breaches
    } == {"NaN is shown"}


def test_a_right_loss_keeps_all_laws_and_each_was_asked():
    found = check_loss(
        losses.soft_target_kl,
        inputs.logits,
        leading_axes=True,
        invariances=(invariances.shifted_logits, invariances.permuted_last_axis),
        bad_calls=(BadCall("temperature must be .* greater than 0", {"temperature": 0.0}),),
        **ON_LOGITS,
    )
    assert [*found] == [*LAWS]
    assert all(not isinstance(one, str) and one.holds for one in found.values()), found


def test_a_loss_over_the_batch_keeps_them_too():
    asked = [
        "coupled where declared",
        "masks and padding",
        "split over devices",
        "order of the batch",
        "drawn: order of the batch",
    ]
    found = check_loss(losses.rkd_distance, inputs.embeddings, laws=[*asked, "invariance"], couples_batch=True)
    assert found["invariance"] == "no invariances were given"
    assert all(found[name].holds for name in asked)


def test_laws_that_need_what_was_not_said_are_not_asked():
    found = check_loss(
        losses.logit_mse, inputs.logits, laws=[name for name in LAWS if "reference" in name or "named" in name]
    )
    assert set(found.values()) == {"no reference was given", "no bad_calls were given"}


def test_what_is_asked_and_declared_must_be_known():
    with pytest.raises(
        ValueError, match=r"laws must be names of kdjax\.testing\.LAWS; got 'finite', and there are one number"
    ):
        check_loss(losses.logit_mse, inputs.logits, laws=["finite"])
    for nothing in ([], "finite values", ""):
        with pytest.raises(
            ValueError, match=r"laws must be a list of names of kdjax\.testing\.LAWS, one at least; got"
        ):
            check_loss(losses.logit_mse, inputs.logits, laws=nothing)
    with pytest.raises(TypeError, match="couples"):
        check_loss(losses.logit_mse, inputs.logits, couples=True)


def test_a_wrong_error_is_a_breach():
    bad = BadCall("temperature must be even", {"temperature": 0.0})
    with pytest.raises(BrokenLaws, match=r"named errors.*greater than 0"):
        check_loss(losses.soft_target_kl, inputs.logits, laws=["named errors"], bad_calls=(bad,))


@settings(max_examples=50)
@given(
    student=strategies.logits(3, 4),
    features=strategies.features(3, 2, elements=strategies.coarse),
    maps=strategies.maps(3, 2, 2, 1),
    labels=strategies.labels(3, 4),
    mask=strategies.masks(3),
)
def test_strategies_draw_what_their_names_say(student, features, maps, labels, mask):
    assert (student.shape, features.shape, maps.shape) == ((3, 4), (3, 2), (3, 2, 2, 1))
    assert {a.dtype for a in (student, features, maps)} == {np.dtype(np.float32)}
    assert np.abs(student).max() <= 10_000
    assert set(np.unique(features)) <= set(np.arange(-12, 13) / 4)
    assert labels.dtype == np.int32
    assert set(labels) <= set(range(4))
    assert mask.any()
    assert mask.shape == (3,)


@given(st.data())
def test_a_loss_is_asked_of_what_is_drawn(data):
    """As a person writes it: their own property, our numbers."""
    student, teacher = (jnp.asarray(data.draw(strategies.logits(4, 3))) for _ in range(2))
    mask = jnp.asarray(data.draw(strategies.masks(4)))
    values = losses.soft_target_kl(student, teacher, temperature=2.0)
    assert jnp.sum(values, where=mask) <= values.sum() * 1.001 + 1e-3
