"""The losses of the second catalogue once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, softmax


def _divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def total_variation(student, teacher):
    return np.array(
        [
            sum(abs(a - b) for a, b in zip(softmax(s), softmax(t), strict=True)) / 2
            for s, t in zip(student, teacher, strict=True)
        ]
    )


def skewed_kl(student, teacher, alpha=0.1, temperature=1.0):
    values = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        values.append(temperature**2 * _divergence(p, alpha * p + (1 - alpha) * q))
    return np.array(values)


def reverse_skewed_kl(student, teacher, alpha=0.1, temperature=1.0):
    return skewed_kl(teacher, student, alpha, temperature)


def sorted_probabilities(student, teacher):
    values = []
    for s, t in zip(student, teacher, strict=True):
        first, second = sorted(softmax(s), reverse=True), sorted(softmax(t), reverse=True)
        longest = max(len(first), len(second))
        first, second = (list(p) + [0.0] * (longest - len(p)) for p in (first, second))
        values.append(sum(abs(a - b) for a, b in zip(first, second, strict=True)))
    return np.array(values)


def sampled_kl(student, sampled_values, sampled_indices, log_weights=None):
    assert log_weights is None  # test_losses_stored.py asks for it
    values = []
    for s, stored, drawn in zip(student, sampled_values, sampled_indices, strict=True):
        log_total = max(s) + math.log(sum(math.exp(z - max(s)) for z in s))
        values.append(sum(v - (s[c] - log_total) for v, c in zip(stored, drawn, strict=True)) / len(drawn))
    return np.array(values)


def _of_label(logits, label):
    return math.log1p(sum(math.exp(z - logits[label]) for c, z in enumerate(logits) if c != label))


def weighted_soft_labels(student, teacher, labels, temperature=2.0):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        weight = 1 - math.exp(-_of_label(s, y) / _of_label(t, y))
        values.append(weight * temperature**2 * _divergence(softmax(t / temperature), softmax(s / temperature)))
    return np.array(values)


def virtual_teacher(student, labels, correct=0.99, temperature=20.0):
    values = []
    for s, y in zip(student, labels, strict=True):
        p = np.full(len(s), (1 - correct) / (len(s) - 1))
        p[y] = correct
        softened = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        values.append(temperature**2 * _divergence(softened, softmax(s / temperature)))
    return np.array(values)


def uskd_target(student, teacher, labels):
    squares = [softmax(t)[y] ** 2 for t, y in zip(teacher, labels, strict=True)]
    everything = zip(student, labels, squares, strict=True)
    return np.array([-(1 + own - np.mean(squares)) * math.log(softmax(s)[y]) for s, y, own in everything])


def uskd_non_target(student, teacher, weak, labels):
    values = []
    for s, t, w, y in zip(student, teacher, weak, labels, strict=True):
        others = [c for c in range(len(s)) if c != y]
        shares, score = softmax(s[others]), softmax(t[others]) + softmax(w[others])
        law = 1 / np.arange(1, len(others) + 1)
        # The ranks of what is equal are one after the other, and each has the mean of their weights.
        weights = [law[sum(score > own) : sum(score >= own)].mean() for own in score]
        values.append(-sum(weights / law.sum() * np.log(shares)))
    return np.array(values)


def multi_level_instance(student, teacher, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0)):
    return np.array(
        [
            np.mean([T**2 * _divergence(softmax(t / T), softmax(s / T)) for T in map(float, temperatures)])
            for s, t in zip(student, teacher, strict=True)
        ]
    )


def multi_level_batch(student, teacher, temperature=4.0):
    p, q = ([softmax(z / temperature) for z in logits] for logits in (student, teacher))
    return np.array([sum((a @ b - c @ d) ** 2 for b, d in zip(p, q, strict=True)) for a, c in zip(p, q, strict=True)])


def multi_level_class(student, teacher, temperature=4.0):
    p, q = ([softmax(z / temperature) for z in logits] for logits in (student, teacher))
    difference = sum(np.outer(a, a) for a in q) - sum(np.outer(a, a) for a in p)
    of_one = [np.outer(b, b) - np.outer(a, a) for a, b in zip(p, q, strict=True)]
    return np.array([len(p) / len(p[0]) * np.sum(own * difference) for own in of_one])


def channel_wise(student, teacher, temperature=4.0):
    values = []
    for s, t in zip(student, teacher, strict=True):
        channels = range(s.shape[-1])
        of_each = [
            _divergence(softmax(t[..., c].ravel() / temperature), softmax(s[..., c].ravel() / temperature))
            for c in channels
        ]
        values.append(temperature**2 * np.mean(of_each))
    return np.array(values)


def inter_channel_correlation(student, teacher):
    values = []
    for s, t in zip(student, teacher, strict=True):
        rows = []
        for maps in (s, t):
            channels = [maps[..., c].ravel() for c in range(maps.shape[-1])]
            rows.append([direction(np.array([a @ b for b in channels])) for a in channels])
        values.append(sum(np.sum((a - b) ** 2) for a, b in zip(*rows, strict=True)) / s.shape[-1])
    return np.array(values)


def _pooled(channel, side):
    """PyTorch's adaptive average: windows ⌊i·h/side⌋ … ⌈(i+1)·h/side⌉."""
    height, width = channel.shape
    window = lambda i, size: slice(i * size // side, -(-(i + 1) * size // side))  # noqa: E731
    return np.array([[channel[window(i, height), window(j, width)].mean() for j in range(side)] for i in range(side)])


def class_attention(student, teacher, resolution=2):
    values = []
    for s, t in zip(student, teacher, strict=True):
        gaps = []
        for c in range(s.shape[-1]):
            first, second = (direction(_pooled(maps[..., c], resolution).ravel()) for maps in (s, t))
            gaps.append((first - second) ** 2)
        values.append(np.mean(gaps))
    return np.array(values)
