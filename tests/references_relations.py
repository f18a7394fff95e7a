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


def _similarity_rows(features):
    return [direction(np.array([np.dot(one, other) for other in features])) for one in features]


def similarity_preserving(student, teacher):
    of_student, of_teacher = _similarity_rows(flat(student)), _similarity_rows(flat(teacher))
    return np.array([np.sum((s - t) ** 2) / len(s) for s, t in zip(of_student, of_teacher, strict=True)])


def correlation_congruence(student, teacher):
    error = abs(flat(student) - flat(teacher))
    values = np.zeros(len(error))
    for i in range(len(error) - 1):
        pair = sum(error[i] * error[i + 1])
        for member in (i, i + 1):
            values[member] += pair / 2 * len(error) / (len(error) - 1)
    return values


def _congruence_kernel(one, other, gamma, order):
    cosine = np.dot(direction(one), direction(other))
    if order is None:
        return math.exp(-gamma * (2 - 2 * cosine))
    return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))


def kernel_congruence(student, teacher, gamma=0.4, order=None):
    student, teacher = flat(student), flat(teacher)
    batch, values = len(student), np.zeros(len(student))
    for i in range(batch):
        for j in range(batch):
            of_student = _congruence_kernel(student[i], student[j], gamma, order)
            values[i] += (of_student - _congruence_kernel(teacher[i], teacher[j], gamma, order)) ** 2 / batch
    return values


def kernel_alignment(student, teacher, centred=True):
    kernels = []
    for features in (flat(student), flat(teacher)):
        if centred:
            features = features - features.mean(axis=0)
        batch = len(features)
        kernel = np.array([[np.dot(features[i], features[j]) for j in range(batch)] for i in range(batch)])
        kernels.append(direction(kernel.ravel()).reshape(batch, batch))
    if all(kernel.any() for kernel in kernels):
        alignment = np.sum(kernels[0] * kernels[1])
        shares = len(student) / 2 * np.sum((kernels[0] - kernels[1]) ** 2, axis=1)
        assert abs(shares.mean() - (1 - alignment)) < 1e-12
    return len(student) / 2 * np.sum((kernels[0] - kernels[1]) ** 2, axis=1)


def _places(cosines, candidates, count):
    """How much of each candidate is among the `count` largest: those that tie for the last places share them."""
    if count is None or count >= len(candidates):
        return dict.fromkeys(candidates, 1.0)
    last = sorted((cosines[j] for j in candidates), reverse=True)[count - 1]
    above = [j for j in candidates if cosines[j] > last + 1e-9]
    tied = [j for j in candidates if abs(cosines[j] - last) <= 1e-9]
    return dict.fromkeys(above, 1.0) | dict.fromkeys(tied, (count - len(above)) / len(tied))


def similarity_graph(student, teacher, labels, temperature=0.1, neighbours=None, hardest=None):
    student, teacher = flat(student), flat(teacher)
    batch, values = len(student), np.zeros(len(student))
    for i in range(batch):
        s = [np.dot(direction(student[i]), direction(other)) for other in student]
        t = [np.dot(direction(teacher[i]), direction(other)) for other in teacher]
        others = [j for j in range(batch) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        negatives = _places(s, [j for j in others if labels[j] != labels[i]], hardest)
        for j in positives:
            total = sum(math.exp(s[k] / temperature) for k in positives)
            total += sum(share * math.exp(s[k] / temperature) for k, share in negatives.items())
            values[i] += (math.log(total) - s[j] / temperature) / len(positives)
        edges = _places(t, others, neighbours)
        values[i] += sum(share * (s[j] - t[j]) ** 2 for j, share in edges.items()) / max(sum(edges.values()), 1)
    return values
