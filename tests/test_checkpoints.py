"""Weights and states return from files bit by bit, to the devices they came from, and training goes on as if unbroken."""

from pathlib import Path
from zipfile import ZipFile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from saved import bits, some_state, some_weights, update

from kdjax import Weights
from kdjax.checkpoints import load_weights, open_run, read_description, restore_state, save_state, save_weights

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


def test_numbers_that_jax_has_no_room_for_stay_what_they_are(tmp_path):
    """As NumPy's own, where a counter of 2⁴⁰ would be cut off, whatever the tree that says the form."""
    weights = Weights({"w": np.array([1 + 1e-12]), "n": np.array([2**40 + 3])}, {})
    save_weights(tmp_path / "wide", weights)
    for like in (weights, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights)):
        assert bits(load_weights(tmp_path / "wide", like)) == bits(weights)


def test_weights_that_an_older_kdjax_saved_are_loaded(tmp_path):
    """The code of commit f77b796 saved them; its modules stood elsewhere."""
    with ZipFile(Path(__file__).parent / "golden" / "weights_f77b796.zip") as stored:
        stored.extractall(tmp_path)
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    params = {
        "Dense_0": {"kernel": kernel, "bias": np.array([0.5, -1, 2, 3e-8], np.float32)},
        "Dense_1": {"kernel": jnp.asarray(np.arange(8).reshape(4, 2) / 3, jnp.bfloat16)},
    }
    state = {"BatchNorm_0": {"mean": np.array([1.0, 2, 3, 4], np.float32), "count": np.int32(17)}}
    expected = jax.tree.map(jnp.asarray, Weights(params, state))
    assert bits(load_weights(tmp_path, jax.eval_shape(lambda: expected))) == bits(expected)
    assert read_description(tmp_path) == {"model": "two layers", "accuracy": 0.75}


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
    with pytest.raises(ValueError, match="keep must be a whole number of 1 or more; got 0"), open_run(tmp_path, keep=0):
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


def test_an_empty_run_restores_nothing_and_an_empty_folder_is_no_step(tmp_path):
    (tmp_path / "run" / "999").mkdir(parents=True)
    with open_run(tmp_path / "run") as run:
        assert restore_state(run, some_state()) is None
        save_state(run, 1, some_state())
        assert restore_state(run, some_state())[0].step == 0
        with pytest.raises(ValueError, match=r"greater than the last one saved in .*run, 1; got 1"):
            save_state(run, 1, some_state())
