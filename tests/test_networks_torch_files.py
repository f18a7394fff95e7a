"""PyTorch's files: every type and stride is read as torch wrote it, and what is damaged or malicious is refused by name."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from torch_twins import FOLDER

from kdjax.networks._torch_files import read

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
KINDS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_every_type_and_every_stride_is_read_as_torch_has_it(suffix):
    arrays = read(FOLDER / f"kinds.{suffix}")
    for name, kind in KINDS.items():
        wanted = np.arange(-2, 4).astype(kind)
        np.testing.assert_array_equal(arrays[name], wanted, strict=True)
    for name, wanted in {"view": BASE[1:3, 2:5], "transposed": BASE.T, "parameter": BASE[0], "none": BASE[:0]}.items():
        np.testing.assert_array_equal(arrays[name], wanted, strict=True)
    np.testing.assert_array_equal(arrays["scalar"], np.float32(7), strict=True)


def test_a_pt_file_keeps_the_order_and_safetensors_does_not():
    kept, sorted_by_name = list(read(FOLDER / "cnn.pt")), list(read(FOLDER / "cnn.safetensors"))
    assert kept[:3] == ["conv1.weight", "conv1.bias", "bn1.weight"]
    assert sorted(kept) == sorted(sorted_by_name)
    assert sorted_by_name[2:] == sorted(sorted_by_name[2:])


class Global:
    """Pickled as a name of another module, which need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Stored(tuple):
    pass


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(offset=0, size=(2, 3), stride=(3, 1), length=6, storage="FloatStorage", key="0", function=REBUILD):
    stored = Stored(("storage", Global("torch", storage), key, "cpu", length))
    return Call(function, stored, offset, size, stride, False, OrderedDict())


def archive(path, saved, numbers=None, order=None, more=(), compression=zipfile.ZIP_STORED):
    pickled = io.BytesIO()
    _Pickler(pickled, 2).dump(saved)
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("any/data.pkl", pickled.getvalue())
        made.writestr("any/data/0", np.arange(6, dtype="<f4").tobytes() if numbers is None else numbers)
        if order:
            made.writestr("any/byteorder", order)
        for name in more:
            made.writestr(f"any/{name}", b"")
    return path


def test_what_this_file_writes_by_hand_is_read(tmp_path):
    wanted = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(read(archive(tmp_path / "a.pt", {"w": tensor()}))["w"], wanted, strict=True)
    big = archive(tmp_path / "b.pt", {"w": tensor()}, wanted.astype(">f4").tobytes(), "big")
    np.testing.assert_array_equal(read(big)["w"], wanted, strict=True)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("numpy", "load")],
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, module, name):
    touched = tmp_path / "touched"
    path = archive(tmp_path / "bad.pt", {"w": tensor(), "x": Call(Global(module, name), f"touch {touched}")})
    with pytest.raises(ValueError, match=rf"source .*bad.pt cannot be read: its pickle asks for {module}.{name}"):
        read(path)
    assert not touched.exists()


def test_a_pickle_cannot_change_the_functions_that_it_may_name(tmp_path):
    for place, known in enumerate((REBUILD, Global("torch", "Size"), Global("collections", "OrderedDict"))):
        made = io.BytesIO()
        pickler = _Pickler(made, 2)
        pickler.write(pickle.PROTO + b"\x02")
        pickler.save(known)
        pickler.save((None, {"name": "_rebuild_parameter", "keys": 1}))
        pickler.write(pickle.BUILD + pickle.STOP)
        path = tmp_path / f"{place}.pt"
        with zipfile.ZipFile(path, "w") as archived:
            archived.writestr("any/data.pkl", made.getvalue())
        with pytest.raises(ValueError, match=r"is damaged or no file of weights"):
            read(path)
    assert read(FOLDER / "cnn.pt")["conv1.weight"].shape == (6, 3, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, r"w of shape \(2, 3\) reaches beyond its storage of 6 numbers"),
        ({"stride": (4, 1)}, "reaches beyond its storage"),
        ({"size": (10**6, 10**6), "stride": (0, 0)}, "reaches beyond its storage"),
        ({"stride": (-3, 1)}, "-3 is no size"),
        ({"offset": -1}, "-1 is no size"),
        ({"size": (2, True)}, "True is no size"),
        ({"stride": (1,)}, "shorter"),
        ({"length": 7}, "storage 0 of 7 numbers has 24 bytes"),
        ({"storage": "DoubleStorage"}, "storage 0 of 6 numbers has 24 bytes"),
        ({"storage": "ComplexFloatStorage"}, "asks for torch.ComplexFloatStorage"),
        ({"key": "../../x"}, "no item named"),
        (
            {"function": Global("torch._utils", "_rebuild_sparse_tensor")},
            "asks for torch._utils._rebuild_sparse_tensor",
        ),
    ],
)
def test_a_tensor_that_is_not_what_its_storage_holds_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(archive(tmp_path / "a.pt", {"w": tensor(**changes)}))


