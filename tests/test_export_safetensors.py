"""safetensors: there and back bit by bit, read by others too; what is damaged or of another shape is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kdjax import Weights
from kdjax.export import from_safetensors, to_safetensors

WEIGHTS = Weights(
    {
        "first": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)},
        "second": np.arange(4, dtype=np.int8)[::2],
        "empty": jnp.zeros((0, 2)),
        "number": jnp.float32(3),
    },
    {"mean": jnp.asarray([65504.0, -0.0], jnp.float16)},
)
SAID = {"class_names": ["no", "yes"], "preprocess": "unit_range"}


@pytest.fixture
def path(tmp_path):
    to_safetensors(tmp_path / "student.safetensors", WEIGHTS, description=SAID)
    return tmp_path / "student.safetensors"


def shapes(weights=WEIGHTS):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights)


def bits(tree):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def test_the_way_back_gives_the_same_bits_and_the_description(path):
    found, description = from_safetensors(path, shapes())
    assert isinstance(found, Weights)
    assert jax.tree.structure(found) == jax.tree.structure(WEIGHTS)
    assert bits(found) == bits(WEIGHTS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert description == SAID


def test_numbers_that_jax_has_no_room_for_come_back_as_they_are(tmp_path):
    wide = Weights({"w": np.array([1 + 1e-12]), "n": np.array([2**40 + 3])}, {})
    to_safetensors(tmp_path / "wide", wide)
    for like in (wide, shapes(wide)):
        found, _ = from_safetensors(tmp_path / "wide", like)
        assert bits(found) == bits(wide)
        found.params["w"] += 1  # an array of one's own


def test_the_record_says_what_is_in_it(tmp_path):
    record = to_safetensors(tmp_path / "new" / "student.safetensors", WEIGHTS)
    assert record["bytes"] == (tmp_path / "new" / "student.safetensors").stat().st_size
    assert record["leaves"]["params/first/bias"]["dtype"] == "bfloat16"
    assert record["leaves"]["params/first/kernel"]["shape"] == [2, 3]


def test_others_read_the_file(tmp_path):
    weights = Weights({"kernel": jnp.arange(6.0).reshape(2, 3)}, {})
    to_safetensors(tmp_path / "student.safetensors", weights)
    found = load_file(tmp_path / "student.safetensors")
    assert list(found) == ["params/kernel"]
    np.testing.assert_array_equal(found["params/kernel"], weights.params["kernel"])


def test_every_flipped_bit_of_the_numbers_is_found_and_named(path):
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        for place in range(*entry["data_offsets"]):
            changed = bytearray(whole)
            changed[start + place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=f"damaged: the bytes have changed of {name}"):
                from_safetensors(path, shapes())


def test_every_changed_byte_of_the_header_is_found(path):
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged|has no record of kdjax"):
            from_safetensors(path, shapes())
    for damaged in (whole[:-1], whole[:20], b"", whole + b"1"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            from_safetensors(path, shapes())


def test_another_architecture_is_named(path):
    other = shapes()
    other.params["first"]["kernel"] = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    other.params["third"] = other.params.pop("second")
    with pytest.raises(ValueError, match=r"like must have the architecture .*kernel: .*second: saved, .*third: wanted"):
        from_safetensors(path, other)


def test_files_of_others_are_refused(tmp_path):
    save_file({"kernel": np.ones(3)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=r"theirs\.safetensors has no record of kdjax"):
        from_safetensors(tmp_path / "theirs.safetensors", shapes())
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        from_safetensors(tmp_path / "missing", shapes())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Weights({}, {}), "weights must have at least one array"),
        (Weights({"rng": jax.random.key(0)}, {}), "params/rng is a key"),
        (Weights({"a": jnp.ones(2, jnp.int4)}, {}), "dtypes that safetensors can hold"),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_written(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_safetensors(tmp_path / "student", weights)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_at_the_path_stays(path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="path must be free"):
        to_safetensors(path, WEIGHTS)
    assert path.read_bytes() == before
