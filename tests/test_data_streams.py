"""Streamed batches are the batches of an in-memory run, bit for bit, and nothing of the stream outlives its block."""

import multiprocessing
import os
import signal
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import kdjax.data as data
from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, weighted_sum
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.training import data_mesh, shard_batch

pytest.importorskip("grain", reason="needs Grain")

COUNT, BATCH, SEED = 23, 5, 7  # four batches an epoch, and three examples that sit it out
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 3, 1), np.uint8)
LABELS = np.arange(COUNT) % 3


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:7], y_test=LABELS[:7])
    return path


def expected(number):
    """Batch `number`, by the functions for data in memory."""
    dataset = data.make_dataset(IMAGES, LABELS, class_names=tuple("abc"), name="mine", split="train")
    epoch, step = divmod(number, COUNT // BATCH)
    indices = data.epoch_indices(COUNT, BATCH, seed=SEED, epoch=epoch)[step]
    return data.take(data.on_device(dataset, data.unit_range), indices) | {"indices": indices}


def assert_same(batch, wanted):
    assert batch.keys() == wanted.keys()
    for name, values in wanted.items():
        assert isinstance(batch[name], jax.Array)
        assert batch[name].dtype == values.dtype
        np.testing.assert_array_equal(batch[name], values)


def no_worker_is_left():
    return not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_streamed_batches_are_those_in_memory(archive, workers):
    """Over the ends of two epochs, and kept until all are there: no batch's memory is used twice."""
    train = data.open_examples(f"npz:{archive}", "train")
    with data.open_stream(train, BATCH, seed=SEED, stop=10, preprocess=data.unit_range, workers=workers) as batches:
        found = list(batches)
    assert no_worker_is_left()
    assert len(found) == 10
    for number, batch in enumerate(found):
        assert_same(batch, expected(number))


def test_a_stream_ends_only_where_it_is_told_to(archive):
    train = data.open_examples(f"npz:{archive}", "train")
    with data.open_stream(train, BATCH, seed=SEED, start=4001, preprocess=data.unit_range) as batches:
        assert_same(next(batches), expected(4001))
        assert_same(next(batches), expected(4002))


def test_a_resumed_run_is_the_run_without_a_break(archive, tmp_path):
    """Stopped in the midst of the second epoch, with batches read ahead and thrown away."""
    train = data.open_examples(f"npz:{archive}", "train")

    def apply(params, model_state, inputs, *, train, rng=None):
        return Outputs(inputs.reshape(len(inputs), -1) @ params["w"], {}), model_state

    optimizer = optax.adam(0.1)
    step = jax.jit(make_train_step(apply, None, optimizer))
    objective = weighted_sum(labels=(1.0, cross_entropy))

    def advance(state, stop):
        settings = {"seed": SEED, "start": int(state.step), "preprocess": data.unit_range}
        with data.open_stream(train, BATCH, **settings) as batches:
            for batch in islice(batches, stop - int(state.step)):
                state, _ = step(state, None, objective, batch)
        return state

    def fresh():
        return init_state(Weights({"w": jnp.zeros((12, 3))}, {}), optimizer, jax.random.key(0))

    unbroken = fresh()
    for number in range(9):
        unbroken, _ = step(unbroken, None, objective, expected(number))
    with open_run(tmp_path / "run") as run:
        save_state(run, 6, advance(fresh(), 6))
        restored, _ = restore_state(run, fresh())
    assert int(restored.step) == 6
    np.testing.assert_array_equal(advance(restored, 9).params["w"], unbroken.params["w"])


def test_evaluation_takes_every_example_once(archive):
    test = data.open_examples(f"npz:{archive}", "test")
    with data.open_evaluation(test, 3) as batches:
        found = list(batches)
    indices, mask = data.evaluation_indices(7, 3)
    np.testing.assert_array_equal([batch["indices"] for batch in found], indices)
    np.testing.assert_array_equal([batch["mask"] for batch in found], mask)
    for batch in found:
        np.testing.assert_array_equal(batch["inputs"], IMAGES[batch["indices"]])
        np.testing.assert_array_equal(batch["labels"], LABELS[batch["indices"]])


def test_parts_of_a_batch_make_the_batch(archive):
    train = data.open_examples(f"npz:{archive}", "train")
    parts = []
    for each in range(2):
        with data.open_stream(train, 6, seed=SEED, stop=3, part=(each, 2)) as batches:
            parts.append(list(batches))
    with data.open_stream(train, 6, seed=SEED, stop=3) as batches:
        for first, second, whole in zip(*parts, batches, strict=True):
            for name in whole:
                np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), whole[name])


def test_batches_go_where_they_are_told(archive):
    train, mesh = data.open_examples(f"npz:{archive}", "train"), data_mesh()
    settings = {"place": lambda batch: shard_batch(batch, mesh), "preprocess": data.unit_range}
    with data.open_stream(train, 8, seed=SEED, **settings) as batches:
        batch = next(batches)
    assert {array.sharding.num_devices for array in batch.values()} == {4}


