"""Every loss once more, by its name: NumPy in float64, loops over examples, written from the papers' formulas.

Slow on purpose, so that a reader can check each line against the paper, and ignorant of kdjax. Each returns [batch].
"""

import math

import numpy as np


def _flat(features):
    return np.asarray(features, np.float64).reshape(len(features), -1)


def _softmax(logits):
    powers = np.exp(logits - np.max(logits))
    return powers / powers.sum()


def _huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def _direction(vector):
    """The vector over its length; a zero vector has no direction and stays zero."""
    length = math.sqrt(np.dot(vector, vector))
    return vector / length if length > 0 else vector * 0.0


# Predictions


def soft_target_kl(student, teacher, temperature=4.0):
    values = []
    for of_student, of_teacher in zip(student, teacher, strict=True):
        p, q = _softmax(of_teacher / temperature), _softmax(of_student / temperature)
        values.append(temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)) if p[c] > 0))
    return np.array(values)


def logit_mse(student, teacher):
    return np.array(
        [np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)]) for s, t in zip(student, teacher, strict=True)]
    )


# Activations


def hint(student, teacher):
    return np.array(
        [
            np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)])
            for s, t in zip(_flat(student), _flat(teacher), strict=True)
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


def attention_transfer(student, teacher, power=2.0):
    values = []
    for of_student, of_teacher in zip(student, teacher, strict=True):
        height = min(of_student.shape[0], of_teacher.shape[0])
        width = min(of_student.shape[1], of_teacher.shape[1])
        maps = []
        for activations in (of_student, of_teacher):
            pooled = _pooled(activations, height, width)
            attention = np.zeros(height * width)
            for position, channels in enumerate(pooled.reshape(height * width, -1)):
                attention[position] = np.mean([abs(value) ** power for value in channels])
            maps.append(_direction(attention))
        values.append(np.mean((maps[0] - maps[1]) ** 2))
    return np.array(values)


# Relations


def _relative_distances(features):
    batch = len(features)
    distances = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            distances[i, j] = math.sqrt(np.sum((features[i] - features[j]) ** 2))
    positive = [distance for distance in distances.ravel() if distance > 0]
    return distances / np.mean(positive) if positive else distances


def rkd_distance(student, teacher):
    of_student, of_teacher = _relative_distances(_flat(student)), _relative_distances(_flat(teacher))
    batch = len(student)
    return np.array(
        [np.mean([_huber(of_student[i, j] - of_teacher[i, j]) for j in range(batch)]) for i in range(batch)]
    )


def _cosine_at(features, i, j, k):
    return np.dot(_direction(features[j] - features[i]), _direction(features[k] - features[i]))


def rkd_angle(student, teacher, block=None):
    del block  # it changes the memory, not the numbers
    student, teacher = _flat(student), _flat(teacher)
    batch = len(student)
    values = np.zeros(batch)
    for i in range(batch):
        for j in range(batch):
            for k in range(batch):
                values[i] += _huber(_cosine_at(student, i, j, k) - _cosine_at(teacher, i, j, k)) / batch**2
    return values


def _neighbour_distribution(features, i):
    similarities = [(np.dot(_direction(features[i]), _direction(other)) + 1) / 2 for other in features]
    return np.array(similarities) / np.sum(similarities)


def pkt(student, teacher):
    student, teacher = _flat(student), _flat(teacher)
    values = []
    for i in range(len(student)):
        s, t = _neighbour_distribution(student, i), _neighbour_distribution(teacher, i)
        values.append(np.mean([t[j] * math.log((t[j] + 1e-7) / (s[j] + 1e-7)) for j in range(len(student))]))
    return np.array(values)
