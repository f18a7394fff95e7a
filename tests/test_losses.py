"""The numeric law: what must hold of every loss, asked of every row of cases.py. What is measured, and how: laws*.py."""

import inspect
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import laws
import laws_transformed
import numpy as np
import pytest
import references
from absl.testing import parameterized
from calling import bound, converted, floating, jitted, made
from case import NOT_LOSSES
from cases import BY_NAME, CASES
from jax.experimental import checkify

from kdjax import losses

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_precision = pytest.mark.parametrize("precision", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)


def holds(measured):
    assert measured.error <= measured.limit


def close(actual, wanted, relative, absolute=0.0):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), relative, absolute)


# Is the table whole?


def test_every_export_has_one_row_and_a_reference():
    assert sorted([*(case.name for case in CASES), *NOT_LOSSES]) == sorted(losses.__all__)
    for case in CASES:
        assert callable(case.reference or getattr(references, case.name))
    for name, (_, file) in NOT_LOSSES.items():
        assert f"losses.{name}" in (Path(__file__).parent / file).read_text()


def test_every_golden_case_of_an_export_is_asked_for():
    golden_cases = laws.GOLDEN_CASES
    wanted = {name for name, golden in golden_cases.items() if golden["function"] in BY_NAME}
    assert sorted(name for case in CASES for name in case.golden) == sorted(wanted)
    assert all(golden_cases[name]["function"] == case.name for case in CASES for name in case.golden)


@each_case
def test_docstring_and_signature(case):
    text = inspect.getdoc(case.function)
    headings = ["Args:", "Returns:", "Raises:", "Example:", "Note:", "Reference:"]
    assert re.findall(r"^(\w+:)$", text, re.MULTILINE) == headings
    assert ">>>" in text
    assert re.search(r"Reference:.*https://", text, re.DOTALL)
    for parameter in inspect.signature(inspect.unwrap(case.function)).parameters.values():
        if parameter.name in case.keywords or parameter.default is not parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY
            # The type of the default tells the layers above what may be traced: a float may; whole numbers and None may not.
            plain = (float, int, bool, type(None), tuple)
            assert parameter.default is parameter.empty or type(parameter.default) in plain


# Is the value right?


@each_case
@each_precision
def test_agrees_with_the_slow_reference(case, precision):
    holds(laws.agreement_with_reference(case, precision))


@each_case
def test_gradient_agrees_with_slopes_of_the_slow_reference(case):
    holds(laws.gradient_of_reference(case))


@pytest.mark.parametrize("name", [name for case in CASES for name in case.golden])
@each_precision
def test_agrees_with_golden_value_and_gradient(name, precision):
    for measured in laws.agreement_with_golden(name, precision):
        holds(measured)


@each_case
def test_gradient_agrees_with_finite_differences(case):
    """Of every array and every traced hyper-parameter."""
    holds(laws.numerical_gradient(case))


@each_case
def test_zero_at_equality_and_never_below_its_lowest(case):
    arrays = case.make(np.random.default_rng(4), 6)
    assert jitted(case)(*converted(arrays, np.float32)).min() > case.lowest + 1e-5
    if case.zero_at_equality:
        rounding = 1e-7 if case.agree is None else 2e-6
        close(jitted(case)(*converted(case.equal(arrays), np.float32)), np.zeros(6), 0, rounding)


