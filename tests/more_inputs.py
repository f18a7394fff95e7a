"""What losses are called with beside what kdjax.testing.inputs makes: arrays from a generator and a batch size."""

import numpy as np

from kdjax.testing.inputs import equal_embeddings, logits

Arrays = tuple[np.ndarray, ...]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    # Without the largest, which is exp(0): what a sure teacher leaves to the others must not drown in its 1.
    return shifted - np.log1p(np.sum(np.exp(np.sort(shifted, axis=1)[:, :-1]), axis=1, keepdims=True))


def stored_logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Three of five classes."""
    student, teacher = logits(generator, batch)
    teacher = teacher / 3.0  # unsure enough for finite differences of what it leaves to the rest
    indices = np.argsort(-teacher, axis=1)[:, :3]
    return student, np.take_along_axis(log_softmax(teacher), indices, axis=1), indices


def large_maps(generator: np.random.Generator, batch: int) -> Arrays:
    """Sizes to average down by several levels."""
    student, teacher = generator.standard_normal((2, batch, 5, 3, 4))
    return student, teacher


def layers(generator: np.random.Generator, batch: int) -> Arrays:
    """Bottom and top layer of each network: equal channels, unequal sizes, now the one larger and now the other."""
    sizes = (4, 3, 3), (2, 4, 2), (3, 5, 3), (3, 2, 2)
    return tuple(generator.standard_normal((batch, *size)) for size in sizes)


def embeddings_and_queue(generator: np.random.Generator, batch: int) -> Arrays:
    return *equal_embeddings(generator, batch), generator.standard_normal((7, 5))


def places_in_a_bank(generator: np.random.Generator, batch: int) -> Arrays:
    """Embeddings, each example's place in a bank of 12, and the places of others; of the 12, each at most once."""
    student, teacher = equal_embeddings(generator, batch)
    indices = generator.permutation(12)[:batch]
    others = (indices[:, None] + generator.integers(1, 12, (batch, 7))) % 12
    return student, teacher, indices, others


def hidden_states_and_heads(generator: np.random.Generator, batch: int) -> Arrays:
    """Of two networks of unlike dims, and seven words."""
    draw = generator.standard_normal
    return draw((batch, 3)), 2.0 * draw((3, 7)), draw((batch, 4)), 2.0 * draw((4, 7))


def hidden_states_and_labels(generator: np.random.Generator, batch: int) -> Arrays:
    draw = generator.standard_normal
    return draw((batch, 3)), 2.0 * draw((3, 7)), generator.integers(0, 7, batch)


def own_labelled_logits(generator: np.random.Generator, batch: int) -> Arrays:
    return 3.0 * generator.standard_normal((batch, 5)), generator.integers(0, 5, batch)


def doubly_labelled_logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Of two networks and of a classifier on a middle layer, and class numbers."""
    return *(3.0 * generator.standard_normal((3, batch, 5))), generator.integers(0, 5, batch)


def unlike_logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Of two networks that do not know the same classes."""
    return 3.0 * generator.standard_normal((batch, 5)), 3.0 * generator.standard_normal((batch, 4))


def drawn_logits(generator: np.random.Generator, batch: int) -> Arrays:
    """Four draws of five classes, and the teacher's log-probabilities of them."""
    student, teacher = logits(generator, batch)
    indices = generator.integers(0, 5, (batch, 4))
    return student, np.take_along_axis(log_softmax(teacher), indices, axis=1), indices


def maps_of_classes(generator: np.random.Generator, batch: int) -> Arrays:
    """Of unlike sizes that do not divide, and the same channels."""
    return generator.standard_normal((batch, 5, 2, 3)), generator.standard_normal((batch, 3, 3, 3))
