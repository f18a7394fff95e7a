"""The losses over a vocabulary once more: logits by loops, then the losses on predictions of references_logits.py."""

import math

import numpy as np
import references_logits
from reference import softmax


def _logits(hidden, head):
    return np.array([[sum(a * b for a, b in zip(h, column, strict=True)) for column in head.T] for h in hidden])


def linear_cross_entropy(hidden, head, labels, chunk=None, axis_name=None):
    del chunk, axis_name
    return np.array([-math.log(softmax(z)[y]) for z, y in zip(_logits(hidden, head), labels, strict=True)])


def linear_soft_target_kl(
    student_hidden, student_head, teacher_hidden, teacher_head, temperature=1.0, chunk=None, axis_name=None
):
    del chunk, axis_name
    both = _logits(student_hidden, student_head), _logits(teacher_hidden, teacher_head)
    return references_logits.soft_target_kl(*both, temperature)


def linear_reverse_kl(
    student_hidden, student_head, teacher_hidden, teacher_head, temperature=1.0, chunk=None, axis_name=None
):
    del chunk, axis_name
    both = _logits(student_hidden, student_head), _logits(teacher_hidden, teacher_head)
    return references_logits.reverse_kl(*both, temperature)


def linear_jensen_shannon(
    student_hidden, student_head, teacher_hidden, teacher_head, beta=0.5, temperature=1.0, chunk=None, axis_name=None
):
    del chunk, axis_name
    both = _logits(student_hidden, student_head), _logits(teacher_hidden, teacher_head)
    return references_logits.jensen_shannon(*both, beta, temperature)
