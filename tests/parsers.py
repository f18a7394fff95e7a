"""The parsers that tests/fuzz.py feeds: whole files to begin with, and how a user has each of them read."""

import contextlib
import gzip
import io
import json
import struct
import sys
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from fuzz import Parser, json_seeds, ungzipped, unzipped
from parsers_words import MORE_WORDS, WORDS, read_script_words, run_command
from PIL import Image

from kdjax import Weights
from kdjax.caching._folder import _checked_record
from kdjax.checkpoints import load_weights, save_weights
from kdjax.command._settings import settings_of
from kdjax.data import load, open_examples
from kdjax.data.files import read_idx
from kdjax.export import from_safetensors, to_safetensors
from kdjax.networks import _torch_files
from kdjax.runs import open_results
from kdjax.runs.folders import _same, read_object
from kdjax.runs.report import _kept, _write

GOLDEN = Path(__file__).parent / "golden" / "torch"
WEIGHTS = Weights({"kernel": jnp.arange(6.0).reshape(2, 3)}, {})
LIKE = jax.eval_shape(lambda: WEIGHTS)


def idx(sizes, content):
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes) + content


def idx_seeds():
    plain = [idx((2, 4, 4), bytes(range(32))), idx((3,), b"\0\1\2")]
    return [*plain, gzip.compress(plain[0]), gzip.compress(idx((100, 10, 10), bytes(10_000)))]


def read_one_idx(folder, content):
    (folder / "file").write_bytes(content)
    return read_idx(folder / "file", 3)


def arrays_of_archive():
    pictures, labels = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3), np.array([0, 1, 0, 1])
    named = {f"{kind}_{part}": array for part in ("train", "test") for kind, array in (("x", pictures), ("y", labels))}
    return named | {"class_names": np.array(["a", "b"])}


def npz_seeds():
    made = []
    for save in (np.savez, np.savez_compressed):
        save(file := io.BytesIO(), **arrays_of_archive())
        made.append(file.getvalue())
    return made


def read_npz(folder, content):
    (folder / "data.npz").write_bytes(content)
    return load(f"npz:{folder / 'data.npz'}", "train")


def map_npz(folder, content):
    (folder / "data.npz").write_bytes(content)
    return open_examples(f"npz:{folder / 'data.npz'}", "train")[0]


def npy_seeds():
    made = []
    for array in (arrays_of_archive()["x_train"], np.arange(4), np.arange(4.0).reshape(2, 2)):
        np.save(file := io.BytesIO(), array)
        made.append(file.getvalue())
    return made


def read_npy(folder, content):
    for name, array in arrays_of_archive().items():
        np.save(folder / f"{name}.npy", array)
    (folder / "x_train.npy").write_bytes(content)
    with contextlib.suppress(ValueError):
        open_examples(f"npy:{folder}", "train")[0]
    return load(f"npy:{folder}", "train")


def picture_seeds():
    made = []
    for ending in ("PNG", "JPEG", "WEBP", "BMP"):
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file := io.BytesIO(), ending)
        made.append(file.getvalue())
    return made


