"""The laws by name: what `check_loss` asks of a loss, and kdjax's tests of every loss of kdjax."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from kdjax.testing import _drawn, _finite, _transforms, _values, _variants, strategies
from kdjax.testing._calling import made, said
from kdjax.testing._case import Case
from kdjax.testing._measured import Measured

Found = Iterable[Measured] | Measured | str  # a text says why the law was not asked


def _one_number(case: Case) -> Found:
    arrays = made(case)
    values = case.function(*arrays, **case.keywords)
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    right = shape == (6,) and dtype == np.float32
    return Measured(
        float(not right), 0.0, f"{said(0)}: shape {shape} and dtype {dtype}, where (6,) and float32 are due"
    )


def _reference(law: Callable[[Case], Measured]) -> Callable[[Case], Found]:
    return lambda case: "no reference was given" if case.reference is None else law(case)


def _equality(case: Case) -> Found:
    return _values.at_equality(case) if case.zero_at_equality else "zero_at_equality=False was given"


def _invariances(case: Case) -> Found:
    return [_values.invariance(case, change) for change in case.invariances] or "no invariances were given"


def _bad_points(case: Case) -> Iterator[Measured]:
    for dtype in _finite.DTYPES:
        for (point, number), faults in _finite.at_bad_points(case, dtype).items():
            at = f"{said(6)}, {point}, in {np.dtype(dtype).name}, {case.settings[number]}"
            yield Measured(float(len(faults)), 0.0, f"{at}: {'; '.join(faults)}")


def _nan(case: Case) -> Found:
    hidden = _finite.hides_nan(case)
    return Measured(float(len(hidden)), 0.0, f"{said(7)} with NaN in example 2 of the arrays {hidden}")


def _left_out(case: Case) -> Found:
    if case.couples_batch and not case.takes_where:
        return "it couples the batch and takes no where="
    return [_values.left_out(case, rubbish) for rubbish in (0.0, 1e30, np.nan)]


def _leading_axes(case: Case) -> Found:
    return _values.with_leading_axes(case) if case.leading_axes else "leading_axes=True was not given"


def _split(case: Case) -> Found:
    if jax.device_count() < _transforms.DEVICES:
        return (
            f"there are {jax.device_count()} devices; jax.config.update('jax_num_cpu_devices', 4) makes four of a CPU"
        )
    return _transforms.split_batch(case).values()


def _bad_calls(case: Case) -> Iterator[Measured]:
    for bad in case.bad_calls:
        arrays = bad.change(case.make(np.random.default_rng(11), 6))
        error = _values.wrong_error(case, bad, arrays)
        yield Measured(float(bool(error)), 0.0, f"{said(11)}, {dict(bad.keywords)}: {error}")


ASKED_OF_CASES: dict[str, Callable[[Case], Found]] = {
    "one number per example": _one_number,
    "value of the reference, float64": _reference(partial(_values.agreement_with_reference, precision=np.float64)),
    "value of the reference, float32": _reference(partial(_values.agreement_with_reference, precision=np.float32)),
    "gradient of the reference": _reference(_values.gradient_of_reference),
    "gradient by finite differences": _values.numerical_gradient,
    "zero at equality": _equality,
    "never below its lowest": _values.below_lowest,
    "invariance": _invariances,
    "finite at bad points": _bad_points,
    "NaN is shown": _nan,
    "order of the batch": _values.order_of_the_batch,
    "coupled where declared": _values.coupling,
    "masks and padding": _left_out,
    "leading axes": _leading_axes,
    "jit, vmap, scan": lambda case: _transforms.transformed(case).values(),
    "chex variants": lambda case: _variants.variants(case).values(),
    "fake pmap and jit": _variants.faked,
    "traced once": _variants.traces,
    "split over devices": _split,
    "named errors": lambda case: _bad_calls(case) if case.bad_calls else "no bad_calls were given",
}


def drawn_laws(case: Case) -> dict[str, Any]:
    """Of each law on numbers that hypothesis draws: what is asked and what it is given, or why it is not asked."""
    wild, coarse = (strategies.inputs(case, elements) for elements in (strategies.wild, strategies.coarse))
    order = st.permutations(range(strategies.BATCH))
    with_reference = (_drawn.agrees_with_the_reference, (coarse,)) if case.reference else "no reference was given"
    equal = (_drawn.equality_is_a_minimum, (wild, coarse))
    return {
        "drawn: finite and bounded below": (_drawn.finite_and_bounded_below, (wild,)),
        "drawn: value of the reference": with_reference,
        "drawn: order of the batch": (_drawn.order_is_only_an_order, (coarse, order)),
        "drawn: zero at equality": equal if case.zero_at_equality else "zero_at_equality=False was given",
    }


LAWS = (*ASKED_OF_CASES, *drawn_laws(Case(print, lambda generator, batch: ())))
