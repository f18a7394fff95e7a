"""What can be known of measures before anything is trained."""

import pytest

from kdjax.metrics import accuracy
from kdjax.runs._measured import check_measures


@pytest.mark.parametrize("name", ["agreement", "seconds", "rate", "skipped"])
def test_a_name_that_a_record_has_of_its_own_is_refused(name):
    with pytest.raises(ValueError, match=f"The measure's name {name!r} is taken by what compare itself records"):
        check_measures({"accuracy": accuracy, name: accuracy})
    check_measures({"accuracy": accuracy, f"own {name}": accuracy})
