"""Files that were cut, changed or never finished are told from good ones, and the last good step is found."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from saved import bits, some_state, some_weights, spoil, update

from kdjax import TrainState, Weights
from kdjax.checkpoints import (
    DamagedError,
    load_weights,
    open_run,
    read_description,
    restore_state,
    save_state,
    save_weights,
)

# Orbax reads leaves side by side; where several fail, it leaves all errors but one for the garbage collector to find.
DAMAGED_ON_PURPOSE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def damaged_folder(tmp_path):
    """A folder for damaged checkpoints, whose late errors are gathered before the next test could be blamed for them."""
    yield tmp_path
    time.sleep(0.2)
    gc.collect()


def test_a_flipped_bit_is_told_with_the_name_of_its_leaf(tmp_path):
    save_weights(tmp_path / "w", some_weights())
    with ocp.StandardCheckpointer() as orbax:
        arrays = orbax.restore(tmp_path / "w" / "arrays")
        shutil.rmtree(tmp_path / "w" / "arrays")
        arrays["params/Dense_0/kernel"].view(np.uint8)[20, 20] ^= 1
        orbax.save(tmp_path / "w" / "arrays", arrays)
    with pytest.raises(DamagedError, match=r"bytes have changed of params/Dense_0/kernel\."):
        load_weights(tmp_path / "w", some_weights())


@DAMAGED_ON_PURPOSE
def test_no_damage_anywhere_passes_for_good_weights(damaged_folder):
    save_weights(damaged_folder / "w", some_weights(), description={"model": "cnn"})
    good, random, caught = bits(some_weights()), np.random.default_rng(0), 0
    files = sorted(file for file in (damaged_folder / "w").rglob("*") if file.is_file())
    for file in files:
        content = file.read_bytes()
        positions = random.integers(len(content), size=6) if content else []
        damages = [b"", content[:-1]] + [
            content[:position] + bytes([content[position] ^ 1 << int(random.integers(8))]) + content[position + 1 :]
            for position in positions
        ]
        for damage in damages:
            file.write_bytes(damage)
            try:
                assert bits(load_weights(damaged_folder / "w", some_weights())) == good
                assert read_description(damaged_folder / "w") == {"model": "cnn"}
            except DamagedError:
                caught += 1
        file.write_bytes(content)
    assert caught > 20
    assert bits(load_weights(damaged_folder / "w", some_weights())) == good


@DAMAGED_ON_PURPOSE
def test_a_damaged_step_is_told_and_the_one_before_it_restored(damaged_folder):
    with open_run(damaged_folder) as run:
        save_state(run, 1, some_state(), {"epoch": 1})
        save_state(run, 2, update(some_state()), {"epoch": 2})
    spoil(damaged_folder / "2")
    with open_run(damaged_folder) as run:
        with pytest.warns(RuntimeWarning, match=f"{damaged_folder / '2'} .*Going back from step 2 to step 1"):
            restored, record = restore_state(run, some_state())
        assert record == {"epoch": 1}
        assert bits(restored) == bits(some_state())
        save_state(run, 2, update(restored), {"epoch": 2})
        restored, record = restore_state(run, some_state())
        assert record == {"epoch": 2}
        assert bits(restored) == bits(update(some_state()))
    assert (damaged_folder / "damaged-2").is_dir()


@DAMAGED_ON_PURPOSE
def test_a_run_of_damaged_steps_is_an_error_and_stays_as_it_is(damaged_folder):
    with open_run(damaged_folder) as run:
        save_state(run, 1, some_state())
        save_state(run, 2, some_state())
    spoil(damaged_folder / "1")
    spoil(damaged_folder / "2")
    for _ in range(2):
        with open_run(damaged_folder) as run, pytest.raises(DamagedError, match=r"No state in .* is whole\. .*2.*1"):
            restore_state(run, some_state())


def test_nothing_stays_of_a_save_that_fails(tmp_path):
    with pytest.raises(ValueError, match=r"record\['model'\] must be something that JSON can hold"):
        save_weights(tmp_path / "w", some_weights(), description={"model": object()})
    with pytest.raises(ValueError, match="at least one array"):
        save_weights(tmp_path / "w", Weights({}, {}))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_of_weights_for_which_there_is_no_room(tmp_path):
    """By a limit of the system on a file's size, half way through the arrays."""
    large = Weights({"w": np.random.default_rng(0).normal(size=(300, 300))}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"The checkpoint {tmp_path}/w cannot be written: .*File too large"):
            save_weights(tmp_path / "w", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    save_weights(tmp_path / "w", large)
    assert bits(load_weights(tmp_path / "w", large)) == bits(large)


def test_what_orbax_says_of_a_failed_write_names_the_folder(tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to fsync file")

    def failing(*arguments, **keywords):
        raise OSError(28, "No space left on device", "_METADATA")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(OSError, match=f"The checkpoint {tmp_path}/w cannot be written: RESOURCE_EXHAUSTED"):
        save_weights(tmp_path / "w", some_weights())
    with open_run(tmp_path / "state") as run:
        monkeypatch.setattr(run, "save", failing)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/state'"):
            save_state(run, 1, some_state())


def test_a_save_that_was_killed_is_no_obstacle(tmp_path):
    left = tmp_path / "w.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_text("written")
    save_weights(tmp_path / "w", some_weights())
    assert not (tmp_path / "w" / "half").exists()
    assert bits(load_weights(tmp_path / "w", some_weights())) == bits(some_weights())


SAVES_UNTIL_KILLED = """
    import sys
    import jax, jax.numpy as jnp
    from kdjax._types import TrainState
    from kdjax.checkpoints import open_run, save_state
    with open_run(sys.argv[1]) as run:
        first = (run.latest_step() or 0) + 1
        for step in range(first, 10_000):
            params = {str(index): jnp.full((50, 50), step) for index in range(20)}
            save_state(run, step, TrainState(jnp.int32(step), params, {}, (), jax.random.key(0)), {"step": step})
            print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save_leaves_the_last_good_step(tmp_path):
    params = {str(index): jnp.zeros((50, 50), jnp.int32) for index in range(20)}
    like = TrainState(jnp.int32(0), params, {}, (), jax.random.key(0))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for saves in (3, 8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVES_UNTIL_KILLED), str(tmp_path)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        lines = [int(process.stdout.readline()) for _ in range(saves)]
        process.send_signal(signal.SIGKILL)  # this last save has begun, and is being written
        lines += [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        with warnings.catch_warnings(), open_run(tmp_path) as run:
            warnings.simplefilter("error")  # a warning would tell of a damaged step
            restored, record = restore_state(run, like)
        # A save returns only when the one before it is whole.
        assert lines[-1] - 1 <= record["step"] <= lines[-1] + 1
        assert restored.step == record["step"]
        assert all((leaf == record["step"]).all() for leaf in jax.tree.leaves(restored.params))
    assert not list(tmp_path.glob("*tmp*"))
