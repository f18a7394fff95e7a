"""scikit-learn's bundled handwritten digits, 1,797 real scans of 8 × 8 pixels, in a split that never changes."""

import hashlib

import numpy as np

from kdjax.data.dataset import Dataset, make_dataset, require_split

# The salt is the seed of the split; another salt, another split.
SALT = "kdjax digits 0"
TEST, VALIDATION = 360, 180


def read_digits(split: str) -> Dataset:
    """One split of the digits: train 1,257, validation 180, test 360, disjoint, with all classes in proportion.

    The scans hold the numbers 0..16; here they are uint8 in 0..255, ``round(255 / 16 * x)``, so that dividing by 255
    gives x / 16 to within 0.002, as it would for any other image. Nothing is lost: all 17 numbers stay different.

    Args:
      split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
      Inputs uint8 [examples, 8, 8, 1], ten classes.

    Note:
      The same writers occur in all splits, as they do in scikit-learn's own examples.

    Reference:
      https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    members = split_members(scans.target)
    require_split("digits", split, list(members))
    chosen = members[split]
    images = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(number) for number in range(10))
    return make_dataset(images[chosen], scans.target[chosen], class_names=names, name="digits", split=split)


def split_members(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The indices of each split, increasing.

    The examples are sorted by class and, within a class, by a hash of their index; every k-th goes to test, then every
    k-th of the rest to validation. So each class gets its share to within one example, and the split depends on no
    library's random numbers.
    """
    shuffle = [hashlib.sha256(f"{SALT} {index}".encode()).hexdigest() for index in range(len(labels))]
    ordered = np.array(sorted(range(len(labels)), key=lambda index: (labels[index], shuffle[index])))
    test = _evenly(len(ordered), TEST)
    rest = ordered[~test]
    validation = _evenly(len(rest), VALIDATION)
    return {
        "train": np.sort(rest[~validation]),
        "validation": np.sort(rest[validation]),
        "test": np.sort(ordered[test]),
    }


def _evenly(length: int, chosen: int) -> np.ndarray:
    """A mask with `chosen` of `length` places set, evenly spread."""
    steps = np.arange(length + 1) * chosen // length
    return steps[1:] > steps[:-1]
