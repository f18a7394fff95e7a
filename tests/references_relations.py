"""The losses of kdjax/losses/_relations.py once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, flat, huber


def _relative_distances(features):
    batch = len(features)
    distances = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            distances[i, j] = math.sqrt(np.sum((features[i] - features[j]) ** 2))
    positive = [distance for distance in distances.ravel() if distance > 0]
    return distances / np.mean(positive) if positive else distances


def rkd_distance(student, teacher):
    of_student, of_teacher = _relative_distances(flat(student)), _relative_distances(flat(teacher))
    batch = len(student)
    return np.array([np.mean([huber(of_student[i, j] - of_teacher[i, j]) for j in range(batch)]) for i in range(batch)])


def _cosine_at(features, i, j, k):
    return np.dot(direction(features[j] - features[i]), direction(features[k] - features[i]))


def rkd_angle(student, teacher, block=None):
    del block  # it changes the memory, not the numbers
    student, teacher = flat(student), flat(teacher)
    batch = len(student)
    values = np.zeros(batch)
    for i in range(batch):
        for j in range(batch):
            for k in range(batch):
                values[i] += huber(_cosine_at(student, i, j, k) - _cosine_at(teacher, i, j, k)) / batch**2
    return values


def _neighbour_distribution(features, i):
    similarities = [(np.dot(direction(features[i]), direction(other)) + 1) / 2 for other in features]
    return np.array(similarities) / np.sum(similarities)


def pkt(student, teacher):
    student, teacher = flat(student), flat(teacher)
    values = []
    for i in range(len(student)):
        s, t = _neighbour_distribution(student, i), _neighbour_distribution(teacher, i)
        values.append(np.mean([t[j] * math.log((t[j] + 1e-7) / (s[j] + 1e-7)) for j in range(len(student))]))
    return np.array(values)
