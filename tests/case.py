"""What a row of the table of losses is made of: inputs, invariances, bad points, bad calls. The rows: cases_*.py."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]
Change = Callable[[Arrays], Arrays]


# What kdjax.losses gives beside losses: their ingredients. Each has a reference and tests of its own, and no row.
INGREDIENTS: tuple[str, ...] = ("negative_margin", "standardize_logits")


# What has tests of its own instead of a row, and where.
CERTIFIED_ELSEWHERE = {
    "Bank": "test_crd.py",
    "crd": "test_crd.py",
    "draw_negatives": "test_bank.py",
    "init_bank": "test_bank.py",
}


class BadCall(NamedTuple):
    """A call that must raise a ValueError with `words` (a regular expression) in it."""

    words: str
    keywords: Mapping[str, Any] = {}
    change: Change = lambda arrays: arrays


class Case(NamedTuple):
    """One loss.

    Attributes:
      function: the loss; the row is called by its name.
      make: (generator, batch) to its positional arrays in float64.
      couples_batch: does an example's number depend on the other examples?
      ordered: is it coupled to its neighbours in the batch alone, so that only the reverse order changes nothing?
      shared: positions of arrays that belong to no example, such as a queue.
      keywords: hyper-parameters for all tests; away from the defaults, so that one that is ignored is noticed.
      other_keywords: more settings to compare with the reference.
      golden: the names of its golden cases.
      invariances: changes of the input that must leave the value as it is.
      pairs: positions of (student's, teacher's) arrays that belong together.
      agree: replaces the teacher's arrays by what agrees with the student's, where that is not the student's own.
      zero_at_equality: is the value 0 where each pair is equal, or agrees?
      smooth_at_equality: is the gradient 0 there too? That of an absolute difference is ±1 beside 0.
      lowest: the smallest value it can take.
      bad_points: hard inputs at which value and gradient must be finite.
      bad_calls: wrong arguments, and what the error must say.
      largest_in_float16: the size of features whose gradient must fit float16, where it grows faster than they do.
    """

    function: Callable[..., Any]
    make: Callable[[np.random.Generator, int], Arrays]
    couples_batch: bool
    ordered: bool = False
    shared: tuple[int, ...] = ()
    keywords: Mapping[str, Any] = {}
    other_keywords: tuple[Mapping[str, Any], ...] = ()
    golden: tuple[str, ...] = ()
    invariances: tuple[Change, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    agree: Change | None = None
    zero_at_equality: bool = True
    smooth_at_equality: bool = True
    lowest: float = 0.0
    bad_points: "Mapping[str, Change] | None" = None
    bad_calls: tuple[BadCall, ...] = ()
    largest_in_float16: float = 3e4

    @property
    def name(self) -> str:
        return self.function.__name__

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
        return points


def floats(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The same change of all arrays of floating-point numbers; labels and indices stay."""
    return lambda arrays: tuple(change(a) if np.issubdtype(a.dtype, np.floating) else a for a in arrays)


