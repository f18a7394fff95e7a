"""MNIST and Fashion-MNIST: from the published files through array_record to arrays."""

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import kdjax.data as data
from kdjax.data import originals as module
from kdjax.data.originals import FILES, Originals, read_originals

pytest.importorskip("tensorflow_datasets")

NUMBERS = np.random.default_rng(0)
IMAGES = {
    "train": NUMBERS.integers(0, 256, (12, 28, 28), np.uint8),
    "test": NUMBERS.integers(0, 256, (5, 28, 28), np.uint8),
}
LABELS = {"train": np.arange(12, dtype=np.uint8) % 3, "test": np.arange(5, dtype=np.uint8) % 3}
NOBODY = "http://127.0.0.1:9/"


@pytest.fixture
def raw(tmp_path) -> Path:
    """Four small files in the published format."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, (images, labels) in FILES.items():
        for name, array in ((images, IMAGES[split]), (labels, LABELS[split])):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / name).write_bytes(gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes(), mtime=0))
    return folder


def published(folder: Path, address: str = NOBODY) -> Originals:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return Originals(address, digests, ("one", "two", "three"))


def read(files: Originals, split="train", *, data_dir=None, prepared_dir=None):
    return read_originals("mnist", split, data_dir=data_dir, prepared_dir=prepared_dir, originals=files)


def assert_is(dataset, split):
    np.testing.assert_array_equal(dataset.inputs, IMAGES[split][..., None])
    assert dataset.inputs.dtype == np.uint8
    assert dataset.labels.tolist() == LABELS[split].tolist()
    assert dataset.class_names == ("one", "two", "three")
    assert (dataset.name, dataset.split) == ("mnist", split)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- the published files


def test_files_become_a_prepared_copy_once_and_are_read_in_their_order(raw, tmp_path, capfd):
    home = tmp_path / "home"
    before = contents(raw)
    for split in ("train", "test"):
        assert_is(read(published(raw), split, data_dir=raw, prepared_dir=home), split)
    assert contents(raw) == before
    assert os.listdir(home) == ["kdjax_mnist"]
    assert capfd.readouterr() == ("", "")
    # The copy needs the files no more, wherever it lies, and TFDS itself can read it.
    files = published(raw)
    shutil.rmtree(raw)
    assert_is(read(files, "test", prepared_dir=home), "test")
    assert_is(read(files, "test", data_dir=home, prepared_dir=tmp_path / "unused"), "test")
    assert not (tmp_path / "unused").exists()
    assert len(data.load("tfds:kdjax_mnist:1.*.*", "train", data_dir=home).labels) == 12


@pytest.mark.parametrize("place", ["mnist/{}", "mnist.{}"])
def test_files_are_found_in_a_folder_or_under_a_prefix_of_the_name(raw, tmp_path, place):
    files, shelf = published(raw), tmp_path / "shelf"
    (shelf / "mnist").mkdir(parents=True)
    for path in list(raw.iterdir()):
        path.rename(shelf / place.format(path.name))
        # Files of another data set under the plain name do not get in the way.
        (shelf / path.name).write_bytes(b"other")
    assert_is(read(files, data_dir=shelf, prepared_dir=tmp_path / "home"), "train")


def test_the_default_home_is_that_of_tfds(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    assert_is(read(published(raw), data_dir=raw), "train")
    assert os.listdir(tmp_path / "home") == ["kdjax_mnist"]
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert module.default_prepared_dir() == tmp_path / "user" / "tensorflow_datasets"


def test_another_digest_is_refused_before_anything_is_prepared(raw, tmp_path):
    files = published(raw)
    shutil.copy(raw / "t10k-labels-idx1-ubyte.gz", raw / "train-labels-idx1-ubyte.gz")
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte\.gz is not the file that was published: its sha256 is"
    ):
        read(files, data_dir=raw, prepared_dir=tmp_path / "home")
    assert contents(tmp_path / "home") == []


def test_the_real_digests_are_eight_different_ones(raw, tmp_path):
    digests = [digest for each in module.ORIGINALS.values() for digest in each.sha256.values()]
    assert len(set(digests)) == 8
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    with pytest.raises(ValueError, match=r"source 'fashion_mnist': .* is not the file that was published"):
        data.load("fashion_mnist", "train", data_dir=raw, prepared_dir=tmp_path / "home")


# --- fetched


def test_missing_files_are_fetched_and_not_kept(raw, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=raw)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            files = published(raw, f"http://127.0.0.1:{server.server_port}/")
            assert_is(read(files, prepared_dir=tmp_path / "home"), "train")
            assert os.listdir(tmp_path / "home") == ["kdjax_mnist"]
            # What is fetched is checked like what is found.
            (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"a page that says something else")
            with pytest.raises(ValueError, match="is not the file that was published"):
                read(files, prepared_dir=tmp_path / "other")
            (raw / "train-labels-idx1-ubyte.gz").unlink()
            with pytest.raises(FileNotFoundError, match="needs the original files"):
                read(files, prepared_dir=tmp_path / "other")
            assert contents(tmp_path / "other") == []
        finally:
            server.shutdown()
            thread.join()


def test_files_that_nobody_offers_are_named_with_the_places_looked_in(raw, tmp_path):
    files = published(raw)
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read(files, data_dir=raw, prepared_dir=tmp_path / "home")
    said = str(caught.value)
    assert "'mnist' needs the original files train-labels-idx1-ubyte.gz:" in said
    assert f"not found in {raw} or {raw / 'mnist'}" in said
    assert NOBODY in said
    assert "--data-dir" in said
    assert contents(tmp_path / "home") == []
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz.*looked for nowhere"):
        read(files, prepared_dir=tmp_path / "home")


# --- accidents


def test_a_failure_while_preparing_leaves_nothing(raw, tmp_path):
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is truncated"):
        read(published(raw), data_dir=raw, prepared_dir=tmp_path / "home")
    assert contents(tmp_path / "home") == []


def test_two_that_prepare_at_once_both_succeed(raw, tmp_path, monkeypatch):
    files, home = published(raw), tmp_path / "home"
    read_idx, inner = module.read_idx, []

    def overtaken(path, axes):
        # Another process starts when this one has begun to write, and is done before it ends.
        monkeypatch.setattr(module, "read_idx", read_idx)
        inner.append(read(files, "test", data_dir=raw, prepared_dir=home))
        return read_idx(path, axes)

    monkeypatch.setattr(module, "read_idx", overtaken)
    assert_is(read(files, "train", data_dir=raw, prepared_dir=home), "train")
    assert_is(inner[0], "test")
    assert os.listdir(home / "kdjax_mnist") == ["1.0.0"]


@pytest.mark.parametrize(
    "accident", ["flipped bit", "truncated", "no description", "garbled description", "records gone"]
)
def test_a_damaged_copy_is_named_and_can_be_deleted(raw, tmp_path, accident):
    files, home = published(raw), tmp_path / "home"
    read(files, data_dir=raw, prepared_dir=home)
    copy = home / "kdjax_mnist" / "1.0.0"
    records = next(copy.glob("*train.array_record*"))
    whole = records.read_bytes()
    if accident == "flipped bit":
        filled = np.flatnonzero(np.frombuffer(whole, np.uint8))
        middle = int(filled[len(filled) // 2])
        records.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    elif accident == "truncated":
        records.write_bytes(whole[: len(whole) // 2])
    elif accident == "no description":
        (copy / "dataset_info.json").unlink()
    elif accident == "garbled description":
        (copy / "dataset_info.json").write_text("{")
    else:
        records.unlink()
    with pytest.raises(ValueError, match=r"the prepared copy in .*1\.0\.0 is damaged .* delete that folder"):
        read(files, data_dir=raw, prepared_dir=home)
    shutil.rmtree(copy)
    assert_is(read(files, data_dir=raw, prepared_dir=home), "train")


def test_a_home_that_cannot_be_written_to_is_named(raw, tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    # Patched rather than by the file's mode, which does not stop root.
    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(PermissionError, match=r"is prepared in .*home, and that cannot be written to .* TFDS_DATA_DIR"):
        read(published(raw), data_dir=raw, prepared_dir=tmp_path / "home")


# --- the real files


def test_real_mnist_is_what_its_files_say(mnist_dir, tmp_path):
    prepared = data.load("mnist", "train", data_dir=mnist_dir, prepared_dir=tmp_path)
    plain = data.load(f"idx:{mnist_dir}", "train")
    np.testing.assert_array_equal(prepared.inputs, plain.inputs)
    np.testing.assert_array_equal(prepared.labels, plain.labels)
    assert prepared.inputs.shape == (60_000, 28, 28, 1)
    assert prepared.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.load("mnist", "test", prepared_dir=tmp_path).inputs.shape == (10_000, 28, 28, 1)


@pytest.mark.slow
def test_real_fashion_mnist_is_what_its_files_say(fashion_mnist_dir, tmp_path):
    prepared = data.load("fashion_mnist", "test", data_dir=fashion_mnist_dir.parent, prepared_dir=tmp_path)
    np.testing.assert_array_equal(prepared.inputs, data.load(f"idx:{fashion_mnist_dir}", "test").inputs)
    assert [prepared.class_names[label] for label in prepared.labels[:3]] == ["Ankle boot", "Pullover", "Trouser"]


def test_real_fashion_mnist_files_have_their_digests(fashion_mnist_dir):
    for name, digest in module.ORIGINALS["fashion_mnist"].sha256.items():
        assert hashlib.sha256((fashion_mnist_dir / name).read_bytes()).hexdigest() == digest