@pytest.mark.parametrize(
    ("case", "change"),
    [(case, change) for case in CASES for change in case.invariances],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_invariance(case, change):
    holds(laws.invariance(case, change))


@pytest.mark.parametrize("case", [case for case in CASES if case.leading_axes], ids=lambda case: case.name)
def test_any_axes_may_lead(case):
    holds(laws.with_leading_axes(case))


@pytest.mark.parametrize("rubbish", [0.0, 1e30, np.nan])
@pytest.mark.parametrize("case", [case for case in CASES if case.couples_batch], ids=lambda case: case.name)
def test_examples_that_do_not_count_are_as_if_they_were_not_there(case, rubbish):
    holds(laws.with_some_left_out(case, rubbish))


@pytest.mark.parametrize("case", [case for case in CASES if case.couples_batch], ids=lambda case: case.name)
def test_what_is_no_mask_is_refused(case):
    arrays = made(case)
    for where in (np.ones(6), np.ones(5, bool), np.ones((6, 1), bool)):
        with pytest.raises(ValueError, match=r"where must be bools of shape \(6,\)"):
            inspect.unwrap(case.function)(*arrays, **case.keywords, where=where)


# Is it finite everywhere, and in every dtype?


@each_case
@pytest.mark.parametrize("dtype", laws.DTYPES, ids=lambda dtype: dtype.__name__)
def test_finite_value_and_gradient_at_bad_points(case, dtype):
    # The defaults in float32 too; every setting in every dtype is the slow test's, and the verification report's.
    found = laws.at_bad_points(case, dtype, settings=(0, 1) if dtype is jnp.float32 else (0,))
    assert {point: faults for point, faults in found.items() if faults} == {}


@pytest.mark.slow
@each_case
@pytest.mark.parametrize("dtype", laws.DTYPES, ids=lambda dtype: dtype.__name__)
def test_finite_value_and_gradient_at_every_setting(case, dtype):
    assert {point: faults for point, faults in laws.at_bad_points(case, dtype).items() if faults} == {}


@each_case
def test_nan_is_not_hidden(case):
    arrays = case.make(np.random.default_rng(7), 6)
    for position in floating(arrays):
        broken = [a.copy() for a in arrays]
        broken[position][2] = np.nan
        assert np.isnan(jitted(case)(*converted(broken, np.float32))[2])


OF_FEW_CLASSES = ("non_target_class_kd", "top_k_kl", "virtual_teacher")  # in which a class is taken out, or sure


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in OF_FEW_CLASSES else pytest.mark.slow) for case in CASES],
)
def test_no_nan_is_made_where_none_comes_out(case):
    """What is masked afterwards still stops a run under `jax_debug_nans`, and checkify's float checks."""

    def mean(*arrays):
        return jnp.mean(bound(case)(*arrays))

    arrays = case.make(np.random.default_rng(6), 6)
    which = floating(converted(arrays, np.float32))
    checked = jax.jit(checkify.checkify(jax.value_and_grad(mean, argnums=which), errors=checkify.float_checks))
    for point, hard in case.hard_inputs(arrays, largest=1e4).items():
        error, _ = checked(*converted(hard, np.float32))
        assert error.get() is None, point


# Is it one number per example, under every transformation?


class Variants(chex.TestCase):
    # With `jax.jit` is what it is compared with.
    @chex.variants(without_jit=True)
    @parameterized.named_parameters(*((case.name, case) for case in CASES))
    def test_variant(self, case):
        arrays = made(case, seed=8)
        close(self.variant(bound(case))(*arrays), jitted(case)(*arrays), 1e-4, 1e-6)


@pytest.mark.slow
@each_case
def test_maps_over_batches_as_plain_calls_do(case):
    for measured in laws_transformed.transformed(case).values():
        holds(measured)


@pytest.mark.slow
@each_case
def test_a_batch_split_over_devices_is_the_whole(case):
    for measured in laws_transformed.split_batch(case).values():
        holds(measured)


def test_a_batch_split_and_not_gathered_is_not_the_whole():
    """The law can fail: what couples the batch must see all of it."""
    split = laws_transformed.split_batch(BY_NAME["rkd_distance"], gather=False)
    assert split["shard_map"].error > 0.01 < split["pmap"].error


@each_case
def test_order_of_the_batch_is_only_an_order(case):
    holds(laws.order_of_the_batch(case))


@each_case
def test_couples_the_batch_only_where_the_row_says_so(case):
    arrays = made(case, seed=10)
    jacobian = jax.jit(jax.jacrev(lambda student: bound(case)(student, *arrays[1:])))(arrays[0])
    influence = np.abs(np.asarray(jacobian)).reshape(6, 6, -1).max(axis=2)  # of example j on the number of example i
    assert (np.diagonal(influence) > 0).all()
    coupled = abs(np.subtract.outer(range(6), range(6))) == 1 if case.ordered else ~np.eye(6, dtype=bool)
    assert (influence[coupled] > 0).all() == case.couples_batch
    if not case.couples_batch:
        np.testing.assert_array_equal(influence, np.diag(np.diagonal(influence)))
        alone = np.concatenate([jitted(case)(*case.taken(arrays, slice(i, i + 1))) for i in range(6)])
        close(alone, jitted(case)(*arrays), 1e-4, 1e-6)
