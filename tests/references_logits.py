"""The losses of kdjax/losses/_logits.py once more: loops in float64, from the papers' formulas."""

import math

import numpy as np
from reference import softmax


def soft_target_kl(student, teacher, temperature=4.0):
    values = []
    for of_student, of_teacher in zip(student, teacher, strict=True):
        p, q = softmax(of_teacher / temperature), softmax(of_student / temperature)
        values.append(temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)) if p[c] > 0))
    return np.array(values)


def logit_mse(student, teacher):
    return np.array(
        [np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)]) for s, t in zip(student, teacher, strict=True)]
    )
