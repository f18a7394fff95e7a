"""What a stranger's checkpoint can ask of Orbax: to read elsewhere, to wait for ever, to make room for what is not there."""

import json
import os
import re
import shutil
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from saved import some_state

from kdjax import Weights
from kdjax._checkpoint_contents import _record_digest
from kdjax.checkpoints import (
    DamagedError,
    load_weights,
    open_run,
    restore_state,
    save_state,
    save_weights,
)

WEIGHTS = Weights({"kernel": jnp.arange(6.0).reshape(2, 3)}, {})


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint, to be made a bad one."""
    save_weights(tmp_path / "w", WEIGHTS, description={"model": "tiny"})
    return tmp_path / "w"


def change(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def renamed(folder, name, **others):
    """The one array under another name in Orbax's list, where it finds what to read."""

    def to(document):
        (entry,) = document["tree_metadata"].values()
        entry["key_metadata"][0]["key"] = name
        document["tree_metadata"] = {f"('{name}',)": entry}
        document.update(others)

    change(folder / "arrays" / "_METADATA", to)


def plain_arrays(folder, **metadata):
    """Without the database, each array is a folder of its own: what is there is what a stranger wrote."""
    (folder / "arrays" / "manifest.ocdbt").unlink()
    store(folder.parent / "outside", **metadata)


def store(place, shape=(2, 3), chunks=(2, 3), value=7.0):
    form = {"shape": shape, "chunks": chunks, "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}}
    opened = tensorstore.open({"driver": "zarr", "kvstore": f"file://{place}/", "metadata": form}, create=True).result()
    opened[: min(shape[0], 2)].write(np.float32(value)).result()


def elsewhere(folder):
    """An absolute name: Orbax alone reads it, wherever it lies."""
    plain_arrays(folder)
    renamed(folder, str(folder.parent / "outside"), use_ocdbt=False)


def above(folder):
    plain_arrays(folder)
    renamed(folder, "../../outside", use_ocdbt=False)


def far_away(folder):
    plain_arrays(folder)
    renamed(folder, "s3://bucket/weights", use_ocdbt=False)


def of_another_kind(folder):
    change(folder / "arrays" / "_METADATA", lambda document: next(
        iter(document["tree_metadata"].values())
    )["value_metadata"].update(value_type="jax.Array"))  # fmt: skip


def without_its_list(folder):
    """Orbax would look for an older kind of list, in msgpack."""
    (folder / "arrays" / "_METADATA").rename(folder / "arrays" / "checkpoint")


def with_a_record_of_another(folder):
    def to(document):
        document["leaves"] = {"params/kernel": "all"}
        document["blake2b"] = _record_digest(document)

    change(folder / "record" / "metadata", to)


@pytest.mark.parametrize(
    "attack", [elsewhere, above, far_away, of_another_kind, without_its_list, with_a_record_of_another]
)
def test_a_list_of_arrays_that_leads_elsewhere_is_refused(attack, folder):
    attack(folder)
    with pytest.raises(DamagedError, match=r"w is damaged: its (list of arrays|record)"):
        load_weights(folder, WEIGHTS)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_database_whose_files_lie_above_it_is_not_read(folder):
    """Its manifest names them; tensorstore takes no name that goes up."""
    manifest = folder / "arrays" / "manifest.ocdbt"
    whole = manifest.read_bytes()
    assert struct.unpack("<I", whole[-4:])[0] == crc32c(whole[:-4])
    name = re.search(rb"d/[0-9a-f]{32}", whole)[0].decode()
    other = "../../outside/" + "x" * (len(name) - 14)
    (folder.parent / "outside").mkdir()
    shutil.move(folder / "arrays" / name, folder / "arrays" / other)
    body = whole[:-4].replace(name.encode(), other.encode())
    manifest.write_bytes(body + struct.pack("<I", crc32c(body)))
    with pytest.raises(DamagedError, match="Invalid key"):
        load_weights(folder, WEIGHTS)


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "pipe"])
def test_links_and_pipes_are_refused_before_anything_is_read(kind, folder):
    place = folder / "arrays" / "more"
    if kind == "pipe":
        os.mkfifo(place)  # whoever opens it waits until somebody writes
    else:
        place.symlink_to(folder / "record" / "metadata" if kind == "link to a file" else folder.parent)
    with pytest.raises(ValueError, match=r"of plain files, which are in it; .*more is (a symbolic link|no plain file)"):
        load_weights(folder, WEIGHTS)


def test_a_step_that_is_a_link_is_not_followed_and_nothing_is_removed(tmp_path):
    with open_run(tmp_path / "another") as run:
        save_state(run, 1, some_state())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").symlink_to(tmp_path / "another" / "1")
    with pytest.raises(ValueError, match=r"run/1 is a symbolic link"), open_run(tmp_path / "run", keep=1) as run:
        pass
    with open_run(tmp_path / "another") as run:
        assert restore_state(run, some_state()) is not None


@pytest.mark.parametrize(
    "lie", [{"shape": (2**27, 8), "chunks": (2**27, 8)}, {"chunks": (2**27, 8)}], ids=["shape", "pieces"]
)
def test_shapes_that_are_not_the_records_are_refused_before_room_is_made(lie, folder):
    """4 GB of equal numbers take a few hundred kB of a file."""
    arrays = folder / "arrays"
    for one in (*arrays.glob("ocdbt*"), arrays / "d"):
        shutil.rmtree(one)
    (arrays / "manifest.ocdbt").unlink()
    form = {"shape": (2, 3), "chunks": (2, 3), "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}} | lie
    base = {"driver": "ocdbt", "base": f"file://{arrays}/", "path": "params/kernel/"}
    tensorstore.open({"driver": "zarr", "kvstore": base, "metadata": form}, create=True).result()
    tracemalloc.start()
    try:
        with pytest.raises(
            DamagedError, match=r"params/kernel must be float32 \[2, 3\], as its record says; float32 \["
        ):
            load_weights(folder, WEIGHTS)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_another_format_is_named_and_is_no_damage(tmp_path):
    with open_run(tmp_path) as run:
        save_state(run, 1, some_state(), {"epoch": 1})
        save_state(run, 2, some_state(), {"epoch": 2})

    def newer(document):
        assert document["kdjax_format"] == 1
        document["kdjax_format"] = 2
        document["blake2b"] = _record_digest(document)

    change(tmp_path / "2" / "record" / "metadata", newer)
    with open_run(tmp_path) as run, pytest.raises(ValueError, match=r"2 must be of format 1 or older, .*install that"):
        restore_state(run, some_state())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1", "2"]
