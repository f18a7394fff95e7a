import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax._types import TrainState, Weights
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

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.add_decayed_weights(1e-2), {"Dense_0": {"kernel": True, "bias": False}}),
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
)


def some_weights() -> Weights:
    noise = np.random.default_rng(0)
    params = {
        "Dense_0": {"kernel": jnp.asarray(noise.normal(size=(40, 50)), jnp.float32), "bias": jnp.zeros(50)},
        "half": jnp.asarray(noise.normal(size=7), jnp.bfloat16),
        "list": [jnp.int8(-3), jnp.asarray([True, False])],
        "odd": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
    }
    model_state = {"dropout": jax.random.key(3), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    return Weights(params, model_state | {"nothing": jnp.zeros((0, 4), jnp.bfloat16), "none": None})


def some_state() -> TrainState:
    params = {"Dense_0": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "bias": jnp.ones(4)}}
    return TrainState(jnp.int32(0), params, {"mean": jnp.zeros(4)}, OPTIMIZER.init(params), jax.random.key(0))


def update(state: TrainState) -> TrainState:
    """One step that draws from the state's key and moves every array of it."""

    def loss(params):
        inputs = jax.random.normal(jax.random.fold_in(state.rng, state.step), (8, 3))
        return jnp.mean((inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]) ** 2)

    value, gradients = jax.value_and_grad(loss)(state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, {"mean": state.model_state["mean"] + value}, opt_state, state.rng)


def bits(tree):
    """Leaves as bytes, so that NaN equals NaN and −0 differs from 0."""

    def of(leaf):
        numbers = np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        return str(leaf.dtype), leaf.shape, numbers.tobytes()

    return jax.tree.map(of, tree)


def spoil(checkpoint: Path) -> None:
    """Makes the largest file one byte shorter, as a disk that was full would."""
    largest = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


@pytest.fixture
def damaged_folder(tmp_path):
    """A folder for damaged checkpoints, whose late errors are gathered before the next test could be blamed for them."""
    yield tmp_path
    time.sleep(0.2)
    gc.collect()


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


# Weights


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "shapes"])
def test_weights_return_bit_by_bit(tmp_path, abstract):
    weights = some_weights()
    save_weights(tmp_path / "a" / "teacher", weights, description={"model": "cnn", "accuracy": np.float32(0.5)})
    restored = load_weights(tmp_path / "a" / "teacher", jax.eval_shape(lambda: weights) if abstract else weights)
    assert bits(restored) == bits(weights)
    assert jax.tree.structure(restored) == jax.tree.structure(weights)
    assert all(isinstance(leaf, jax.Array) and not leaf.committed for leaf in jax.tree.leaves(restored))
    assert jax.random.bits(restored.model_state["keys"][2]) == jax.random.bits(weights.model_state["keys"][2])
    assert read_description(tmp_path / "a" / "teacher") == {"model": "cnn", "accuracy": 0.5}


