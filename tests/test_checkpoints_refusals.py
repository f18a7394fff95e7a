"""What is no checkpoint of this network, or may not be read or written, is refused by name, and is not called damaged."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from saved import OPTIMIZER, some_state, some_weights

from kdjax import Weights
from kdjax.checkpoints import (
    DamagedError,
    load_weights,
    open_run,
    read_description,
    restore_state,
    save_state,
    save_weights,
)


def test_saved_weights_are_not_overwritten(tmp_path):
    save_weights(tmp_path / "w", some_weights(), description={"first": True})
    with pytest.raises(FileExistsError, match=f"{tmp_path / 'w'} exists already"):
        save_weights(tmp_path / "w", some_weights(), description={"first": False})
    assert read_description(tmp_path / "w") == {"first": True}


def test_a_path_in_which_orbax_loses_what_it_writes_is_refused(tmp_path):
    path = tmp_path / "[a]run" / "w"
    with pytest.raises(ValueError, match="no brackets"):
        save_weights(path, some_weights())
    with pytest.raises(ValueError, match="no brackets"), open_run(path):
        pass
    assert not path.parent.exists()
    save_weights(tmp_path / "a]run[" / "w", some_weights())
    load_weights(tmp_path / "a]run[" / "w", some_weights())


# Another architecture


def test_another_architecture_is_told_leaf_by_leaf(tmp_path):
    save_weights(tmp_path / "w", Weights({"same": jnp.ones(2), "wide": jnp.ones((8, 16)), "old": jnp.ones(1)}, {}))
    like = Weights({"same": jnp.ones(2, jnp.int32), "wide": jnp.ones((64, 256)), "new": jnp.ones(1)}, {})
    with pytest.raises(ValueError, match="architecture") as caught:
        load_weights(tmp_path / "w", like)
    message = str(caught.value)
    assert not isinstance(caught.value, DamagedError)
    for part in (
        str(tmp_path / "w"),
        "params/same: float32[2] saved, int32[2] wanted",
        "params/wide: float32[8, 16] saved, float32[64, 256] wanted",
        "params/old: saved, and not wanted",
        "params/new: wanted, and not saved",
    ):
        assert part in message


def test_of_many_differences_five_are_listed(tmp_path):
    save_weights(tmp_path / "w", Weights({"a": jnp.ones(1)}, {}))
    like = Weights({"a": jnp.ones(1), "layers": [jnp.ones(1)] * 9}, {})
    with pytest.raises(ValueError, match=r"layers/4: wanted, and not saved; and 4 more\.$"):
        load_weights(tmp_path / "w", like)


def test_a_key_of_another_generator_is_another_dtype(tmp_path):
    save_weights(tmp_path / "w", Weights({"key": jax.random.key(0, impl="rbg")}, {}))
    with pytest.raises(ValueError, match=r"params/key: key<rbg>\[\] saved, key<fry>\[\] wanted"):
        load_weights(tmp_path / "w", Weights({"key": jax.random.key(0)}, {}))


def test_another_architecture_is_no_damage(tmp_path):
    params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
    like = some_state()._replace(params=params, opt_state=OPTIMIZER.init(params))
    with open_run(tmp_path) as run:
        save_state(run, 1, some_state())
        with pytest.raises(ValueError, match=r"params/Dense_0/bias: float32\[4\] saved, float32\[5\] wanted"):
            restore_state(run, like)
        assert restore_state(run, some_state()) is not None


# Folders


def test_missing_weights_are_told(tmp_path):
    for read in (lambda path: load_weights(path, some_weights()), read_description):
        with pytest.raises(FileNotFoundError, match=f"got {tmp_path / 'absent'}: there is no such folder"):
            read(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=f"got {tmp_path}: it is not a checkpoint"):
            read(tmp_path)


@contextmanager
def without_permission(mode: int):
    """A folder of that mode, seen by a user who may do no more than the mode says; root would not notice it."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "folder")
        folder.mkdir()
        Path(parent).chmod(0o755)
        folder.chmod(mode)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("place", ["", "new/deeper"], ids=["the folder", "a folder in it"])
def test_a_folder_that_must_not_be_written_is_named(place):
    with without_permission(0o555) as folder:
        with pytest.raises(PermissionError, match=f"The folder {folder / place} must be writable"):
            save_weights(folder / place / "w", some_weights())
        with (
            pytest.raises(PermissionError, match=f"The folder {folder / place} must be writable"),
            open_run(folder / place),
        ):
            pass


def test_weights_that_must_not_be_read_are_not_called_damaged():
    with without_permission(0o000) as folder, pytest.raises(PermissionError, match=str(folder)):
        load_weights(folder / "w", some_weights())
