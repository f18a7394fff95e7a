"""What a stream refuses: numbers that make none, and labels that are no class numbers."""

import numpy as np
import pytest

import kdjax.data as data

pytest.importorskip("grain", reason="needs Grain")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 24}, "batch_size must lie between 1 and the 23 examples there are; got 24"),
        ({"batch_size": 0}, "batch_size must lie between 1 and the 23 examples there are; got 0"),
        ({"start": -1}, "start must be a whole number of 0 or more; got -1"),
        ({"start": 3, "stop": 2}, "stop must be at least start; got start 3 and stop 2"),
        ({"workers": -1}, "workers must be a whole number of 0 or more; got -1"),
        ({"ahead": 0}, "ahead must be a whole number of 1 or more; got 0"),
        ({"part": (0, 2)}, r"n dividing batch_size 5; got \(0, 2\)"),
        ({"part": (1, 1)}, r"i in 0\.\.n - 1 .* got \(1, 1\)"),
    ],
)
def test_numbers_that_make_no_stream_are_named(settings, message):
    train = [{"inputs": np.zeros(2, np.float32), "labels": 0}] * 23
    with (
        pytest.raises(ValueError, match=message),
        data.open_stream(train, **{"batch_size": 5, "seed": 0} | settings),
    ):
        pass


@pytest.mark.parametrize("label", [1.7, 1.0, -5, float("nan"), 2**31, 2**70, "1", None, True, np.float32(1), [0, -1]])
def test_labels_that_are_no_class_numbers_are_named_and_never_cast(label):
    examples = [{"inputs": np.zeros(2, np.float32), "labels": label}]
    with (
        pytest.raises(ValueError, match=r"labels must be whole class numbers from 0 to 2147483647; example 0 has "),
        data.open_stream(examples, 1, seed=0) as batches,
    ):
        next(batches)


@pytest.mark.parametrize("label", [3, np.uint8(255), np.int64(7), np.array([1, 2])])
def test_labels_that_are_class_numbers_come_as_int32(label):
    with data.open_stream([{"inputs": np.zeros(2, np.float32), "labels": label}], 1, seed=0) as batches:
        found = next(batches)["labels"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[0], label)
