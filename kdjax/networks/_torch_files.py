"""PyTorch's files of weights as NumPy arrays, without PyTorch and without running anything that stands in a file.

A ``.pt`` file is a zip archive of a pickle and raw numbers. The pickle may name the few functions that a state dict needs,
and each is replaced by one of this file, which only notes what it was given; any other name is refused.
"""

import json
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from kdjax._files import open_bounded

_COPIES, _FEW = 3, 1 << 16  # how often a file's bytes may come back as other arrays; bytes that are few
_HEADER = 100_000_000  # bytes; the format's own limit
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began files before version 1.6

_SAFE = {
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"{sign}{8 * size}": np.dtype(f"{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class _Storage(NamedTuple):
    kind: str
    key: str
    length: int


class _Tensor(NamedTuple):
    """What a pickle says of a tensor. A tuple: no opcode can change it, and none of its numbers is read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Function(NamedTuple):
    """Stands for one of PyTorch's functions; a tuple, and so nothing that a pickle could set attributes of."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "OrderedDict" and not arguments:
            return OrderedDict()
        if self.name == "_rebuild_parameter":
            return arguments[0]
        storage, offset, size, stride = arguments[:4]
        return _Tensor(storage, offset, tuple(size), tuple(stride))


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function("OrderedDict"),
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _Function("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): _Function("_rebuild_parameter"),
    **{("torch", name): kind for name, kind in _STORAGES.items()},
}


class _Refused(ValueError):
    """What this file says itself; anything else that a damaged file makes Python raise is called damage."""


# Python's own, written in Python: of the one written in C no single step can be replaced.
class _Unpickler(pickle._Unpickler):
    """Takes words and whole numbers as keys alone, for those of nested tuples take for ever to look up."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT)
    }

    def load_setitem(self: Any) -> None:
        _simple([self.stack[-2]])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)

    def load_setitems(self: Any) -> None:
        _simple(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(
                f"its pickle asks for {module}.{name}, which a state dict does not need, and nothing is run. Save the "
                "state dict alone, by torch.save(model.state_dict(), …) or as safetensors"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, length = pid
        _simple([word, kind, key, length])
        if word != "storage" or kind not in _SAFE or type(length) is not int:
            raise ValueError(f"unknown storage {key} of {kind}")
        return _Storage(kind, str(key), length)


def _simple(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) not in (str, int):
            raise ValueError(f"a {type(value).__name__} in the place of a word or a whole number")


def read(path: str | Path, part: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors`` file or of one by ``torch.save``, by name, in the file's order.

    Args:
      path: the file.
      part: which entry of a checkpoint holds them, such as ``"state_dict"``; None where only one can.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, of another format, or asks for what is not of a state dict; always with its path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"source must be a file of weights; {path} does not exist.")
    if not path.is_file():
        raise ValueError(f"source must be a file of weights; {path} is none.")
    try:
        if path.suffix in (".npz", ".npy"):
            raise _Refused("it is NumPy's; give its arrays by name, as dict(numpy.load(…)) has them")
        if path.suffix == ".safetensors":
            if part is not None:
                raise _Refused(f"a .safetensors file has no parts; part must be None, and is {part!r}")
            return _safetensors(path)
        return _saved_by_torch(path, part)
    except _Refused as refused:
        raise ValueError(f"source {path} cannot be read: {refused}.") from refused
    except Exception as broken:  # whatever the parsers of a damaged file raise
        raise ValueError(
            f"source {path} is damaged or no file of weights: {broken or type(broken).__name__}."
        ) from broken


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    whole = path.stat().st_size
    with open_bounded(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if whole < 8 or length > min(_HEADER, whole - 8):
            raise _Refused(f"its header would have {length} bytes, and the file has {whole}")
        header = json.loads(file.read(length).decode(), object_pairs_hook=_each_once)
        numbers = file.read()
    header.pop("__metadata__", None)
    arrays, spans = {}, []
    for name, entry in header.items():
        (start, end), shape, kind = entry["data_offsets"], tuple(map(_count, entry["shape"])), entry["dtype"]
        if kind not in _SAFE:
            raise _Refused(f"{name} is of type {kind}; known are {', '.join(_SAFE)}")
        if not 0 <= start <= end <= len(numbers) or end - start != math.prod(shape) * _SAFE[kind].itemsize:
            raise _Refused(f"{name} of shape {shape} and type {kind} does not fit its bytes {start} to {end}")
        arrays[name] = _numbers(numbers[start:end], kind, "little").reshape(shape)
        spans.append((start, end))
    place = 0
    for start, end in sorted(spans):
        if start != place:
            raise _Refused(f"its entries overlap or leave a gap at byte {min(place, start)}")
        place = end
    if place != len(numbers):
        raise _Refused(f"its entries end at byte {place} of {len(numbers)}")
    return arrays


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set():
        raise _Refused(f"it has {min(twice)} twice")
    return dict(pairs)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value if isinstance(value, int | float | str) else type(value).__name__} is no size")
    return value


def _numbers(raw: bytes, kind: str, order: str) -> np.ndarray:
    bits = np.frombuffer(raw, f"u{_SAFE[kind].itemsize}")
    return (bits if order == sys.byteorder else bits.byteswap()).view(_SAFE[kind])


def _saved_by_torch(path: Path, part: str | None) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        raise _Refused("it is in the format of PyTorch before 1.6; load it there and save it again by torch.save")
    if not zipfile.is_zipfile(path):
        raise _Refused("it is neither a zip archive, as torch.save writes it, nor named .safetensors")
    with open_bounded(path) as whole, zipfile.ZipFile(whole) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused(f"it must hold one data.pkl, as torch.save writes it, and holds {len(pickles)}")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in names or any(name.startswith(f"{folder}code/") for name in names):
            raise _Refused("it is a TorchScript program; save its state_dict() instead")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in names else "little"
        size = archive.getinfo(pickles[0]).file_size
        if size > _HEADER:
            raise _Refused(f"its data.pkl has {size} bytes; a state dict's has few")
        with archive.open(pickles[0]) as file:
            tensors = _state_dict(_Unpickler(file).load(), part)
        storages: dict[_Storage, np.ndarray] = {}
        made: dict[_Tensor, np.ndarray] = {}  # tied weights are one array under several names
        held = copied = 0
        for name, tensor in tensors.items():
            if tensor.storage not in storages:
                storages[tensor.storage] = _storage(archive, folder, tensor.storage, order)
                held += storages[tensor.storage].nbytes
            if tensor not in made:
                made[tensor] = _array(name, tensor, storages[tensor.storage])
                copied += made[tensor].nbytes
            tensors[name] = made[tensor]
            if copied > _COPIES * held + _FEW:
                raise _Refused(f"its tensors repeat their storages more than {_COPIES} times, {name} among them")
    return tensors


def _state_dict(saved: Any, part: str | None) -> dict[str, Any]:
    """The one mapping of tensors in what was saved: itself, or one of its entries."""
    if not isinstance(saved, dict):
        raise _Refused(f"it must hold a mapping of tensors, and holds a {type(saved).__name__}")
    found = {name: value for name, value in saved.items() if _is_state(value)}
    if part is not None:
        if part not in found:
            raise _Refused(f"part must name a mapping of tensors; it has {list(found)}, and part is {part!r}")
        return dict(found[part])
    if _is_state(saved):
        return dict(saved)
    if len(found) != 1:
        tensors = [name for name, value in saved.items() if isinstance(value, _Tensor)]
        also = f", and the tensors {tensors[:5]} beside other things" if tensors else ""
        raise _Refused(f"part must say which of its mappings of tensors is meant; it has {list(found)}{also}")
    return dict(next(iter(found.values())))


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(entry, _Tensor) for name, entry in value.items())
    )


def _storage(archive: zipfile.ZipFile, folder: str, storage: _Storage, order: str) -> np.ndarray:
    entry = archive.getinfo(f"{folder}data/{storage.key}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != storage.length * _SAFE[storage.kind].itemsize:
        raise _Refused(f"storage {storage.key} of {storage.length} numbers has {entry.file_size} bytes")
    return _numbers(archive.read(entry), storage.kind, order)


def _array(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """The tensor's numbers, copied; a tensor that would reach beyond its storage, or repeat it, is refused."""
    offset, size, stride = _count(tensor.offset), tuple(map(_count, tensor.size)), tuple(map(_count, tensor.stride))
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and (last >= len(storage) or count > len(storage)):
        raise _Refused(f"{name} of shape {size} reaches beyond its storage of {len(storage)} numbers")
    if not count:
        return np.zeros(size, storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()
