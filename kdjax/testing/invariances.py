"""Changes that leave a loss as it is: the invariances that `check_loss` may be told of.

Each takes the loss's arrays, as NumPy arrays whose first axis is the batch, the student's first and the teacher's second,
and returns them changed. The first word of its docstring is its kind. One that changes hyper-parameters too takes them as
`keywords` and returns both. Your own is a function like these.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.testing._changes import Arrays, floats, of_student, of_teacher


def shifted_logits(arrays: Arrays) -> Arrays:
    """Shift: a constant on all logits of an example, another for each example and network."""
    student, teacher, *rest = arrays
    constants = np.arange(1.0, len(student) + 1)[:, None]
    return student + constants, teacher - constants / 2, *rest


def scaled(arrays: Arrays) -> Arrays:
    """Scale: another factor for each network."""
    return 3.0 * arrays[0], arrays[1] / 7.0, *arrays[2:]


def scaled_far(arrays: Arrays) -> Arrays:
    """Scale: factors of 1e-25 and 1e25, whose squares no float32 holds."""
    return 1e-25 * arrays[0], 1e25 * arrays[1], *arrays[2:]


def scaled_each_example(arrays: Arrays) -> Arrays:
    """Scale: another factor for each example."""
    return floats(lambda a: a * np.linspace(0.5, 3.0, len(a)).reshape(-1, *[1] * (a.ndim - 1)))(arrays)


def rotated(arrays: Arrays) -> Arrays:
    """Rotation: another orthonormal basis for each network's last axis."""
    generator = np.random.default_rng(7)
    turn = lambda a: a @ np.linalg.qr(generator.standard_normal((a.shape[-1],) * 2))[0]  # noqa: E731
    return turn(arrays[0]), turn(arrays[1]), *arrays[2:]


def rotated_together(arrays: Arrays) -> Arrays:
    """Rotation: the same other basis for both networks."""
    basis = np.linalg.qr(np.random.default_rng(7).standard_normal((arrays[0].shape[-1],) * 2))[0]
    return arrays[0] @ basis, arrays[1] @ basis, *arrays[2:]


def rotated_all(arrays: Arrays) -> Arrays:
    """Rotation: the same other basis for both networks and for what is kept of others."""
    basis = np.linalg.qr(np.random.default_rng(7).standard_normal((arrays[0].shape[-1],) * 2))[0]
    return floats(lambda a: a @ basis)(arrays)


def translated(arrays: Arrays) -> Arrays:
    """Shift: another constant for each network."""
    return arrays[0] + 3.0, arrays[1] - 5.0, *arrays[2:]


def translated_together(arrays: Arrays) -> Arrays:
    """Shift: the same constant for both networks."""
    return arrays[0] + 3.0, arrays[1] + 3.0, *arrays[2:]


def permuted_last_axis(arrays: Arrays) -> Arrays:
    """Permutation: classes or channels in another order, the same for both networks."""
    return floats(lambda a: a[..., ::-1])(arrays)


def permuted_own_last_axis(arrays: Arrays) -> Arrays:
    """Permutation: the student's channels alone in another order."""
    return of_student(lambda a: a[..., ::-1])(arrays)


def permuted_with_their_numbers(arrays: Arrays, keywords: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Permutation: channels in another order, the same for both networks, and each channel's hyper-parameter with it."""
    turned = {name: value[::-1] if isinstance(value, np.ndarray) else value for name, value in keywords.items()}
    return permuted_last_axis(arrays), turned


def mirrored(arrays: Arrays) -> Arrays:
    """Mirror: both networks' maps, left to right and top to bottom."""
    return floats(lambda a: a[:, ::-1, ::-1])(arrays)


def negated(arrays: Arrays) -> Arrays:
    """Sign: the student's features alone negated."""
    return of_student(np.negative)(arrays)


def negated_all(arrays: Arrays) -> Arrays:
    """Sign: all features negated."""
    return floats(np.negative)(arrays)


def scaled_teacher(arrays: Arrays) -> Arrays:
    """Scale: the teacher alone."""
    return of_teacher(lambda a: 5.0 * a)(arrays)