def read_picture(folder, content):
    for part in ("train", "test"):
        (folder / part / "a").mkdir(parents=True, exist_ok=True)
        (folder / part / "a" / "0.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(f"folder:{folder}", "train")


def torch_seeds():
    return [(GOLDEN / "kinds.pt").read_bytes(), (GOLDEN / "cnn.pt").read_bytes()]


def read_torch(folder, content, ending=".pt"):
    (folder / f"weights{ending}").write_bytes(content)
    return _torch_files.read(folder / f"weights{ending}")


def safetensors_seeds():
    return [(GOLDEN / "kinds.safetensors").read_bytes()]


def own_safetensors_seeds():
    file = Path(_scratch()) / "weights.safetensors"
    to_safetensors(file, WEIGHTS, description={"class_names": ["a", "b"]})
    return [file.read_bytes()]


def read_own_safetensors(folder, content):
    (folder / "file").write_bytes(content)
    return from_safetensors(folder / "file", LIKE)


def _scratch():
    import tempfile

    return tempfile.mkdtemp()


CACHE = {"teacher": "0a", "inputs": "0b", "program": "0c", "jax": "0.10.2", "digests": {"logits": "0d"}}
CACHE |= {"arrays": {"logits": {"shape": [2, 3], "dtype": "float32"}}}


def read_cache_record(folder, content):
    (folder / "record.json").write_bytes(content)
    (folder / "logits.bin").write_bytes(bytes(24))
    return _checked_record(folder, {name: entry for name, entry in CACHE.items() if name != "digests"})


MEASURED = {"accuracy": 0.5, "cross_entropy": 1.25, "seconds": 0.5}
PHASES = ("teacher", "alone", "distilled")
RESULTS = {
    "kdjax_format": 1,
    "experiment": "comparison",
    "command": "python x.py",
    "versions": {"jax": "0.10.2"},
    "hardware": {"platform": "cpu", "device": "cpu", "devices": 1, "cores": 2},
    "commit": None,
    "config": {"data_digests": {"train": "0a", "test": "0b"}, "alone_recipe": {"objective": {"labels": "1.0 × f"}}},
    "parameters": dict.fromkeys(PHASES, 70),
    "measure": {"name": "accuracy", "percent": True, "lower_is_better": False},
    "seeds": [{"seed": 0} | dict.fromkeys(PHASES, MEASURED)],
}
CONFIG = {
    "kdjax_format": 1,
    "made_by": "kdjax compare",
    "teacher": ["cnn_tiny"],
    "student": "cnn_tiny",
    "data": "digits",
}
CONFIG |= {
    "data_dir": None,
    "given_teacher": [],
    "seeds": 2,
    "epochs": 3,
    "jax": "0.10.2",
    "programs": {"teacher": "0a"},
}
CONFIG |= {"chosen": {"cache": "memory"}, "learning_rate": 0.001, "temperature": "4"}
LINE = {
    "epoch": 1,
    "train": {"loss": 1.5, "labels": 1.5, "labels_weight": 1.0},
    "test": {"accuracy": 0.5},
    "seconds": 1.0,
}


def read_results(folder, content):
    """What a resumption reads, and what the report says of it."""
    (folder / "results.json").write_bytes(content)
    with contextlib.suppress(ValueError):
        open_results(folder / "results.json", {})
    with mock.patch.object(_write, "figures", return_value={}), warnings.catch_warnings():  # figures take a second
        warnings.simplefilter("ignore")
        return _write.write_report(folder)


def read_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _same(folder / "config.json", CONFIG)
    (folder / "config.json").write_bytes(content)
    return settings_of(read_object(folder / "config.json"), folder / "config.json")


def read_metrics(folder, content):
    place = folder / "seed-0" / "alone"
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.jsonl").write_bytes(content)
    return _write.histories(folder)


def kept_seeds():
    np.savez_compressed(file := io.BytesIO(), about=np.array(json.dumps({"version": 1})), inputs=np.zeros((2, 3)))
    return [file.getvalue(), *npz_seeds()]


def read_kept(folder, content):
    (folder / _kept.FILE).write_bytes(content)
    return _kept.load(folder)


def checkpoint_seeds():
    """Its files, one after the other, each after its number and its length."""
    place = Path(_scratch()) / "w"
    save_weights(place, WEIGHTS, description={"model": "tiny"})
    files = _files(place)
    return [struct.pack("<B", number) + file.read_bytes() for number, file in enumerate(files)]


def _files(place):
    return sorted(file for file in place.rglob("*") if file.is_file())


def read_checkpoint(folder, content):
    """One of a good checkpoint's files is replaced."""
    save_weights(folder / "w", WEIGHTS, description={"model": "tiny"})
    files = _files(folder / "w")
    if content:
        files[content[0] % len(files)].write_bytes(content[1:])
    loaded = load_weights(folder / "w", WEIGHTS)
    assert np.array_equal(loaded.params["kernel"], WEIGHTS.params["kernel"]), "other numbers without a word"


PARSERS = {
    "idx": Parser(idx_seeds, read_one_idx, ungzipped),
    "npz": Parser(npz_seeds, read_npz, unzipped),
    "npz, mapped": Parser(npz_seeds, map_npz, unzipped),
    "npy": Parser(npy_seeds, read_npy),
    "pictures": Parser(picture_seeds, read_picture),
    "torch": Parser(torch_seeds, read_torch, unzipped),
    "safetensors": Parser(safetensors_seeds, lambda folder, content: read_torch(folder, content, ".safetensors")),
    "own safetensors": Parser(own_safetensors_seeds, read_own_safetensors),
    "cache's record": Parser(json_seeds(CACHE), read_cache_record),
    "results": Parser(json_seeds(RESULTS), read_results),
    "config": Parser(json_seeds(CONFIG), read_config),
    "metrics": Parser(lambda: [b"\n".join([json.dumps(LINE).encode()] * 3)], read_metrics),
    "report's arrays": Parser(kept_seeds, read_kept, unzipped),
    "checkpoint": Parser(checkpoint_seeds, read_checkpoint, threads=True),
    "experiments": Parser(lambda: MORE_WORDS, read_script_words),
    "kdjax": Parser(lambda: WORDS, run_command),
}
sys.setrecursionlimit(max(sys.getrecursionlimit(), 2000))
