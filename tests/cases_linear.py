"""A row for each loss in kdjax/losses/_linear.py; test_losses_linear.py asks of the vocabulary what no row can."""

import numpy as np
from bad_calls import TEMPERATURES
from more_inputs import hidden_states_and_heads, hidden_states_and_labels

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import BAD_POINTS, floats

# A head has no examples: with the first alone of each array the dims would no longer fit.
OF_HEADS = {
    **{name: change for name, change in BAD_POINTS.items() if name != "a batch of one"},
    "a batch of one": lambda arrays: (arrays[0][:1], arrays[1], arrays[2][:1], *arrays[3:]),
    "heads zero": lambda arrays: tuple(a * 0 if number % 2 else a for number, a in enumerate(arrays)),
    "hidden states zero": lambda arrays: tuple(a if number % 2 else a * 0 for number, a in enumerate(arrays)),
    "words alike": lambda arrays: tuple(
        np.repeat(a[:, :1], a.shape[1], axis=1) if number % 2 else a for number, a in enumerate(arrays)
    ),
}


def shifted_words(arrays):
    """Shift: a vector added to every word of a head, another for each network."""
    return tuple(
        a + np.arange(1.0, len(a) + 1)[:, None] / (number + 1) if number % 2 else a for number, a in enumerate(arrays)
    )


def permuted_words(arrays):
    """Permutation: words in another order, the same for both networks."""
    return tuple(a[:, ::-1] if number % 2 else a for number, a in enumerate(arrays))


def permuted_words_and_labels(arrays):
    """Permutation: words in another order, and the labels with them."""
    hidden, head, labels = arrays
    return hidden, head[:, ::-1], head.shape[1] - 1 - labels


def rotated_hidden(arrays):
    """Rotation: another basis for each network's hidden states, and its head with them."""
    changed = list(arrays)
    for place in range(0, 2 * (len(arrays) // 2), 2):
        basis = np.linalg.qr(np.random.default_rng(place).standard_normal((arrays[place].shape[1],) * 2))[0]
        changed[place], changed[place + 1] = arrays[place] @ basis, basis.T @ arrays[place + 1]
    return tuple(changed)


def students_own(arrays):
    return (*arrays[:2], *arrays[:2])


def number(place, dtype):
    return lambda arrays: tuple(a.astype(dtype) if place == here else a for here, a in enumerate(arrays))


def cut(place, index):
    return lambda arrays: tuple(a[index] if place == here else a for here, a in enumerate(arrays))


CHUNKS = tuple(
    BadCall(f"chunk must be a whole number of 1 or more; got {value!r}", {"chunk": value})
    for value in (0, -3, 2.5, True)
)
CALLS = (
    *CHUNKS,
    *TEMPERATURES,
    BadCall(r"student_hidden must have at least 1 axis, \[\.\.\., dim\]; got shape \(\)", {}, cut(0, (0, 0))),
    BadCall(r"student_head must have 2 axes, \[dim, vocabulary\]; got shape \(3,\)", {}, cut(1, (slice(None), 0))),
    BadCall("teacher_hidden must hold floating-point numbers; got .* int32", {}, number(2, np.int32)),
    BadCall("teacher_head must hold floating-point numbers; got .* int32", {}, number(3, np.int32)),
    BadCall(r"student_hidden and student_head must have the same dim, .* \(6, 3\) and \(2, 7\)", {}, cut(1, slice(2))),
    BadCall(r"teacher_hidden and teacher_head must have the same dim, .* \(6, 4\) and \(2, 7\)", {}, cut(3, slice(2))),
    BadCall(r"student_hidden and teacher_hidden must have the same axes before the last", {}, cut(2, slice(5))),
    BadCall(
        r"student_head and teacher_head must have the same words, .* \(3, 7\) and \(4, 6\)",
        {},
        cut(3, (slice(None), slice(6))),
    ),
    BadCall(r"where must be bools of shape \(6,\)", {"where": np.ones(5, bool)}),
)
OF_TWO = {
    "make": hidden_states_and_heads,
    "couples_batch": False,
    "leading_axes": True,
    "shared": (1, 3),
    "pairs": ((0, 2), (1, 3)),
    "agree": students_own,
    "invariances": (shifted_words, permuted_words, rotated_hidden),
    "bad_points": OF_HEADS,
    "largest_in_float16": 30.0,  # the gradient of a hidden state grows with the head, and the head's with the hidden states
}
ROWS = (
    Case(
        losses.linear_cross_entropy,
        hidden_states_and_labels,
        couples_batch=False,
        leading_axes=True,
        shared=(1,),
        pairs=(),
        keywords={"chunk": 3},
        invariances=(shifted_words, permuted_words_and_labels, rotated_hidden),
        zero_at_equality=False,  # there is one network
        bad_points={name: change for name, change in OF_HEADS.items() if name != "opposite"}
        | {"opposite": floats(np.negative)},
        largest_in_float16=30.0,
        bad_calls=(
            *CHUNKS,
            BadCall(r"hidden must have at least 1 axis, \[\.\.\., dim\]; got shape \(\)", {}, cut(0, (0, 0))),
            BadCall(r"head must have 2 axes, \[dim, vocabulary\]; got shape \(3,\)", {}, cut(1, (slice(None), 0))),
            BadCall(r"head must have a column for each of two words or more", {}, cut(1, (slice(None), slice(1)))),
            BadCall("hidden must hold floating-point numbers; got .* int32", {}, number(0, np.int32)),
            BadCall(r"hidden and head must have the same dim, .* \(6, 3\) and \(2, 7\)", {}, cut(1, slice(2))),
            BadCall(r"labels must be whole class numbers of shape \(6,\); got shape \(5,\)", {}, cut(2, slice(5))),
            BadCall("labels must be whole class numbers of shape .* dtype float", {}, number(2, np.float32)),
            BadCall(r"where must be bools of shape \(6,\)", {"where": np.ones(6)}),
        ),
    ),
    Case(
        losses.linear_soft_target_kl,
        keywords={"temperature": 2.5, "chunk": 3},
        other_keywords=({"temperature": 0.5}, {"chunk": 100}),
        bad_calls=CALLS,
        **OF_TWO,
    ),
    Case(
        losses.linear_reverse_kl,
        keywords={"temperature": 2.5, "chunk": 3},
        other_keywords=({"temperature": 0.5},),
        bad_calls=CALLS,
        **OF_TWO,
    ),
    Case(
        losses.linear_jensen_shannon,
        keywords={"temperature": 2.5, "beta": 0.3, "chunk": 3},
        other_keywords=({"beta": 0.0}, {"beta": 1.0}),
        bad_calls=(
            *CALLS,
            BadCall("beta must lie between 0.0 and 1.0; got 1.5", {"beta": 1.5}),
        ),
        **OF_TWO,
    ),
)
