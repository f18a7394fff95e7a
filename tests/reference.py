"""Arithmetic that several references share, in plain NumPy."""

import math

import numpy as np


def flat(features):
    return np.asarray(features, np.float64).reshape(len(features), -1)


def softmax(logits):
    powers = np.exp(logits - np.max(logits))
    return powers / powers.sum()


def huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def direction(vector):
    """The vector over its length; a zero vector has no direction and stays zero."""
    length = math.sqrt(np.dot(vector, vector))
    return vector / length if length > 0 else vector * 0.0
