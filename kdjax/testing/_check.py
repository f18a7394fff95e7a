"""`check_loss`: all laws asked of one loss, and every breach named."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdjax.testing._case import Case
from kdjax.testing._laws import ASKED_OF_CASES, LAWS, Found, drawn_laws
from kdjax.testing._measured import Measured


class Breach(NamedTuple):
    """One law that a loss does not keep.

    Attributes:
      law: its name, one of `LAWS`.
      found: how large the breach is, how large it might be, and at which input.
    """

    law: str
    found: Measured

    def __str__(self) -> str:
        error, limit, at = self.found
        return f"{self.law}: {error:.3g}, where at most {limit:g} is allowed, at {at}"


class BrokenLaws(AssertionError):
    """A loss does not keep the laws that it is held to.

    Attributes:
      breaches: each law that is broken, with the input and the size of the breach.
    """

    def __init__(self, name: str, breaches: tuple[Breach, ...]) -> None:
        self.breaches = breaches
        super().__init__("\n".join([f"{name} breaks {len(breaches)} of its laws:", *(f"- {one}" for one in breaches)]))


def _asked(law: Callable[[Case], Found], case: Case) -> Measured | str:
    """The worst that a law finds: a breach before what holds; whatever is raised is a breach."""
    try:
        found = law(case)
        if isinstance(found, str | Measured):
            return found
        measured = [*found]
    except Exception as error:
        return Measured(np.nan, 0.0, f"an input at which it raises {type(error).__name__}: {str(error)[:300]}")
    broken = [one for one in measured if not one.holds]
    return broken[0] if broken else max(measured, key=lambda one: one.error)


def _ask_drawn(case: Case, law: Callable, given_to: Any, *, examples: int) -> Measured:
    """Breaks off at the smallest numbers that hypothesis finds."""
    last: list[Any] = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    @given(st.data())
    def asked(data: st.DataObject) -> None:
        last[:] = [data.draw(one) for one in given_to]
        law(case, *last)

    try:
        asked()
    except Exception as error:
        shown = ", ".join(np.array2string(np.asarray(a), separator=", ", threshold=60) for a in jax.tree.leaves(last))
        said_of_it = " ".join(str(error).split())[:400]
        return Measured(np.nan, 0.0, f"the drawn arrays {' '.join(shown.split())}: {said_of_it}")
    return Measured(0.0, 0.0, f"{examples} drawn inputs")


def check_loss(
    loss: Callable[..., Any],
    make: Callable[[np.random.Generator, int], tuple[Any, ...]],
    *,
    laws: Collection[str] | None = None,
    examples: int = 30,
    **declared: Any,
) -> dict[str, Measured | str]:
    """Asks of a loss the laws that kdjax's own losses are held to; raises if it breaks one.

    A loss computes one number per example, reduces nothing, and is finite with its gradient wherever its input is. What is
    asked beyond that depends on what is declared; docs/property-tests.md says of each law how it is measured.

    Args:
      loss: ``(*arrays, **hyper_parameters) -> [batch]``, the student's array first and then the teacher's.
      make: ``(generator, batch)`` to those arrays; `kdjax.testing.inputs` has some.
      laws: the names of those to ask, of `LAWS`; None: all.
      examples: how many inputs hypothesis draws for each law on drawn numbers.
      **declared: what is true of this loss, by the names of `Case`: its `reference`, `invariances`, `keywords`, whether it
        ``couples_batch``, whether it has ``zero_at_equality``, and so on.

    Returns:
      By law what was found: the largest error and its limit; or, as a text, why it was not asked.

    Raises:
      BrokenLaws: an AssertionError that names each law broken, the input, and the size of the breach.
      ValueError: if there is no law of a name in `laws`.
      TypeError: if something is declared that no `Case` has.

    Example:
      >>> from kdjax.losses import logit_mse
      >>> from kdjax.testing import check_loss, inputs, invariances
      >>> found = check_loss(
      ...     logit_mse,
      ...     inputs.logits,
      ...     laws=["zero at equality", "invariance", "value of the reference, float64"],
      ...     invariances=[invariances.translated_together],
      ... )
      >>> found["zero at equality"].error
      0.0
      >>> found["value of the reference, float64"]
      'no reference was given'
    """
    case = Case(loss, make, **declared)
    if laws is not None and (isinstance(laws, str) or not laws):
        raise ValueError(f"laws must be a list of names of kdjax.testing.LAWS, one at least; got {laws!r}")
    unknown = sorted(set(laws or ()) - set(LAWS))
    if unknown:
        raise ValueError(
            f"laws must be names of kdjax.testing.LAWS; got {unknown[0]!r}, and there are {', '.join(LAWS)}"
        )
    wanted = LAWS if laws is None else [name for name in LAWS if name in laws]
    drawn = drawn_laws(case)
    found: dict[str, Measured | str] = {}
    for name in wanted:
        asked = drawn.get(name)
        if isinstance(asked, tuple):
            found[name] = _ask_drawn(case, *asked, examples=examples)
        else:
            found[name] = asked or _asked(ASKED_OF_CASES[name], case)
    breaches = tuple(Breach(name, one) for name, one in found.items() if isinstance(one, Measured) and not one.holds)
    if breaches:
        raise BrokenLaws(case.name, breaches)
    return found
