import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kdjax.metrics import Interval, accuracy_transfer_rate, agreement, mean_interval, paired_difference, parameter_count

accuracies = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=9)


def test_transfer_rate_by_hand():
    # The compression article's setting, measured once: 98.80 teacher, 96.53 alone, 97.30 distilled. 0.77 / 2.27.
    assert accuracy_transfer_rate(97.30, 96.53, 98.80) == pytest.approx(0.339207, abs=1e-6)
    assert accuracy_transfer_rate(0.9730, 0.9653, 0.9880) == pytest.approx(0.339207, abs=1e-6)
    assert accuracy_transfer_rate(student=0.4, baseline=0.5, teacher=0.7) == pytest.approx(-0.5)
    assert math.isnan(accuracy_transfer_rate(0.8, 0.5, 0.5))
    assert math.isnan(accuracy_transfer_rate(0.8, 0.5, math.nan))


def test_agreement_counts_equal_choices_right_or_wrong():
    first = jnp.asarray([[3.0, 1.0, 2.0], [0.0, 0.0, 9.0], [1.0, 1.0, 0.0], [-5.0, -6.0, -7.0]])
    second = np.asarray([[0.3, 0.2, 0.1], [9.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-1.0, -1.0, -9.0]])
    assert agreement(first, second) == 0.75
    assert agreement(first.astype(jnp.bfloat16), first * 7.0) == 1.0
    assert agreement(first, -first) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            np.zeros((2, 3)),
            np.zeros((3, 3)),
            r"same shape; got \(2, 3\) for first_logits and \(3, 3\) for second_logits",
        ),
        (np.zeros(3), np.zeros(3), r"first_logits must have 2 axes, \[batch, classes\]"),
        (np.zeros((0, 3)), np.zeros((0, 3)), r"at least one example and class; got shape \(0, 3\)"),
        (np.zeros((1, 2)), np.full((1, 2), np.nan), "second_logits must be numbers; got NaN"),
    ],
)
def test_agreement_refuses(first, second, message):
    with pytest.raises(ValueError, match=message):
        agreement(first, second)


def test_interval_by_hand():
    # mean 3, deviations −1 0 1, s = 1, t(0.975; 2) = 4.302653, half-width 4.302653 / √3
    interval = mean_interval([2.0, 3.0, 4.0])
    assert interval == Interval(3.0, pytest.approx(2.484138, abs=1e-6), 3, 1.0)
    assert interval.excludes_zero
    assert not mean_interval([1.0, 2.0, 3.0]).excludes_zero


@pytest.mark.parametrize(
    ("spec", "text"),
    [("+.1f", "+3.0 ± 2.5"), (".2f", "3.00 ± 2.48"), (" 6.1f", "   3.0 ±    2.5"), (".1e", "3.0e+00 ± 2.5e+00")],
)
def test_an_interval_is_written_as_its_numbers_are(spec, text):
    assert format(mean_interval([2.0, 3.0, 4.0]), spec) == text


def test_one_value_is_written_without_a_spread():
    assert f"{mean_interval([3.0]):+.1f}" == "+3.0"
    assert f"{mean_interval([3.0])}" == str(mean_interval([3.0]))


@given(accuracies, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(values, confidence):
    interval = mean_interval(values, confidence=confidence)
    std = np.std(values, ddof=1)
    assert interval.std == pytest.approx(std)
    if std > 1e-6:
        low, high = scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert interval.mean - interval.half_width == pytest.approx(low, rel=1e-9, abs=1e-12)
        assert interval.mean + interval.half_width == pytest.approx(high, rel=1e-9, abs=1e-12)


@given(accuracies)
def test_paired_interval_excludes_zero_where_the_paired_test_says_so(values):
    first, second = np.asarray(values), np.asarray(values)[::-1] ** 2
    interval = paired_difference(first, second)
    if np.std(first - second) > 1e-6:
        p_value = scipy.stats.ttest_rel(first, second).pvalue
        assert interval.excludes_zero == (p_value < 0.05)


def test_what_seeds_share_drops_out_of_the_paired_interval():
    luck = np.asarray([0.3, -0.2, 0.1, 0.5])
    interval = paired_difference(0.9 + luck, 0.8 + luck)
    assert interval.mean == pytest.approx(0.1)
    assert interval.half_width == pytest.approx(0.0, abs=1e-12)
    assert mean_interval(0.9 + luck).half_width > 0.4


def test_one_seed_has_no_interval():
    interval = paired_difference([0.9], [0.5])
    assert interval.mean == pytest.approx(0.4)
    assert interval.n == 1
    assert math.isnan(interval.half_width)
    assert math.isnan(interval.std)
    assert not interval.excludes_zero


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"one or more finite numbers; got \[\]"),
        (lambda: mean_interval([0.5, math.nan]), r"finite numbers; got \[0.5, nan\]"),
        (lambda: mean_interval([0.5, 0.6], confidence=95.0), "confidence must be above 0 and below 1; got 95.0"),
        (lambda: paired_difference([0.5, 0.6], [0.5]), r"same shape; got \(2,\) for first and \(1,\) for second"),
    ],
)
def test_intervals_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parameters_are_counted_from_arrays_and_from_shapes():
    def init():
        return {"kernel": jnp.zeros((5, 5, 1, 8)), "bias": jnp.zeros(8), "scale": jnp.float32(1.0), "none": None}

    assert parameter_count(init()) == parameter_count(jax.eval_shape(init)) == 200 + 8 + 1
    assert parameter_count({}) == 0
