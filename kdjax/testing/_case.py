"""What is declared of one loss, for the laws to be asked of."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.testing._changes import BAD_POINTS, Arrays, Change, floats


class BadCall(NamedTuple):
    """A call that must raise a ValueError.

    Attributes:
      words: what the error's message must match, a regular expression.
      keywords: hyper-parameters of the call, in place of the case's own.
      change: makes the arrays of the call from good ones.
    """

    words: str
    keywords: Mapping[str, Any] = {}
    change: Change = lambda arrays: arrays


class Case(NamedTuple):
    """One loss, and what its author says of it. `check_loss` makes one of its arguments.

    Attributes:
      function: the loss, ``(*arrays, **hyper_parameters) -> [batch]``: the student's array first, then the teacher's.
      make: ``(generator, batch)`` to the loss's positional arrays as NumPy arrays, float64 where they are not whole numbers;
        `kdjax.testing.inputs` has some.
      couples_batch: does an example's number depend on the other examples?
      reference: a slow form written from the paper: the same arguments as NumPy arrays in float64, ``[batch]`` back.
      ordered: is it coupled to its neighbours in the batch alone, so that only the reverse order changes nothing?
      shared: positions of arrays that belong to no example, such as a queue.
      keywords: hyper-parameters for all laws; away from the defaults, so that one that is ignored is noticed.
      other_keywords: more settings to compare with the reference, and to be finite at. The defaults always are such.
      leading_axes: may any axes lead, one number for each entry, as for logits [batch, time, classes]?
      invariances: changes of the input, such as those of `kdjax.testing.invariances`, that must leave the value as it is.
      pairs: positions of (student's, teacher's) arrays that belong together.
      agree: replaces the teacher's arrays by what agrees with the student's, where that is not the student's own.
      zero_at_equality: is the value 0 where each pair is equal, or agrees?
      smooth_at_equality: is the gradient 0 there too? That of an absolute difference is ±1 beside 0.
      lowest: the smallest value it can take.
      bad_points: hard inputs at which value and gradient must be finite, by name; None: those of every loss.
      bad_calls: wrong arguments, and what the error must say.
      admitted: turns wild numbers into some that the loss is made for; others have no right answer.
      largest_in_float16: the size of features whose gradient must fit float16, where it grows faster than they do.
    """

    function: Callable[..., Any]
    make: Callable[[np.random.Generator, int], Arrays]
    couples_batch: bool = False
    reference: Callable[..., Any] | None = None
    ordered: bool = False
    shared: tuple[int, ...] = ()
    keywords: Mapping[str, Any] = {}
    other_keywords: tuple[Mapping[str, Any], ...] = ()
    leading_axes: bool = False
    invariances: tuple[Callable[..., Any], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    agree: Change | None = None
    zero_at_equality: bool = True
    smooth_at_equality: bool = True
    lowest: float = 0.0
    bad_points: Mapping[str, Change] | None = None
    bad_calls: tuple[BadCall, ...] = ()
    admitted: Change = lambda arrays: arrays
    largest_in_float16: float = 3e4

    # A case is only ever itself: arrays among its parts have no one truth value to compare by.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @property
    def name(self) -> str:
        """The loss's own name."""
        return getattr(self.function, "__name__", repr(self.function))

    @property
    def takes_where(self) -> bool:
        """Whether the loss can be told which examples count."""
        return "where" in inspect.signature(inspect.unwrap(self.function)).parameters

    @property
    def settings(self) -> tuple[dict[str, Any], ...]:
        """All hyper-parameters at every setting that is tried: the row's own, the defaults, the others."""
        parameters = inspect.signature(inspect.unwrap(self.function)).parameters
        # `where` is no hyper-parameter: what it leaves out has laws of its own.
        defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "where"}
        needed = {name: self.keywords[name] for name, default in defaults.items() if default is inspect.Parameter.empty}
        found: dict[str, dict[str, Any]] = {}
        for keywords in (self.keywords, {}, *self.other_keywords):
            setting = {**defaults, **needed, **keywords}
            found.setdefault(repr(setting), setting)
        return tuple(found.values())

    def taken(self, arrays: Any, examples: Any) -> tuple[Any, ...]:
        """The chosen examples of every array that has examples."""
        return tuple(a if position in self.shared else a[examples] for position, a in enumerate(arrays))

    def equal(self, arrays: Arrays) -> Arrays:
        """The teacher's arrays replaced by the student's."""
        if self.agree is not None:
            return self.agree(arrays)
        changed = list(arrays)
        for student, teacher in self.pairs:
            changed[teacher] = changed[student]
        return tuple(changed)

    def hard_inputs(self, arrays: Arrays, largest: float) -> dict[str, Arrays]:
        """`arrays` at every bad point; `largest` is the size of logits and features that the dtype must bear."""
        points = {
            name: change(arrays)
            for name, change in (BAD_POINTS if self.bad_points is None else self.bad_points).items()
        }
        points["student equals teacher"] = self.equal(arrays)
        points["huge"] = floats(lambda a: np.sign(a) * largest)(arrays)
        points["huge and opposite"] = floats(lambda a: np.sign(a) * largest)(
            (arrays[0], *floats(np.negative)(arrays[1:]))
        )
        return {name: self.admitted(point) for name, point in points.items()}