def test_numpy_arrays_stay_numpy(tmp_path):
    weights = Weights({"kernel": np.arange(3.0) / 3}, {})  # float64, which JAX would cut
    save_weights(tmp_path / "w", weights)
    kernel = load_weights(str(tmp_path / "w"), weights).params["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert bits(kernel) == bits(weights.params["kernel"])


def test_saved_weights_are_not_overwritten(tmp_path):
    save_weights(tmp_path / "w", some_weights(), description={"first": True})
    with pytest.raises(FileExistsError, match=f"{tmp_path / 'w'} exists already"):
        save_weights(tmp_path / "w", some_weights(), description={"first": False})
    assert read_description(tmp_path / "w") == {"first": True}


def test_nothing_stays_of_a_save_that_fails(tmp_path):
    with pytest.raises(ValueError, match=r"record\['model'\] must be something that JSON can hold"):
        save_weights(tmp_path / "w", some_weights(), description={"model": object()})
    with pytest.raises(ValueError, match="at least one array"):
        save_weights(tmp_path / "w", Weights({}, {}))
    assert not list(tmp_path.iterdir())


def test_a_save_that_was_killed_is_no_obstacle(tmp_path):
    left = tmp_path / "w.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_text("written")
    save_weights(tmp_path / "w", some_weights())
    assert not (tmp_path / "w" / "half").exists()
    assert bits(load_weights(tmp_path / "w", some_weights())) == bits(some_weights())


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


def test_missing_weights_are_told(tmp_path):
    for read in (lambda path: load_weights(path, some_weights()), read_description):
        with pytest.raises(FileNotFoundError, match=f"got {tmp_path / 'absent'}: there is no such folder"):
            read(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=f"got {tmp_path}: it is not a checkpoint"):
            read(tmp_path)


# States


def test_a_state_returns_bit_by_bit_and_training_goes_on_as_if_unbroken(tmp_path):
    step = jax.jit(update, donate_argnums=0)
    state = some_state()
    with open_run(tmp_path) as run:
        for number in range(1, 7):
            state = step(state)
            # The next step is given this state's buffers while the files are still being written.
            save_state(run, number, state, {"epoch": number, "loss": float("nan")})
    with open_run(tmp_path) as run:
        restored, record = restore_state(run, some_state())
    assert record == {"epoch": 6, "loss": None}
    assert bits(restored) == bits(state)
    chex.assert_trees_all_equal_structs(restored, state)
    again = some_state()
    for _ in range(6):
        again = step(again)
    assert bits(restored) == bits(again)
    assert bits(step(restored)) == bits(step(again))


def test_what_changes_after_save_state_is_not_what_is_saved(tmp_path):
    counts = np.arange(1_000_000.0)
    state = some_state()._replace(model_state={"counts": counts})
    with open_run(tmp_path) as run:
        save_state(run, 1, state)
        counts[:] = -1.0
        restored, _ = restore_state(run, state)
    np.testing.assert_array_equal(restored.model_state["counts"], np.arange(1_000_000.0))


def test_only_the_last_steps_stay(tmp_path):
    with open_run(tmp_path, keep=3) as run:
        for number in range(5):
            save_state(run, number, some_state())
    assert sorted(child.name for child in tmp_path.iterdir() if child.name.isdigit()) == ["2", "3", "4"]
    with pytest.raises(ValueError, match="keep must be at least 1; got 0"), open_run(tmp_path, keep=0):
        pass


def test_arrays_return_to_the_devices_of_their_counterparts(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P())
    state = jax.device_put(some_state(), whole)
    kernel = jax.device_put(state.params["Dense_0"]["kernel"], split)
    state = state._replace(params={"Dense_0": state.params["Dense_0"] | {"kernel": kernel}})
    with open_run(tmp_path) as run:
        save_state(run, 1, state)
        restored, _ = restore_state(run, state)
        free, _ = restore_state(run, some_state())
    assert bits(restored) == bits(state) == bits(free)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)
    assert restored.params["Dense_0"]["kernel"].sharding.spec == P(None, "data")
    assert restored.rng.sharding.device_set == set(jax.devices())
    # What nobody placed is not tied to a device now: it may meet an array that lies on four.
    assert not any(leaf.committed for leaf in jax.tree.leaves(free))
    assert (free.params["Dense_0"]["kernel"] + kernel).sharding.device_set == set(jax.devices())


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


def test_another_architecture_is_no_damage(tmp_path):
    params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
    like = some_state()._replace(params=params, opt_state=OPTIMIZER.init(params))
    with open_run(tmp_path) as run:
        save_state(run, 1, some_state())
        with pytest.raises(ValueError, match=r"params/Dense_0/bias: float32\[4\] saved, float32\[5\] wanted"):
            restore_state(run, like)
        assert restore_state(run, some_state()) is not None


def test_an_empty_run_restores_nothing_and_an_empty_folder_is_no_step(tmp_path):
    (tmp_path / "run" / "999").mkdir(parents=True)
    with open_run(tmp_path / "run") as run:
        assert restore_state(run, some_state()) is None
        save_state(run, 1, some_state())
        assert restore_state(run, some_state())[0].step == 0
        with pytest.raises(ValueError, match=r"greater than the last one saved in .*run, 1; got 1"):
            save_state(run, 1, some_state())


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
