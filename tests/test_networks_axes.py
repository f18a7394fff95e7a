"""What becomes of axes that are merged and cut, and in which order their rows then lie."""

import numpy as np

from kdjax.networks._axes import Met, Part, Value, reshaped


def test_rows_follow_any_order_of_the_parts():
    met = Met((Part(2, "space"), Part(3, "channel"), Part(4, "space")), "first")
    wanted = np.arange(24).reshape(3, 2, 4).transpose(1, 0, 2).ravel()
    np.testing.assert_array_equal(met.rows(), wanted)
    assert met.rows("last") is None
    assert met._replace(layout="last").rows() is None
    np.testing.assert_array_equal(met._replace(layout="unsure").rows("first"), wanted)


def test_what_was_of_the_batch_stays_in_front():
    met = Met((Part(2, "batch"), Part(3, "space"), Part(4, "channel")), "first")
    np.testing.assert_array_equal(met.rows(), np.arange(24).reshape(2, 4, 3).transpose(0, 2, 1).ravel())


def test_axes_are_merged_and_cut_again():
    value = Value(((Part(5, "batch"),), (Part(4, "space"),), (Part(6, "channel"),)), "first", None)
    merged = reshaped(value, (5, 24))
    assert merged.axes[1] == (Part(4, "space"), Part(6, "channel"))
    assert reshaped(merged, (5, 4, 6)) == value
    groups = reshaped(value, (5, 4, 2, 3))
    assert groups.axes[2:] == ((Part(2, "channel"),), (Part(3, "channel"),))
    # Where a part is cut across, nothing is known but the usual places.
    assert reshaped(value, (5, 3, 8)).layout == "unsure"
