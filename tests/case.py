"""What a row of the table of losses is made of. The rows: cases_*.py; their parts: inputs.py, changes.py, bad_calls.py."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from bad_calls import BadCall
from changes import BAD_POINTS, Arrays, Change, floats

# What kdjax.losses gives beside losses, what it is for, and the file of its own tests.
NOT_LOSSES = {
    "Bank": ("the memory of `crd`: what it keeps of every example of a data set", "test_losses_contrastive.py"),
    "draw_negatives": (
        "draws the others for `crd`, never of the anchor's class where labels are given",
        "test_losses_bank.py",
    ),
    "init_bank": ("makes the memory of `crd`", "test_losses_bank.py"),
    "negative_margin": (
        "computes the margin of `overhaul` from a normalisation's scale and bias",
        "test_losses_features.py",
    ),
    "standardize_logits": ("prepares the logits of `standardized_kd`", "test_losses_logits.py"),
}


class Case(NamedTuple):
    """One loss.

    Attributes:
      function: the loss; the row is called by its name.
      make: (generator, batch) to its positional arrays in float64.
      reference: what it must agree with; without one, the function of its name in references.py.
      couples_batch: does an example's number depend on the other examples?
      ordered: is it coupled to its neighbours in the batch alone, so that only the reverse order changes nothing?
      shared: positions of arrays that belong to no example, such as a queue.
      keywords: hyper-parameters for all tests; away from the defaults, so that one that is ignored is noticed.
      other_keywords: more settings to compare with the reference, and to be finite at. The defaults always are such.
      leading_axes: may any axes lead, one number for each entry, as for logits [batch, time, classes]?
      golden: the names of its golden cases.
      invariances: changes of the input, as in changes.py, that must leave the value as it is.
      pairs: positions of (student's, teacher's) arrays that belong together.
      agree: replaces the teacher's arrays by what agrees with the student's, where that is not the student's own.
      zero_at_equality: is the value 0 where each pair is equal, or agrees?
      smooth_at_equality: is the gradient 0 there too? That of an absolute difference is ±1 beside 0.
      lowest: the smallest value it can take.
      bad_points: hard inputs at which value and gradient must be finite.
      bad_calls: wrong arguments, and what the error must say.
      admitted: turns wild numbers into some that the loss is made for; others have no right answer.
      largest_in_float16: the size of features whose gradient must fit float16, where it grows faster than they do.
    """

    function: Callable[..., Any]
    make: Callable[[np.random.Generator, int], Arrays]
    couples_batch: bool
    reference: Callable[..., Any] | None = None
    ordered: bool = False
    shared: tuple[int, ...] = ()
    keywords: Mapping[str, Any] = {}
    other_keywords: tuple[Mapping[str, Any], ...] = ()
    leading_axes: bool = False
    golden: tuple[str, ...] = ()
    invariances: tuple[Callable[..., Any], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    agree: Change | None = None
    zero_at_equality: bool = True
    smooth_at_equality: bool = True
    lowest: float = 0.0
    bad_points: "Mapping[str, Change] | None" = None
    bad_calls: tuple[BadCall, ...] = ()
    admitted: Change = lambda arrays: arrays
    largest_in_float16: float = 3e4

    # A row is only ever itself: arrays among its parts have no one truth value to compare by.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @property
    def name(self) -> str:
        return self.function.__name__

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
