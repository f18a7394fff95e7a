"""Makers of a loss's arrays, ``(generator, batch) -> arrays``: the student's first, then the teacher's, in float64."""

import numpy as np

from kdjax.testing._changes import Arrays


def logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Two networks' logits [batch, 5]."""
    student, teacher = 3.0 * generator.standard_normal((2, batch, 5))
    return student, teacher


def labelled_logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Two networks' logits [batch, 5], and class numbers [batch]."""
    return *logits(generator, batch), generator.integers(0, 5, batch)


def equal_maps(generator: np.random.Generator, batch: int) -> Arrays:
    """Feature maps [batch, 3, 2, 4] of both networks."""
    student, teacher = generator.standard_normal((2, batch, 3, 2, 4))
    return student, teacher


def unequal_maps(generator: np.random.Generator, batch: int) -> Arrays:
    """Sizes that do not divide, and the larger is the student's in height and the teacher's in width."""
    return generator.standard_normal((batch, 5, 2, 3)), generator.standard_normal((batch, 3, 3, 4))


def sequences(generator: np.random.Generator, batch: int) -> Arrays:
    """Features of five tokens, [batch, 5, 3] and [batch, 5, 4]."""
    return generator.standard_normal((batch, 5, 3)), generator.standard_normal((batch, 5, 4))


def embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    """Features of unlike shapes, [batch, 4] and [batch, 2, 3]."""
    return generator.standard_normal((batch, 4)), generator.standard_normal((batch, 2, 3))


def labelled_embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    """The same, and class numbers: some of several examples, one of a single example where the batch has 4 or more."""
    return *embeddings(generator, batch), np.array([0, 1, 0, 2, 1, 0, 1, 1])[:batch]


def equal_embeddings(generator: np.random.Generator, batch: int) -> Arrays:
    """Features [batch, 5] of both networks."""
    student, teacher = generator.standard_normal((2, batch, 5))
    return student, teacher