def test_a_small_file_does_not_become_large_arrays(tmp_path):
    """A thousand tensors may name one storage, and each would be copied."""
    many = {str(name): tensor(size=(90_000,), stride=(1,), length=100_000, offset=name) for name in range(1000)}
    with pytest.raises(ValueError, match=r"its tensors repeat their storages more than 3 times, \d+ among them"):
        read(archive(tmp_path / "a.pt", many, numbers=bytes(400_000)))
    tied = read(archive(tmp_path / "b.pt", dict.fromkeys("abcdefgh", many["0"]), numbers=bytes(400_000)))
    assert len(tied) == 8
    assert tied["a"] is tied["h"]


def test_the_mapping_of_tensors_is_found_or_asked_for(tmp_path):
    several = archive(tmp_path / "a.pt", {"model": {"w": tensor()}, "ema": {"v": tensor()}, "epoch": 3})
    with pytest.raises(
        ValueError, match=r"part must say which of its mappings of tensors is meant; it has \['model', 'ema'"
    ):
        read(several)
    assert list(read(several, "ema")) == ["v"]
    with pytest.raises(ValueError, match=r"part must name a mapping of tensors; it has .*, and part is 'emma'"):
        read(several, "emma")
    with pytest.raises(ValueError, match=r"it has \[\], and the tensors \['w'\] beside other things"):
        read(archive(tmp_path / "b.pt", {"w": tensor(), "epoch": 3}))
    with pytest.raises(ValueError, match=r"must hold a mapping of tensors, and holds a list"):
        read(archive(tmp_path / "c.pt", [tensor()]))


def test_files_of_other_kinds_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.pt does not exist"):
        read(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"source must be a file of weights"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"legacy.pt cannot be read: it is in the format of PyTorch before 1\.6"):
        read(FOLDER / "legacy.pt")
    np.savez(tmp_path / "arrays.npz", w=np.ones(2))
    with pytest.raises(ValueError, match=r"arrays.npz cannot be read: it is NumPy's; give its arrays by name"):
        read(tmp_path / "arrays.npz")
    with pytest.raises(ValueError, match=r"TorchScript"):
        read(archive(tmp_path / "script.pt", {"w": tensor()}, more=["constants.pkl"]))
    with pytest.raises(ValueError, match=r"storage 0 of 6 numbers has"):
        read(archive(tmp_path / "zip.pt", {"w": tensor()}, compression=zipfile.ZIP_DEFLATED))
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(ValueError, match=r"neither a zip archive"):
        read(tmp_path / "text.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_was_cut_or_changed_is_refused_and_never_read_wrong(tmp_path, suffix):
    whole = (FOLDER / f"cnn.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"source .*cut.{suffix}"):
            read(path)
    if suffix == "pt":  # which has checksums
        place = whole.index(b"data/0") + 200
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"Bad CRC"):
            read(path)


def entry(start=0, end=8, shape=(2,), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(), "b": entry(4, 12)}, "overlap or leave a gap at byte 4"),
        ({"a": entry(), "b": entry(0, 8)}, "overlap or leave a gap at byte 0"),
        ({"a": entry(), "b": entry(12, 16, (1,))}, "overlap or leave a gap at byte 8"),
        ({"a": entry()}, "entries end at byte 8 of 16"),
        ({"a": entry(end=16)}, r"a of shape \(2,\) and type F32 does not fit its bytes 0 to 16"),
        ({"a": entry(8, 24, (4,))}, "does not fit its bytes 8 to 24"),
        ({"a": entry(-8, 0)}, "does not fit its bytes -8 to 0"),
        ({"a": entry(shape=(-2,))}, "-2 is no size"),
        ({"a": entry(kind="F8_E5M2")}, "a is of type F8_E5M2"),
        ({"a": {"dtype": "F32"}}, "is damaged"),
        ('{"a": 1, "a": 2}', "it has a twice"),
        ("[1]", "is damaged"),
        ("{", "is damaged"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, message):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((2**60).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"its header would have"):
        read(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"has no parts"):
        read(tmp_path / "a.safetensors", "model")


def test_a_pickle_that_would_never_end_is_refused_at_once(tmp_path):
    """A key of forty nested pairs, each twice the same one: looking it up takes 2 to the power of 40 steps."""
    for name, pickled in {
        "key": b"\x80\x02)" + b"2\x86" * 40 + b"q\x00}h\x00K\x01s.",
        "keys": b"\x80\x02)" + b"2\x86" * 40 + b"q\x00}(h\x00K\x01u.",
        "set": b"\x80\x04)" + b"2\x86" * 40 + b"q\x00\x8f(h\x00\x90.",
    }.items():
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
        with pytest.raises(ValueError, match="is damaged or no file of weights"):
            read(path)


def test_a_pickle_of_a_hundred_megabytes_is_no_state_dict(tmp_path):
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(100_000_001))
    with pytest.raises(ValueError, match=r"its data\.pkl has 100000001 bytes"):
        read(path)
