"""Pictures of several handwritten digits at once: scikit-learn's scans, laid over each other on a canvas."""

import numpy as np

from kdjax.data import Dataset


def canvases(digits: Dataset, count: int, size: int, most: int, seed: int) -> dict[str, np.ndarray]:
    """Canvases with 1 to `most` digits, each at a place of its own, twice as large as scanned.

    Returns:
      ``"inputs"``: float32 [count, size, size, 1] between 0 and 1, the brightest of what lies there; ``"classes"``: int32
      [count, size, size], 0 where nothing is and 1 + digit where the last one laid has ink; ``"present"``: int32 [count,
      10].
    """
    random = np.random.default_rng(seed)
    scans = np.repeat(np.repeat(digits.inputs[..., 0], 2, axis=1), 2, axis=2) / np.float32(digits.inputs.max())
    side = scans.shape[1]
    if side > size:
        raise ValueError(f"data must be pictures of {size // 2} × {size // 2} at most; got {side // 2} × {side // 2}.")
    inputs = np.zeros((count, size, size, 1), np.float32)
    classes, present = np.zeros((count, size, size), np.int32), np.zeros((count, 10), np.int32)
    for canvas in range(count):
        for number in random.integers(0, len(scans), random.integers(1, most + 1)):
            row, column = random.integers(0, size - side + 1, 2)
            place = (canvas, slice(row, row + side), slice(column, column + side))
            inputs[(*place, 0)] = np.maximum(inputs[(*place, 0)], scans[number])
            classes[place] = np.where(scans[number] > 0.3, 1 + digits.labels[number], classes[place])
            present[canvas, digits.labels[number]] = 1
    return {"inputs": inputs, "classes": classes, "present": present}
