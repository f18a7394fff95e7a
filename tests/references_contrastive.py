"""The losses of kdjax/losses/_contrastive.py once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, softmax


def info_nce(student, teacher, temperature=0.07):
    batch = len(student)
    values = []
    for i in range(batch):
        among_teachers = [np.dot(direction(student[i]), direction(teacher[j])) / temperature for j in range(batch)]
        among_students = [np.dot(direction(student[j]), direction(teacher[i])) / temperature for j in range(batch)]
        found = softmax(np.array(among_teachers))[i], softmax(np.array(among_students))[i]
        values.append(-(math.log(found[0]) + math.log(found[1])) / 2)
    return np.array(values)


def similarity_distribution(student, teacher, queue, temperatures):
    values = []
    for s, t in zip(student, teacher, strict=True):
        targets = [t, *queue]
        q, p = (
            softmax(np.array([np.dot(direction(anchor), direction(target)) / temperature for target in targets]))
            for anchor, temperature in zip((s, t), temperatures, strict=True)
        )
        values.append(-sum(p[j] * math.log(q[j]) for j in range(len(targets))))
    return np.array(values)


def crd(student, teacher, indices, bank, negatives, temperature=0.07, momentum=0.5, warmup=100):
    """[batch] values and the new bank's four arrays, by the paper's D = p / (p + m/N) as it is written."""
    size, count = len(bank.student), negatives.shape[1]
    values = np.zeros(len(student))
    normalisers = []
    for anchors, memory, log_kept in (
        (student, bank.teacher, bank.log_normalisers[0]),
        (teacher, bank.student, bank.log_normalisers[1]),
    ):
        powers = [
            [math.exp(np.dot(direction(anchors[i]), memory[place]) / temperature) for place in negatives[i]]
            for i in range(len(anchors))
        ]
        estimate = size * np.mean(powers)
        normaliser = estimate if bank.batches == 0 else math.exp(log_kept)
        for i, place in enumerate(indices):
            own = math.exp(np.dot(direction(anchors[i]), memory[place]) / temperature) / normaliser
            values[i] -= math.log(own / (own + count / size))
            for power in powers[i]:
                values[i] -= math.log((count / size) / (power / normaliser + count / size))
        seen = int(bank.batches)
        normalisers.append(
            math.exp(log_kept) if seen >= warmup else (math.exp(log_kept) * seen + estimate) / (seen + 1)
        )
    memories = []
    for memory, embeddings in ((bank.student, student), (bank.teacher, teacher)):
        moved = np.array(memory)
        for place in set(np.asarray(indices).tolist()):
            seen_here = [direction(embeddings[i]) for i in range(len(indices)) if indices[i] == place]
            mixed = momentum * memory[place] + (1 - momentum) * np.mean(seen_here, axis=0)
            moved[place] = direction(mixed) if mixed.any() else memory[place]
        memories.append(moved)
    return values, (*memories, np.log(normalisers), int(bank.batches) + 1)
