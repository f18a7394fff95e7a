"""Checked arrays, the digits, and batches."""

import doctest
import importlib
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdjax.data as data
from kdjax.batches import epoch_indices, view_key
from kdjax.data.digits import split_members
from kdjax.data.preprocessing import preprocessed

IMAGES = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2, 1)
LABELS = np.array([0, 1, 1, 0])


def made(inputs=IMAGES, labels=LABELS, class_names=("no", "yes")):
    return data.make_dataset(inputs, labels, class_names=class_names, name="mine", split="train")


# --- make_dataset


def test_a_grey_image_gains_a_channel_and_dtypes_become_their_one_form():
    grey = made(IMAGES[..., 0], LABELS.astype(np.uint8))
    assert grey.inputs.shape == (4, 3, 2, 1)
    assert grey.inputs.dtype == np.uint8
    assert grey.labels.dtype == np.int32
    wide = made(IMAGES.astype(np.float64) / 3)
    assert wide.inputs.dtype == np.float32
    np.testing.assert_array_equal(wide.inputs, (IMAGES / 3).astype(np.float32))
    assert made(IMAGES.reshape(4, 6)).inputs.shape == (4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": np.zeros(4, np.uint8)}, r"mine \(train\): inputs must be images .* got shape \(4,\)"),
        ({"inputs": np.zeros((4, 2, 2, 2, 2), np.uint8)}, r"inputs must be images .* got shape \(4, 2, 2, 2, 2\)"),
        ({"inputs": np.zeros((4, 0, 2, 1), np.uint8)}, r"no empty axis; got shape \(4, 0, 2, 1\)"),
        ({"inputs": IMAGES[:0], "labels": LABELS[:0]}, r"no empty axis; got shape \(0, 3, 2, 1\)"),
        ({"inputs": IMAGES.astype(np.int64)}, "inputs must be uint8 or floating-point; got dtype int64"),
        (
            {"inputs": np.where(IMAGES == 17, np.nan, 1.0)},
            "1 of 4 examples hold NaN or infinity, the first is number 2",
        ),
        ({"inputs": np.where(IMAGES == 17, 1e300, 1.0)}, "finite in float32; 1 of 4 examples"),
        ({"labels": LABELS[:3]}, r"labels must have shape \(4,\).* got \(3,\)"),
        ({"labels": LABELS[:, None]}, r"labels must have shape \(4,\).* got \(4, 1\)"),
        ({"labels": LABELS.astype(float)}, "labels must be whole class numbers; got dtype float64"),
        (
            {"labels": np.array([0, 1, 2, 1])},
            r"lie in 0..1, for 2 classes; 1 of 4 do not, the first is 2, of example 2",
        ),
        ({"labels": np.array([0, -1, 1, -1])}, r"2 of 4 do not, the first is -1, of example 1"),
        ({"class_names": ()}, "class_names must be different names, at least one"),
        ({"class_names": ("a", "a")}, "class_names must be different names"),
        ({"class_names": "no"}, "class_names must be names, one a class; got 'no'"),
    ],
)
def test_bad_arrays_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (range(2), r"0 is int, in range\(0, 2\)"),
        (("no", 1), r"1 is int, in \('no', 1\)"),
        ((b"no", b"yes"), r"b'no' is bytes, in \(b'no', b'yes'\)"),
        (np.arange(2), r"np\.int64\(0\) is int64, in array\(\[0, 1\]\)"),
        (([], {}), r"\[\] is list, in"),
    ],
)
def test_class_names_that_are_no_strings_are_named(names, odd):
    """A report said of them that the run's files are damaged."""
    call = inspect.unwrap(data.make_dataset)  # without the tests' check of types
    message = rf"^mine \(train\): class_names must be strings, as tuple\(map\(str, class_names\)\) makes them; {odd}"
    with pytest.raises(ValueError, match=message):
        call(IMAGES, LABELS, class_names=names, name="mine", split="train")


def test_class_names_of_numpy_are_plain_strings():
    call = inspect.unwrap(data.make_dataset)
    names = call(IMAGES, LABELS, class_names=np.array(["no", "yes"]), name="mine", split="train").class_names
    assert names == ("no", "yes")
    assert {type(name) for name in names} == {str}


# --- load


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("mnits", "train", "source must be one of digits.*got 'mnits'.*Did you mean 'mnist'"),
        ("digits", "tain", "split must be one of train, validation, test; got 'tain'.*Did you mean 'train'"),
        ("digits:", "train", "source must be written digits; got 'digits:'"),
        ("digits:small", "train", "source must be written digits; got 'digits:small'"),
        ("idx", "train", "source must be written idx:DIR; got 'idx'"),
        ("npz:", "train", "source must be written npz:FILE; got 'npz:'"),
        ("mnist", "validation", "source 'mnist' has no split 'validation'; it has train, test"),
    ],
)
def test_bad_requests_are_named(source, split, message):
    with pytest.raises(ValueError, match=message):
        data.load(source, split)


