"""A term on hidden states and heads, whose mean the step takes as one weighted sum."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads import HEADS, PLAIN, TEACHER, WAYS, WORDS, batch, fresh, of_logits, programs, same, step, step_by

from kdjax import on_heads, on_logits, on_outputs, scaled, weighted_sum
from kdjax.losses import dist, linear_soft_target_kl, linear_weighted_sum, skewed_kl, soft_target_kl
from kdjax.training import jit_step

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels
SUMS = weighted_sum(
    labels=(0.3, on_heads(LABELS, *HEADS[:2], chunk=5)),
    soft=(0.7, on_heads(soft_target_kl, *HEADS, temperature=2.0, chunk=5)),
)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_on_heads_is_one_on_logits(way):
    same(step_by(way, SUMS), of_logits())


def test_no_array_of_tokens_and_words_and_two_products_a_network_and_chunk():
    of_all_words = re.compile(rf"f32\[(?:8,3|24),{WORDS}\]")
    assert of_all_words.search(programs(PLAIN))
    assert not of_all_words.search(programs(SUMS))

    def products(term):
        objective = weighted_sum(soft=(1.0, term))
        text = jax.jit(step()).lower(fresh(), TEACHER, objective, batch()).as_text()
        return len(re.findall(r"stablehlo\.dot_general", text))

    # One chunk holds all tokens: what is counted are the products that are made.
    sums = products(on_heads(soft_target_kl, *HEADS, chunk=24))
    assert sums == products(on_outputs(linear_soft_target_kl, *HEADS, chunk=WORDS)) - 2


def test_what_does_not_count_changes_nothing():
    """Tokens that the mask leaves out have labels that are none, and the ignored label is left out of its term."""
    whole = batch()
    whole["labels"] = np.where(whole["mask"], whole["labels"], WORDS + 7)
    whole["labels"][0, 0] = -100
    run = jit_step(step(ignore_label=-100))
    same(run(fresh(), TEACHER, SUMS, whole), run(fresh(), TEACHER, PLAIN, whole))


def hellinger(student, teacher):
    """Its slope is NaN where both agree, as two networks with nothing to say do."""
    own, its = (jnp.sqrt(jax.nn.softmax(one)) for one in (student, teacher))
    return jnp.sqrt(jnp.sum((own - its) ** 2, axis=-1))


@pytest.mark.parametrize("way", ["heads", "linear"])
def test_a_temperature_of_0_where_nothing_counts_reaches_no_weight(way):
    arrays = batch()
    arrays["T"] = np.where(arrays["mask"], np.linspace(1.0, 3.0, arrays["mask"].size).reshape(-1, 3), 0.0)
    arrays["T"] = arrays["T"].astype(np.float32)
    linear, plain = (
        on_heads(soft_target_kl, *HEADS, temperature="batch.T", chunk=5)
        if way == "heads"
        else on_outputs(linear_soft_target_kl, *HEADS, temperature="batch.T", chunk=16),
        on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="batch.T"),
    )
    labels = PLAIN.terms["labels"]
    goals = [weighted_sum(labels=(0.3, labels), soft=(0.7, one)) for one in (linear, plain)]
    found, wanted = (jit_step(step())(fresh(), TEACHER, goal, arrays) for goal in goals)
    same(found, wanted)
    nothing = arrays | {"mask": np.zeros_like(arrays["mask"]), "T": np.zeros_like(arrays["T"])}
    state, metrics = jit_step(step())(fresh(), TEACHER, goals[0], nothing)
    assert (metrics["soft"], metrics["soft count"]) == (0, 0)
    np.testing.assert_array_equal(state.params["head"], fresh().params["head"])


def test_a_loss_without_a_slope_where_both_agree_is_told_what_counts():
    labels = PLAIN.terms["labels"]
    terms = on_heads(hellinger, *HEADS, chunk=5), on_logits(hellinger)
    goals = [weighted_sum(labels=(0.3, labels), soft=(0.7, one)) for one in terms]
    same(*(jit_step(step())(fresh(), TEACHER, goal, batch()) for goal in goals))


def test_it_may_be_scaled_by_what_stands_in_the_batch():
    weights = np.linspace(0.0, 2.0, 8, dtype=np.float32)
    whole = {**batch(masked=False), "how_much": weights}
    by_heads, by_logits = (
        jit_step(step())(fresh(), TEACHER, weighted_sum(soft=(1.0, scaled(term, by="batch.how_much"))), whole)
        for term in (on_heads(skewed_kl, *HEADS, alpha=0.2), on_logits(skewed_kl, alpha=0.2))
    )
    for one, its in zip(jax.tree.leaves(by_heads[0].params), jax.tree.leaves(by_logits[0].params), strict=True):
        np.testing.assert_allclose(one, its, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_heads[1]["soft"], by_logits[1]["soft"], rtol=1e-5)


def test_another_temperature_compiles_nothing_again():
    term = on_heads(soft_target_kl, *HEADS, temperature=2)
    assert jax.tree.leaves(term) == [2.0]
    assert term.places == HEADS
    assert on_heads(LABELS, *HEADS[:2]).places == (*HEADS[:2], "batch.labels")


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("two places.* or four.*got 3 for soft_target_kl", lambda: on_heads(soft_target_kl, *HEADS[:3])),
        ("A place must be .*got 'head'", lambda: on_heads(soft_target_kl, *HEADS[:3], "head")),
        ("chunk must be a whole number", lambda: on_heads(soft_target_kl, *HEADS, chunk=0)),
        ("soft_target_kl needs student, teacher", lambda: on_heads(soft_target_kl, *HEADS[:2])),
        (
            "labels of <lambda> must be an argument by position.*keyword-only",
            lambda: on_heads(lambda logits, *, labels: LABELS(logits, labels), *HEADS[:2]),
        ),
        ("temperature must be", lambda: on_heads(soft_target_kl, *HEADS, temperature=-1.0)),
        ("must be a keyword-only argument|must be one of", lambda: on_heads(soft_target_kl, *HEADS, heat=1.0)),
    ],
)
def test_a_wrong_term_is_named(words, make):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("loss", [dist, functools.partial(dist, beta=2.0)])
def test_a_loss_that_compares_tokens_is_named(loss):
    with pytest.raises(ValueError, match=r"dist.*, which compares tokens"):
        on_heads(loss, *HEADS)
    hidden, head = jnp.ones((2, 4)), jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"dist.*, which compares tokens"):
        linear_weighted_sum(loss, jnp.ones(2), hidden, head, hidden, head)
