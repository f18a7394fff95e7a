"""The same command gives the same bits, and so do other processes; on more devices the same batches, and numbers to 1e-6."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from comparisons import lines, numbers, run

from kdjax.batches import epoch_indices

PHASES = ("teacher", "alone", "distilled")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A comparison on one device."""
    out = tmp_path_factory.mktemp("one") / "run"
    run(out)
    return out


def drift(own, other):
    return float(np.linalg.norm(own - other) / np.linalg.norm(other))


def test_twice_the_same_is_the_same_to_the_last_bit(one, tmp_path):
    run(tmp_path / "again")
    for phase in PHASES:
        assert numbers(tmp_path / "again", phase).tobytes() == numbers(one, phase).tobytes()
        for own, other in zip(lines(tmp_path / "again", phase), lines(one, phase), strict=True):
            assert own | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.parametrize("devices", [2, 4])
def test_more_devices_give_the_same_numbers(devices, one, tmp_path):
    run(tmp_path / "run", devices=devices)
    for phase in PHASES:
        assert drift(numbers(tmp_path / "run", phase), numbers(one, phase)) <= 1e-6
        # Means over the epoch's batches: with another batch in any place they would be others by far.
        own, other = (lines(out, phase)[-1]["train"]["loss"] for out in (tmp_path / "run", one))
        assert own == pytest.approx(other, rel=1e-6)


ORDER = """
import jax, numpy as np
from kdjax.batches import epoch_indices
print(jax.device_count(), np.asarray(epoch_indices(1257, 32, seed=3, epoch=5)).tolist())
"""


def test_the_order_of_the_data_is_that_of_any_process_and_any_number_of_devices():
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONHASHSEED": "1",
    }
    done = subprocess.run([sys.executable, "-c", ORDER], env=environment, capture_output=True, text=True, check=True)
    here = np.asarray(epoch_indices(1257, 32, seed=3, epoch=5)).tolist()
    assert done.stdout.strip() == f"1 {here}"
    assert jax.device_count() == 4
