"""The numeric law: what must hold of every loss, asked of every row of cases.py. The laws are those of kdjax.testing."""

import inspect
import re
from pathlib import Path

import chex
import golden_values
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from cases import BY_NAME, CASES, NOT_LOSSES
from jax.experimental import checkify

from kdjax import losses
from kdjax.testing import _finite, _transforms, _values
from kdjax.testing._calling import bound, converted, floating, jitted, made

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
        assert callable(case.reference)
    for name, (_, file) in NOT_LOSSES.items():
        assert f"losses.{name}" in (Path(__file__).parent / file).read_text()


def test_every_golden_case_is_of_a_loss_that_asks_for_it():
    asked = [name for case in CASES for name in golden_values.golden_of(case)]
    of_exports = [name for name, golden in golden_values.GOLDEN_CASES.items() if golden["function"] in losses.__all__]
    assert sorted(asked) == sorted(of_exports)


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
    holds(_values.agreement_with_reference(case, precision))


@each_case
def test_gradient_agrees_with_slopes_of_the_slow_reference(case):
    holds(_values.gradient_of_reference(case))


@pytest.mark.parametrize("name", [name for case in CASES for name in golden_values.golden_of(case)])
@each_precision
def test_agrees_with_golden_value_and_gradient(name, precision):
    for measured in golden_values.agreement_with_golden(name, precision):
        holds(measured)


@each_case
def test_gradient_agrees_with_finite_differences(case):
    """Of every array and every traced hyper-parameter."""
    holds(_values.numerical_gradient(case))


@each_case
def test_zero_at_equality_and_never_below_its_lowest(case):
    holds(_values.below_lowest(case))
    if case.zero_at_equality:
        holds(_values.at_equality(case))


@pytest.mark.parametrize(
    ("case", "change"),
    [(case, change) for case in CASES for change in case.invariances],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_invariance(case, change):
    holds(_values.invariance(case, change))


@pytest.mark.parametrize("case", [case for case in CASES if case.leading_axes], ids=lambda case: case.name)
def test_any_axes_may_lead(case):
    holds(_values.with_leading_axes(case))


@pytest.mark.parametrize("rubbish", [0.0, 1e30, np.nan])
@pytest.mark.parametrize("case", [case for case in CASES if case.takes_where], ids=lambda case: case.name)
def test_examples_that_do_not_count_are_as_if_they_were_not_there(case, rubbish):
    holds(_values.left_out(case, rubbish))


@pytest.mark.parametrize("case", [case for case in CASES if case.couples_batch], ids=lambda case: case.name)
def test_what_is_no_mask_is_refused(case):
    arrays = made(case)
    for where in (np.ones(6), np.ones(5, bool), np.ones((6, 1), bool)):
        with pytest.raises(ValueError, match=r"where must be bools of shape \(6,\)"):
            inspect.unwrap(case.function)(*arrays, **case.keywords, where=where)


# Is it finite everywhere, and in every dtype?


@each_case
@pytest.mark.parametrize("dtype", _finite.DTYPES, ids=lambda dtype: dtype.__name__)
def test_finite_value_and_gradient_at_bad_points(case, dtype):
    # The defaults in float32 too; every setting in every dtype is the slow test's, and the verification report's.
    found = _finite.at_bad_points(case, dtype, settings=(0, 1) if dtype is jnp.float32 else (0,))
    assert {point: faults for point, faults in found.items() if faults} == {}


@pytest.mark.slow
@each_case
@pytest.mark.parametrize("dtype", _finite.DTYPES, ids=lambda dtype: dtype.__name__)
def test_finite_value_and_gradient_at_every_setting(case, dtype):
    assert {point: faults for point, faults in _finite.at_bad_points(case, dtype).items() if faults} == {}


@each_case
def test_nan_is_not_hidden(case):
    assert _finite.hides_nan(case) == []


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
    for measured in _transforms.transformed(case).values():
        holds(measured)


@pytest.mark.slow
@each_case
def test_a_batch_split_over_devices_is_the_whole(case):
    for measured in _transforms.split_batch(case).values():
        holds(measured)


def test_a_batch_split_and_not_gathered_is_not_the_whole():
    """The law can fail: what couples the batch must see all of it."""
    split = _transforms.split_batch(BY_NAME["rkd_distance"], gather=False)
    assert split["shard_map"].error > 0.01 < split["pmap"].error


@each_case
def test_order_of_the_batch_is_only_an_order(case):
    holds(_values.order_of_the_batch(case))


@each_case
def test_couples_the_batch_only_where_the_row_says_so(case):
    for measured in _values.coupling(case):
        holds(measured)