# --- sources


def test_folders_are_streamed_by_workers_and_a_bad_picture_is_named(tmp_path):
    for split in ("train", "test"):
        for number in range(8):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(IMAGES[number, ..., 0]).save(path)
    whole = data.load(f"folder:{tmp_path}", "train")
    train = data.open_examples(f"folder:{tmp_path}", "train")
    with data.open_stream(train, 2, seed=0, stop=8, workers=1) as batches:
        for batch in batches:
            np.testing.assert_array_equal(batch["inputs"], whole.inputs[batch["indices"]])
            np.testing.assert_array_equal(batch["labels"], whole.labels[batch["indices"]])
    (tmp_path / "train" / "b" / "5.png").write_bytes(b"no picture")
    with (
        pytest.raises(ValueError, match=r"b/5\.png cannot be read as a picture"),
        data.open_stream(train, 2, seed=0, workers=2) as batches,
    ):
        list(batches)
    assert no_worker_is_left()


def test_a_prepared_data_set_of_tfds_is_streamed_by_workers(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "numbers"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["a", "b", "c"])
            features = {"image": tfds.features.Tensor(shape=(4, 3, 1), dtype=np.uint8), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(COUNT):
                yield index, {"image": IMAGES[index], "label": int(LABELS[index])}

    Builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    train = data.open_examples("tfds:numbers", "train", data_dir=tmp_path)
    assert (len(train), train.class_names) == (COUNT, ("a", "b", "c"))
    with data.open_stream(train, BATCH, seed=SEED, stop=3, preprocess=data.unit_range, workers=1) as batches:
        for number, batch in enumerate(batches):
            assert_same(batch, expected(number))
    # TFDS's own source is good too.
    with data.open_stream(tfds.data_source("numbers", split="train", data_dir=tmp_path), BATCH, seed=SEED) as batches:
        np.testing.assert_array_equal(next(batches)["inputs"], IMAGES[expected(0)["indices"]])


def test_archives_are_read_row_by_row(tmp_path):
    floats = np.asfortranarray(np.random.default_rng(1).normal(size=(6, 5)))
    arrays = {"x_train": floats, "y_train": [0, 1, 0, 1, 0, 1], "x_test": floats[:2], "y_test": [0, 1]}
    np.savez(tmp_path / "mine.npz", **arrays, class_names=["no", "yes"])
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    for source in (f"npz:{tmp_path / 'mine.npz'}", f"npy:{tmp_path}"):
        opened, whole = data.open_examples(source, "train"), data.load(source, "train")
        np.testing.assert_array_equal([each["inputs"] for each in opened], whole.inputs)
        assert opened[0]["inputs"].dtype == np.float32
        assert opened.class_names == whole.class_names
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    with pytest.raises(ValueError, match="it is compressed, so that only `load` reads it"):
        data.open_examples(f"npz:{tmp_path / 'small.npz'}", "train")
    with (tmp_path / "x_train.npy").open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(ValueError, match="cannot be read row by row"):
        data.open_examples(f"npy:{tmp_path}", "train")
    np.save(tmp_path / "x_train.npy", floats[:, :4])
    with pytest.raises(ValueError, match=r"one shape, .* got \(4,\) float64 in train, \(5,\) float64 in test"):
        data.open_examples(f"npy:{tmp_path}", "train")
    np.save(tmp_path / "y_train.npy", np.array([0, 1, 0, 1, 0, 7]))
    np.save(tmp_path / "class_names.npy", np.array(["no", "yes"]))
    np.save(tmp_path / "x_train.npy", floats)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, for 2 classes; 1 of 6"):
        data.open_examples(f"npy:{tmp_path}", "train")


def test_any_sequence_will_do_and_odd_shapes_are_named():
    rows = [{"image": np.full((2, 2, 1), each), "label": each % 2} for each in range(6)]
    with data.open_stream(rows, 2, seed=0, stop=3) as batches:
        assert sorted(int(label) for batch in batches for label in batch["labels"]) == [0, 0, 0, 1, 1, 1]
    rows[3]["image"] = np.zeros((3, 2, 1))
    with (
        pytest.raises(ValueError, match=r"examples must have one shape and dtype; example \d is .*, and example \d is"),
        data.open_stream(rows, 2, seed=0, stop=3) as batches,
    ):
        list(batches)


# --- endings


def kill_a_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def fail():
    raise ZeroDivisionError("in the block")


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (kill_a_worker, RuntimeError, r"A worker process of the stream died: .*exit code -9"),
        (fail, ZeroDivisionError, "in the block"),
    ],
)
def test_no_worker_outlives_an_error(archive, act, error, message):
    train = data.open_examples(f"npz:{archive}", "train")

    def train_until_it_fails():
        with data.open_stream(train, BATCH, seed=SEED, workers=2) as batches:
            next(batches)
            assert len(multiprocessing.active_children()) == 2
            act()
            for _ in batches:
                pass

    with pytest.raises(error, match=message):
        train_until_it_fails()
    assert no_worker_is_left()
