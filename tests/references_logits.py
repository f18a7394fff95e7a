"""The losses on predictions once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, softmax


def _divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _cross_entropy(p, q):
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True) if a > 0)


def soft_target_kl(student, teacher, temperature=4.0):
    return np.array(
        [
            temperature**2 * _divergence(softmax(t / temperature), softmax(s / temperature))
            for s, t in zip(student, teacher, strict=True)
        ]
    )


def reverse_kl(student, teacher, temperature=1.0):
    return soft_target_kl(teacher, student, temperature)


def jensen_shannon(student, teacher, beta=0.5, temperature=1.0):
    values = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        mixture = beta * p + (1 - beta) * q
        if beta == 0:
            value = _divergence(p, q)
        elif beta == 1:
            value = _divergence(q, p)
        else:
            value = beta * _divergence(p, mixture) + (1 - beta) * _divergence(q, mixture)
        values.append(temperature**2 * value)
    return np.array(values)


def soft_target_bce(student, teacher, temperature=1.0):
    return np.array(
        [
            temperature**2
            * sum(
                _divergence(softmax([0.0, b / temperature]), softmax([0.0, a / temperature]))
                for a, b in zip(s, t, strict=True)
            )
            for s, t in zip(student, teacher, strict=True)
        ]
    )


def logit_mse(student, teacher):
    return np.array(
        [np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)]) for s, t in zip(student, teacher, strict=True)]
    )


def target_class_kd(student, teacher, labels, temperature=4.0):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        p, q = ([a[y], sum(np.delete(a, y))] for a in (p, q))
        values.append(temperature**2 * _divergence(p, q))
    return np.array(values)


def non_target_class_kd(student, teacher, labels, temperature=4.0):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        p, q = (softmax(np.delete(z, y) / temperature) for z in (t, s))
        values.append(temperature**2 * _divergence(p, q))
    return np.array(values)


def decoupled_kd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0):
    of_target = target_class_kd(student, teacher, labels, temperature)
    return alpha * of_target + beta * non_target_class_kd(student, teacher, labels, temperature)


def normalized_kd(student, teacher, labels, gamma=1.5, temperature=1.0):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        of_target = -softmax(t)[y] * math.log(softmax(s)[y])
        p, q = (softmax(np.delete(z, y) / temperature) for z in (t, s))
        values.append(of_target + gamma * temperature**2 * _cross_entropy(p, q))
    return np.array(values)


def _pattern(shares):
    """Centred and of length 1; constants, up to rounding, have no pattern."""
    if max(shares) - min(shares) < 1e-12 * max(shares):
        return np.zeros(len(shares))
    return direction(shares - np.mean(shares))


def dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0):
    q, p = (np.array([softmax(z / temperature) for z in logits]) for logits in (student, teacher))
    batch, classes = p.shape
    values = np.zeros(batch)
    for i in range(batch):
        values[i] += beta * sum((_pattern(q[i]) - _pattern(p[i])) ** 2) / 2
    for c in range(classes):
        of_student, of_teacher = _pattern(q[:, c]), _pattern(p[:, c])
        for i in range(batch):
            values[i] += gamma * batch / classes * (of_student[i] - of_teacher[i]) ** 2 / 2
    return temperature**2 * values


def standardize_logits(z):
    return np.array(
        [np.zeros(len(row)) if np.ptp(row) == 0 else (row - row.mean()) / (np.std(row, ddof=1) + 1e-7) for row in z]
    )


def standardized_kd(student, teacher, temperature=2.0):
    return soft_target_kl(standardize_logits(student), standardize_logits(teacher), temperature)


def top_k_kl(student, top_values, top_indices, temperature=4.0, tail=True):
    """The whole divergence, of predictions over all classes in which the rest is spread evenly."""
    values = []
    for s, stored, indices in zip(student, top_values, top_indices, strict=True):
        q = softmax(s)
        rest = [c for c in range(len(s)) if c not in indices]
        if tail and rest:
            p = np.full(len(s), max(0.0, 1 - sum(math.exp(v) for v in stored)) / len(rest))
            p[indices] = np.exp(stored)
            q[rest] = np.mean(q[rest])
        else:
            p, q = np.exp(stored), q[indices]
        p, q = (a ** (1 / temperature) / sum(a ** (1 / temperature)) for a in (p, q))
        values.append(temperature**2 * _divergence(p, q))
    return np.array(values)
