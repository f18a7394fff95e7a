"""Data sets in files of one's own: IDX folders and NumPy archives, whole and broken."""

import gzip
from pathlib import Path

import numpy as np
import pytest

import kdjax.data as data
from kdjax.data.files import read_idx

IMAGES = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2, 1)
LABELS = np.array([0, 1, 1, 0])


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_folder(folder: Path, *, dotted=False, zipped=True, test_labels=(0, 2)) -> Path:
    folder.mkdir(exist_ok=True)
    contents = {
        "train-images-idx3-ubyte": IMAGES[..., 0],
        "train-labels-idx1-ubyte": LABELS,
        "t10k-images-idx3-ubyte": IMAGES[:2, ..., 0] + 100,
        "t10k-labels-idx1-ubyte": np.array(test_labels),
    }
    for name, array in contents.items():
        name = name.replace("-idx", ".idx") if dotted else name
        content = idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files(tmp_path, dotted, zipped):
    source = f"idx:{write_folder(tmp_path, dotted=dotted, zipped=zipped)}"
    train, test = (data.load(source, split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.inputs, IMAGES)
    np.testing.assert_array_equal(test.inputs, IMAGES[:2] + 100)
    assert train.labels.tolist() == LABELS.tolist()
    assert test.labels.tolist() == [0, 2]
    # Label 2 occurs in the test split only, and counts.
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert (train.name, train.split) == (source, "train")


def test_missing_idx_files_are_all_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-images-idx3-ubyte, t10k-labels-idx1-ubyte"):
        data.load(f"idx:{folder}", "train")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        data.load("idx:nowhere", "train")
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        data.load(f"idx:{folder}", "validation")


def test_a_bad_test_split_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        data.load(f"idx:{write_folder(tmp_path, test_labels=(0, 1, 2))}", "train")


GOOD = idx(IMAGES[..., 0])
ZIPPED = gzip.compress(GOOD, mtime=0)  # the time would stand in the test's name, and differ between two workers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file .* begins with nothing"),
        (b"\x89PNG" + GOOD[4:], "no IDX file of unsigned bytes with 3 axes: it must begin with 00 00 08 03, .* 89 50"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00 00 0d 03"),
        (idx(LABELS), "begins with 00 00 08 01"),
        (GOOD[:10], "is truncated: its header needs 16 bytes, and the file holds 10"),
        (GOOD[:-1], r"is truncated: its header promises shape \(4, 3, 2\), 40 bytes in all, and it holds 39"),
        (GOOD + b"\0", "has trailing bytes: .* 40 bytes in all, and it holds 41"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"12345678", r"promises shape \(4294967295, 4294967295, 4294967295\)"),
        (ZIPPED[:-9], "is truncated or damaged: its gzip stream"),
        (ZIPPED[:12], "is truncated or damaged: its gzip stream"),
        (ZIPPED[:-8] + b"\0" * 8, "is truncated or damaged: its gzip stream"),
        (ZIPPED[:10] + b"\xff" * 20, "is truncated or damaged: its gzip stream"),
    ],
)
def test_bad_idx_files_are_named(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


ARRAYS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": LABELS[:2]}


def test_an_npz_archive(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **ARRAYS)
    train = data.load(f"npz:{path}", "train")
    np.testing.assert_array_equal(train.inputs, IMAGES)
    assert train.class_names == ("0", "1")
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        data.load(f"npz:{path}", "validation")

    more = {"x_validation": IMAGES[:3], "y_validation": LABELS[:3], "class_names": np.array(["cat", "dog"])}
    np.savez(path, **ARRAYS, **more)
    validation = data.load(f"npz:{path}", "validation")
    assert len(validation.labels) == 3
    assert validation.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks the arrays y_test; it holds x_train, y_train, x_test"),
        ({"x_validation": IMAGES}, "lacks the arrays y_validation"),
        (
            {"x_test": IMAGES[:2, :2]},
            r"one shape and dtype; got \(3, 2, 1\) uint8 in train and \(2, 2, 1\) uint8 in test",
        ),
        ({"x_test": IMAGES[:2] / 255}, "uint8 in train and .* float32 in test"),
        ({"y_train": LABELS / 2}, "labels must be whole numbers"),
        ({"y_test": np.array([0, -1])}, r"\(test\): labels must lie in 0..1.*the first is -1"),
        ({"class_names": np.array(["one"])}, "labels must lie in 0..0"),
        ({"class_names": np.array([1, 2])}, "class_names must be a list of strings; got shape"),
        ({"x_train": np.array([{}, {}, {}, {}])}, "cannot be read as an .npz archive of plain arrays"),
    ],
)
def test_bad_npz_archives_are_named(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **{key: array for key, array in (ARRAYS | changes).items() if array is not None})
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{path}", "train")


def test_files_that_are_no_npz_archive_are_named(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS)
    whole = path.read_bytes()
    np.save(tmp_path / "plain.npy", IMAGES)
    flipped = whole.replace(IMAGES.tobytes(), IMAGES[::-1].tobytes(), 1)
    assert flipped != whole
    for content in (whole[:-30], b"", b"text", (tmp_path / "plain.npy").read_bytes(), flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as an \.npz archive"):
            data.load(f"npz:{path}", "train")
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        data.load("npz:none.npz", "train")