def test_a_data_dir_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder; '.*nowhere' is none"):
        data.load("digits", "train", data_dir=tmp_path / "nowhere")


def test_importing_the_package_imports_neither_tfds_nor_scikit_learn():
    code = "import sys, kdjax.data; print({'tensorflow_datasets', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- digits


def test_the_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    scans = load_digits()
    members = split_members(scans.target)
    assert {split: len(indices) for split, indices in members.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    assert sorted(np.concatenate(list(members.values())).tolist()) == list(range(1797))
    shares = np.stack([np.bincount(scans.target[indices]) / len(indices) for indices in members.values()])
    np.testing.assert_allclose(shares, np.tile(np.bincount(scans.target) / 1797, (3, 1)), atol=1 / 180)
    # Written down, so that a change to the split, which would make old results incomparable, cannot pass unseen.
    assert members["test"][:8].tolist() == FIRST_IN_TEST
    assert members["validation"][:8].tolist() == FIRST_IN_VALIDATION


FIRST_IN_TEST = [2, 3, 24, 26, 27, 44, 45, 50]
FIRST_IN_VALIDATION = [9, 10, 21, 22, 40, 54, 58, 83]


def test_the_digits_lose_nothing_in_becoming_bytes():
    from sklearn.datasets import load_digits

    scans = load_digits()
    members = split_members(scans.target)
    for split, indices in members.items():
        digits = data.load("digits", split)
        np.testing.assert_array_equal(np.rint(digits.inputs[..., 0] * (16 / 255)), scans.images[indices])
        np.testing.assert_allclose(digits.inputs[..., 0] / 255, scans.images[indices] / 16, atol=0.002)
        np.testing.assert_array_equal(digits.labels, scans.target[indices])
    assert digits.class_names == tuple("0123456789")


# --- batches


@pytest.mark.parametrize(("examples", "batch_size"), [(1, 1), (7, 7), (10, 1), (10, 3), (40, 21)])
def test_an_epoch_takes_each_example_at_most_once(examples, batch_size):
    indices = data.epoch_indices(examples, batch_size, seed=2**31 - 1, epoch=3)
    assert indices.shape == (examples // batch_size, batch_size)
    assert indices.dtype == jnp.int32
    flat = np.asarray(indices).ravel()
    assert len(set(flat.tolist())) == flat.size
    assert flat.min() >= 0
    assert flat.max() < examples


def test_an_epoch_is_a_function_of_seed_and_epoch_alone():
    first = data.epoch_indices(100, 30, seed=1, epoch=2)
    expected = jax.random.permutation(jax.random.fold_in(jax.random.key(1), 2), 100)[:90].reshape(3, 30)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(first, jax.jit(lambda e: data.epoch_indices(100, 30, seed=1, epoch=e))(2))
    for other in (data.epoch_indices(100, 30, seed=1, epoch=3), data.epoch_indices(100, 30, seed=2, epoch=2)):
        assert (np.asarray(first) != np.asarray(other)).any()


def test_the_remainder_changes_from_epoch_to_epoch():
    seen = {i for epoch in range(10) for i in np.ravel(data.epoch_indices(10, 7, seed=0, epoch=epoch)).tolist()}
    left_out = [set(range(10)) - set(np.ravel(data.epoch_indices(10, 7, seed=0, epoch=e)).tolist()) for e in (0, 1)]
    assert seen == set(range(10))
    assert left_out[0] != left_out[1]
    assert [len(each) for each in left_out] == [3, 3]


def test_numbers_in_arrays_are_whole_too():
    drawn, key_of = inspect.unwrap(epoch_indices), inspect.unwrap(view_key)
    for name, draw in (
        ("epoch", lambda number: drawn(10, 3, seed=0, epoch=number)),
        ("number", lambda number: key_of(jax.random.key(0), number)),
    ):
        for wrong in (1.7, np.float32(1.7), jnp.float32(1.7), np.array(1.7), jnp.int32(-1), jnp.arange(2), True):
            with pytest.raises(ValueError, match=rf"{name} must be a whole number of 0 or more; got "):
                draw(wrong)
        with pytest.raises(ValueError, match=rf"{name} must be a whole number of 0 or more; got .*Tracer.*float32"):
            jax.jit(draw)(1.7)
    for right in (np.uint8(2), jnp.int32(2), np.array(2)):
        np.testing.assert_array_equal(*(drawn(10, 3, seed=one, epoch=one) for one in (right, 2)))
        assert key_of(jax.random.key(0), right) == key_of(jax.random.key(0), 2)


def test_batch_sizes_that_make_no_batch_are_refused():
    for name, wrong in (("seed", {"seed": 2**31, "epoch": 0}), ("epoch", {"seed": 0, "epoch": 2**32 + 5})):
        with pytest.raises(ValueError, match=rf"{name} must be less than 2\*\*31; got {wrong[name]}"):
            data.epoch_indices(5, 2, **wrong)
    with pytest.raises(ValueError, match="batch_size must lie between 1 and the 5 examples there are; got 6"):
        data.epoch_indices(5, 6, seed=0, epoch=0)
    with pytest.raises(ValueError, match="batch_size must lie between 1 and the 5 examples there are; got 0"):
        data.epoch_indices(5, 0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more; got 0"):
        data.evaluation_indices(5, 0)


@given(examples=st.integers(1, 40), batch_size=st.integers(1, 40))
def test_evaluation_takes_every_example_exactly_once(examples, batch_size):
    indices, mask = map(np.asarray, data.evaluation_indices(examples, batch_size))
    assert indices.shape == mask.shape == (-(-examples // batch_size), batch_size)
    assert (indices.dtype, mask.dtype) == (np.int32, np.float32)
    assert indices[mask == 1].tolist() == list(range(examples))
    assert not indices[mask == 0].any()


def test_a_data_set_on_the_device_gives_its_batches_under_jit():
    arrays = data.on_device(made(), data.symmetric_range)
    assert arrays["inputs"].dtype == jnp.float32
    assert arrays["labels"].dtype == jnp.int32
    batch = jax.jit(data.take)(arrays, jnp.array([3, 1]))
    np.testing.assert_allclose(batch["inputs"], (IMAGES[[3, 1]] / 255 - 0.5) / 0.5, rtol=1e-6)
    assert batch["labels"].tolist() == [0, 1]
    # Beyond the end: no example, traced or not.
    for outside in (4, -5):
        assert np.isnan(jax.jit(data.take)(arrays, jnp.array([outside]))["inputs"]).all()
    assert jax.jit(data.take)(arrays, jnp.array([-1]))["labels"].tolist() == [0]
    for wrong in (4, -1):
        for indices in (np.array([0, wrong]), jnp.array([[wrong]])):
            with pytest.raises(ValueError, match=f"indices must lie between 0 and 3, of 4 examples; got {wrong}"):
                data.take(arrays, indices)
    nested = data.take({"teacher": {"logits": jnp.arange(4.0)}}, jnp.array([3, 1]))
    assert nested["teacher"]["logits"].tolist() == [3.0, 1.0]


def test_preprocessing_is_held_to_its_dtype_and_length():
    np.testing.assert_allclose(data.unit_range(jnp.asarray(IMAGES)), IMAGES / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="must be uint8 to be divided by 255; got dtype float32"):
        data.on_device(made(IMAGES / 255), data.unit_range)
    with pytest.raises(ValueError, match=r"preprocess must give float32 inputs.*got shape .* and dtype uint8"):
        data.on_device(made(), lambda inputs: inputs)
    with pytest.raises(ValueError, match=r"one for each of 4 examples; got shape \(3, 3, 2, 1\)"):
        data.on_device(made(), lambda inputs: data.unit_range(inputs)[1:])
    with pytest.raises(ValueError, match="preprocess must change each example by itself"):
        data.on_device(made(), lambda inputs: data.unit_range(inputs) / data.unit_range(inputs).std())
    with pytest.raises(ValueError, match=r"one for each of 4 examples; got shape \(\)"):
        data.on_device(made(), lambda inputs: data.unit_range(inputs).mean())
    with pytest.raises(
        ValueError, match=r"preprocess must take any number of examples; of one alone it says: .*reshape"
    ):
        data.on_device(made(), lambda inputs: data.unit_range(inputs.reshape(4, 6)))
    alone = data.on_device(made(), lambda x: data.unit_range(x) - data.unit_range(x).mean((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(alone["inputs"].mean((1, 2, 3)), 0, atol=1e-6)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_number_that_is_none_neither_refuses_a_preprocess_nor_lets_one_pass(odd):
    """Inputs of what does not count may be anything; beside infinity everything was near."""
    inputs = np.float32([[odd, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(preprocessed(lambda x: 2 * x, inputs), 2 * inputs)
    with pytest.raises(ValueError, match="preprocess must change each example by itself"):
        preprocessed(lambda x: x - x[:, 1:].mean(), inputs)


@pytest.mark.parametrize("module", ["dataset", "preprocessing", "sources"])
def test_the_examples_in_the_docstrings(module):
    outcome = doctest.testmod(importlib.import_module(f"kdjax.data.{module}"))
    assert outcome.attempted
    assert not outcome.failed


def test_a_label_far_from_the_others_makes_no_classes(tmp_path):
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "gap.npz", x_train=images, y_train=[0, 1, 255, 1], x_test=images, y_test=[0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"numbered without gaps.*the greatest is 255 and no example has 2"):
        data.load(f"npz:{tmp_path / 'gap.npz'}", "train")
