"""The losses of cases_features.py once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, flat, huber


def hint(student, teacher):
    return np.array(
        [
            np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)])
            for s, t in zip(flat(student), flat(teacher), strict=True)
        ]
    )


def _pooled(activations, height, width):
    """[h, w, channels] averaged down: new cell i covers old cells floor(i·h/height) to ceil((i+1)·h/height) − 1."""
    old_height, old_width, channels = activations.shape
    pooled = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            top, bottom = math.floor(i * old_height / height), math.ceil((i + 1) * old_height / height)
            left, right = math.floor(j * old_width / width), math.ceil((j + 1) * old_width / width)
            pooled[i, j] = activations[top:bottom, left:right].mean(axis=(0, 1))
    return pooled


def _pooled_pair(first, second):
    height, width = min(first.shape[0], second.shape[0]), min(first.shape[1], second.shape[1])
    return _pooled(first, height, width), _pooled(second, height, width)


def _attention(activations, power):
    positions = activations.reshape(-1, activations.shape[-1])
    return direction(np.array([np.mean([abs(value) ** power for value in channels]) for channels in positions]))


def attention_transfer(student, teacher, power=2.0):
    values = []
    for pair in zip(student, teacher, strict=True):
        of_student, of_teacher = (_attention(pooled, power) for pooled in _pooled_pair(*pair))
        values.append(np.mean((of_student - of_teacher) ** 2))
    return np.array(values)


def factor_transfer(student, teacher, power=2.0):
    values = []
    for pair in zip(student, teacher, strict=True):
        of_student, of_teacher = (_attention(pooled, power) for pooled in _pooled_pair(*pair))
        values.append(np.mean([abs(a - b) for a, b in zip(of_student, of_teacher, strict=True)]))
    return np.array(values)


def neuron_selectivity(student, teacher):
    values = []
    for pair in zip(student, teacher, strict=True):
        s, t = ([direction(pooled[..., c].ravel()) for c in range(pooled.shape[-1])] for pooled in _pooled_pair(*pair))
        likeness = lambda first, second: np.mean([np.dot(x, y) ** 2 for x in first for y in second])  # noqa: E731
        values.append(likeness(t, t) + likeness(s, s) - 2 * likeness(s, t))
    return np.array(values)


def cosine(student, teacher):
    return np.array([1 - np.dot(direction(s), direction(t)) for s, t in zip(flat(student), flat(teacher), strict=True)])


def variational_information(student_mean, teacher, raw_variance, eps=1e-5):
    variance = [math.log1p(math.exp(raw)) + eps for raw in raw_variance]
    values = []
    for means, targets in zip(student_mean, teacher, strict=True):
        terms = [
            ((means[position] - targets[position]) ** 2 / variance[position[-1]] + math.log(variance[position[-1]])) / 2
            for position in np.ndindex(means.shape)
        ]
        values.append(np.mean(terms))
    return np.array(values)


def hierarchical_context(student, teacher, levels=(4, 2, 1)):
    values = []
    for s, t in zip(student, teacher, strict=True):
        height, width = s.shape[:2]
        total, weight, weights = np.mean((s - t) ** 2), 1.0, 1.0
        for level in levels:
            if level > min(height, width) or level == height == width:
                continue
            weight /= 2
            weights += weight
            total += weight * np.mean((_pooled(s, level, level) - _pooled(t, level, level)) ** 2)
        values.append(total / weights)
    return np.array(values)


def activation_boundary(student, teacher, margin=1.0):
    values = np.zeros(len(student))
    for i, (of_student, of_teacher) in enumerate(zip(flat(student), flat(teacher), strict=True)):
        for s, t in zip(of_student, of_teacher, strict=True):
            if t <= 0 and s > -margin:
                values[i] += (s + margin) ** 2
            elif t > 0 and s <= margin:
                values[i] += (s - margin) ** 2
    return values


def overhaul(student, teacher, margin):
    values = np.zeros(len(student))
    for example, *position in np.ndindex(student.shape):
        s, t = student[(example, *position)], max(teacher[(example, *position)], margin[position[-1]])
        if s > t or t > 0:
            values[example] += (s - t) ** 2
    return values


def negative_margin(scale, bias):
    """E[x | x < 0] by summing over a fine grid, up to twelve deviations below 0 or below the mean."""
    margins = []
    for deviation, mean in zip(np.abs(scale), bias, strict=True):
        if deviation == 0:
            margins.append(min(mean, 0.0))
            continue
        if math.erfc(mean / deviation / math.sqrt(2)) / 2 <= 1e-3:
            margins.append(-3 * deviation)
            continue
        top = min(0.0, mean + 12 * deviation)
        cells = 200_000
        width = (top - (min(mean, 0.0) - 12 * deviation)) / cells
        x = top - width * (np.arange(cells) + 0.5)
        density = np.exp(-(((x - mean) / deviation) ** 2) / 2)
        margins.append(np.sum(x * density) / np.sum(density))
    return np.array(margins)


def _flow(bottom, top):
    bottom, top = _pooled_pair(bottom, top)
    flow = np.zeros((bottom.shape[-1], top.shape[-1]))
    for row, column in np.ndindex(bottom.shape[:2]):
        flow += np.outer(bottom[row, column], top[row, column])
    return flow / (bottom.shape[0] * bottom.shape[1])


def fsp(student_bottom, student_top, teacher_bottom, teacher_top):
    layers = zip(student_bottom, student_top, teacher_bottom, teacher_top, strict=True)
    return np.array([np.mean((_flow(s, s_top) - _flow(t, t_top)) ** 2) for s, s_top, t, t_top in layers])


def sequence_angles(student, teacher):
    def bend(steps, n):
        return np.dot(direction(steps[n + 1] - steps[n]), direction(steps[n + 2] - steps[n]))

    return np.array(
        [
            np.mean([huber(bend(s, n) - bend(t, n)) for n in range(len(s) - 2)])
            for s, t in zip(student, teacher, strict=True)
        ]
    )
