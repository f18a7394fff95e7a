"""The losses of kdjax/losses/_features.py once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import direction, flat


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
            maps.append(direction(attention))
        values.append(np.mean((maps[0] - maps[1]) ** 2))
    return np.array(values)
