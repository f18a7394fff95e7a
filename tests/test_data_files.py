"""Data sets in files of one's own: IDX folders and NumPy archives, whole and broken."""

import gzip
import io
import struct
import time
import tracemalloc
import zipfile
import zlib
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
        (gzip.compress(GOOD + b"\0", mtime=0), "has trailing bytes: .* 40 bytes in all, and it holds more"),
        (
            gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12, mtime=0),
            r"is truncated: .*promises shape \(4294967295, .* and it holds \d+ at most",
        ),
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


def test_no_more_is_unpacked_than_a_header_promises(tmp_path):
    """Bombs: 512 MB of zeros behind a header of 40 bytes, and archives that promise what they cannot hold."""
    squeezed = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(
        [squeezed.compress(GOOD), *(squeezed.compress(bytes(1 << 24)) for _ in range(32)), squeezed.flush()]
    )
    path = tmp_path / "images"
    path.write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"has trailing bytes: .* and it holds more"):
        read_idx(path, 3)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.save(content, IMAGES)
        with archive.open("x_train.npy", "w") as member:
            member.write(content.getvalue())
            for _ in range(64):
                member.write(bytes(1 << 20))
    with pytest.raises(
        ValueError, match=r"bomb\.npz cannot be read.*a header promises shape \(4, 3, 2, 1\) of uint8, 24"
    ):
        data.load(f"npz:{tmp_path / 'bomb.npz'}", "train")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def promising(shape, dtype="<f8", body=b""):
    """An .npy file whose header promises an array of that shape."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"shape": shape, "fortran_order": False, "descr": dtype})
    return content.getvalue() + body


@pytest.mark.parametrize("shape", [(2**43,), (2**62, 2**62), (-1,), (3,)])
def test_what_a_header_promises_is_checked_before_any_room_is_made(tmp_path, shape):
    for name, compression in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", compression) as archive:
            archive.writestr("x_train.npy", promising(shape, body=bytes(16)))
        with pytest.raises(ValueError, match=rf"{name}\.npz cannot be read.*header (promises|gives the) shape"):
            data.load(f"npz:{tmp_path / name}.npz", "train")
    (tmp_path / "x_train.npy").write_bytes(promising(shape, body=bytes(16)))
    with pytest.raises(ValueError, match=r"cannot be read.*header (promises|gives the) shape"):
        data.load(f"npy:{tmp_path}", "train")
    with pytest.raises(ValueError, match="cannot be read"):
        data.open_examples(f"npy:{tmp_path}", "train")


def test_a_directory_of_a_zip_that_lies_is_named(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS)
    whole = path.read_bytes()
    place = whole.index(b"PK\x01\x02")  # the directory's first entry; its sizes are at 20 and 24
    for sizes in ((0x7FFFFFFF, 0x7FFFFFFF), (100, 0x7FFFFFFF)):
        path.write_bytes(whole[: place + 20] + struct.pack("<II", *sizes) + whole[place + 28 :])
        with pytest.raises(ValueError, match=r"x_train\.npy promises 2147483647 bytes, more than the archive can hold"):
            data.load(f"npz:{path}", "train")
    path.write_bytes(whole.replace(b"(4, 3, 2, 1)", b"((((((((((((", 1))
    with pytest.raises(ValueError, match="cannot be read as an"):
        data.load(f"npz:{path}", "train")


def test_a_label_that_is_very_large_is_told_at_once(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **ARRAYS | {"y_test": np.array([0, 2**31 - 1])})
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"labels must be numbered without gaps.* the greatest is 2147483647 .* has 2"):
        data.load(f"npz:{path}", "train")
    np.savez(path, **ARRAYS | {"y_test": np.array([0, 2**64 - 1], np.uint64), "y_train": np.array([1, 1, 0, -1])})
    with pytest.raises(ValueError, match="the greatest is 18446744073709551615 and no example has 2"):
        data.load(f"npz:{path}", "train")
    assert time.perf_counter() - started < 2


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside, folder = tmp_path / "outside.npy", tmp_path / "npy"
    folder.mkdir()
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "y_test.npy").rename(outside)
    (folder / "y_test.npy").symlink_to(outside)
    for read in (data.load, data.open_examples):
        with pytest.raises(
            ValueError, match=r"y_test\.npy is a symbolic link that leads out of .*npy, and is not followed"
        ):
            read(f"npy:{folder}", "train")
    outside.rename(folder / "kept")
    (folder / "y_test.npy").unlink()
    (folder / "y_test.npy").symlink_to("kept")  # inside it is as good as the file
    (tmp_path / "link").symlink_to(folder)  # and the folder itself may be one
    assert len(data.load(f"npy:{tmp_path / 'link'}", "test").labels) == 2
    images = write_folder(tmp_path / "idx")
    one = next(images.iterdir())
    one.rename(tmp_path / one.name)
    one.symlink_to(tmp_path / one.name)
    with pytest.raises(ValueError, match=f"{one.name} is a symbolic link that leads out"):
        data.load(f"idx:{images}", "train")