def of_student(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays: (change(arrays[0]), *arrays[1:])


def of_teacher(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays: (arrays[0], change(arrays[1]), *arrays[2:])


def each(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The same change of all arrays, labels included."""
    return lambda arrays: tuple(change(a) for a in arrays)


def _constant(array: np.ndarray) -> np.ndarray:
    """Each example constant, and different from the others."""
    return np.zeros_like(array) + array.reshape(len(array), -1)[:, 0].reshape(-1, *[1] * (array.ndim - 1))


def _first_example(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.concatenate([change(array[:1]), array[1:]])


BAD_POINTS: dict[str, Change] = {
    "all zero": floats(np.zeros_like),
    "student zero": of_student(np.zeros_like),
    "one example zero": floats(_first_example(np.zeros_like)),
    "identical examples": each(lambda a: np.repeat(a[:1], len(a), axis=0)),
    "two identical examples": each(lambda a: np.concatenate([a[1:2], a[1:]])),
    "student's examples identical": of_student(lambda a: np.repeat(a[:1], len(a), axis=0)),
    "each example constant": floats(_constant),
    "opposite": of_teacher(np.negative),
    "a batch of one": each(lambda a: a[:1]),
}


# Invariances


def shifted_logits(arrays: Arrays) -> Arrays:
    """A constant on all logits of an example, another for each example and network."""
    student, teacher, *rest = arrays
    constants = np.arange(1.0, len(student) + 1)[:, None]
    return student + constants, teacher - constants / 2, *rest


def scaled(arrays: Arrays) -> Arrays:
    return 3.0 * arrays[0], arrays[1] / 7.0, *arrays[2:]


def scaled_far(arrays: Arrays) -> Arrays:
    """Sizes whose squares no float32 holds: the loss must not square before it divides."""
    return 1e-25 * arrays[0], 1e25 * arrays[1], *arrays[2:]


def scaled_each_example(arrays: Arrays) -> Arrays:
    return floats(lambda a: a * np.linspace(0.5, 3.0, len(a)).reshape(-1, *[1] * (a.ndim - 1)))(arrays)


def rotated(arrays: Arrays) -> Arrays:
    """Another orthonormal basis for each network's last axis."""
    generator = np.random.default_rng(7)
    turn = lambda a: a @ np.linalg.qr(generator.standard_normal((a.shape[-1],) * 2))[0]  # noqa: E731
    return turn(arrays[0]), turn(arrays[1]), *arrays[2:]


def rotated_together(arrays: Arrays) -> Arrays:
    """The same other basis for both networks."""
    basis = np.linalg.qr(np.random.default_rng(7).standard_normal((arrays[0].shape[-1],) * 2))[0]
    return arrays[0] @ basis, arrays[1] @ basis, *arrays[2:]


def translated(arrays: Arrays) -> Arrays:
    return arrays[0] + 3.0, arrays[1] - 5.0, *arrays[2:]


def translated_together(arrays: Arrays) -> Arrays:
    return arrays[0] + 3.0, arrays[1] + 3.0, *arrays[2:]


def permuted_last_axis(arrays: Arrays) -> Arrays:
    """Classes or channels in another order, the same for both networks."""
    return floats(lambda a: a[..., ::-1])(arrays)


def permuted_own_last_axis(arrays: Arrays) -> Arrays:
    """Channels in another order, the student's alone."""
    return of_student(lambda a: a[..., ::-1])(arrays)


def mirrored(arrays: Arrays) -> Arrays:
    """Both networks' maps, left to right and top to bottom."""
    return floats(lambda a: a[:, ::-1, ::-1])(arrays)


def negated(arrays: Arrays) -> Arrays:
    return of_student(np.negative)(arrays)


def negated_all(arrays: Arrays) -> Arrays:
    return floats(np.negative)(arrays)


def scaled_teacher(arrays: Arrays) -> Arrays:
    return of_teacher(lambda a: 5.0 * a)(arrays)


# Inputs


def logits(generator: np.random.Generator, batch: int) -> Arrays:
    student, teacher = 3.0 * generator.standard_normal((2, batch, 5))
    return student, teacher


def labelled_logits(generator: np.random.Generator, batch: int) -> Arrays:
    return *logits(generator, batch), generator.integers(0, 5, batch)


def equal_maps(generator: np.random.Generator, batch: int) -> Arrays:
    student, teacher = generator.standard_normal((2, batch, 3, 2, 4))
    return student, teacher


def unequal_maps(generator: np.random.Generator, batch: int) -> Arrays:
    """Sizes that do not divide, and the larger is the student's in height and the teacher's in width."""
    return generator.standard_normal((batch, 5, 2, 3)), generator.standard_normal((batch, 3, 3, 4))


def layers(generator: np.random.Generator, batch: int) -> Arrays:
    """Bottom and top layer of each network: equal channels, unequal sizes, now the one larger and now the other."""
    sizes = (4, 3, 3), (2, 4, 2), (3, 5, 3), (3, 2, 2)
    return tuple(generator.standard_normal((batch, *size)) for size in sizes)


def sequences(generator: np.random.Generator, batch: int) -> Arrays:
    return generator.standard_normal((batch, 5, 3)), generator.standard_normal((batch, 5, 4))


def embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    return generator.standard_normal((batch, 4)), generator.standard_normal((batch, 2, 3))


def labelled_embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    """Classes of several examples, and one of a single example where the batch has 4 or more."""
    return *embeddings(generator, batch), np.array([0, 1, 0, 2, 1, 0, 1, 1])[:batch]


def equal_embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    student, teacher = generator.standard_normal((2, batch, 5))
    return student, teacher


def embeddings_and_queue(generator: np.random.Generator, batch: int) -> Arrays:
    return *equal_embeddings(generator, batch), generator.standard_normal((7, 5))


# Bad calls

TEMPERATURES = tuple(
    BadCall(f"temperature must be a finite number greater than 0; got {shown}", {"temperature": value})
    for value, shown in ((0.0, "0.0"), (-1.0, "-1.0"), (float("nan"), "nan"), (float("inf"), "inf"))
)
WHOLE_NUMBERS = (
    BadCall(
        r"student must hold floating-point numbers; got shape .* and dtype int",
        {},
        of_student(lambda a: a.astype(np.int32)),
    ),
    BadCall(
        r"teacher must hold floating-point numbers; got shape .* and dtype int",
        {},
        of_teacher(lambda a: a.astype(np.int32)),
    ),
)
SAME_SHAPE = (
    BadCall(
        r"student and teacher must have the same shape; got \(6, .* for student and \(5, .* for teacher",
        {},
        of_teacher(lambda a: a[:5]),
    ),
    BadCall(r"student and teacher must have the same shape", {}, of_student(lambda a: a[..., :2])),
)
SAME_BATCH = (
    BadCall(
        r"student and teacher must have the same batch size.* \(6, .* for student and \(5, .* for teacher",
        {},
        of_teacher(lambda a: a[:5]),
    ),
)


def wrong_rank(wanted: str, change: Callable[[np.ndarray], np.ndarray]) -> tuple[BadCall, BadCall]:
    return (
        BadCall(rf"student must have {wanted}; got shape \(", {}, of_student(change)),
        BadCall(rf"teacher must have {wanted}; got shape \(", {}, of_teacher(change)),
    )


LOGITS_CALLS = (
    *wrong_rank(r"2 axes, \[batch, classes\]", lambda a: a[..., None]),
    *SAME_SHAPE,
    *WHOLE_NUMBERS,
)
LABELLED_CALLS = (
    *LOGITS_CALLS,
    BadCall(
        r"labels must be whole class numbers of shape \(6,\); got shape \(5,\)", {}, lambda a: (*a[:-1], a[-1][:5])
    ),
    BadCall(r"labels must be .*; got shape \(6,\) and dtype float", {}, lambda a: (*a[:-1], 1.0 * a[-1])),
)
RELATION_CALLS = (
    *wrong_rank(r"at least 2 axes, \[batch, dim\]", lambda a: a.reshape(len(a), -1)[:, 0]),
    *SAME_BATCH,
    *WHOLE_NUMBERS,
)
