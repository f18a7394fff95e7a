"""Files that are written whole or not at all, and results as strict JSON."""

import dataclasses
import errno
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = "kdjax_format"  # the name under which each record holds the number of its format


class FormatError(ValueError):
    """What is on disk is of a format that this kdjax does not know."""


def check_format(record: Mapping[str, Any], newest: int, where: Any) -> None:
    """That a record, which may be of before there were numbers, is of a format up to `newest`.

    Example:
      >>> check_format({"kdjax_format": 2}, 1, "results.json")
      Traceback (most recent call last):
      kdjax._files.FormatError: results.json must be of format 1 or older, as this kdjax reads them; it is of format 2, of \
a newer one: install that.
    """
    found = record.get(FORMAT, newest)
    if type(found) is not int or found < 1:
        raise FormatError(f"{where} must be of format {newest} or older; it is of format {found!r:.99}, which is none.")
    if found > newest:
        raise FormatError(
            f"{where} must be of format {newest} or older, as this kdjax reads them; it is of format {found}, of a newer "
            "one: install that."
        )


def as_json(value: Any, name: str = "value") -> Any:
    """Gives `value` as plain JSON would hold it, so that any language's strict reader takes the file.

    NaN and the infinities, which JSON lacks, become None (``null``); arrays become lists, NumPy's and JAX's scalars
    Python numbers, dataclasses and NamedTuples mappings by field, paths strings.

    Args:
      value: mappings with string keys, sequences, arrays, scalars, dataclasses, None, nested in any way.
      name: what to call the value in an error.

    Returns:
      Dicts, lists, strings, numbers, booleans and None only.

    Raises:
      ValueError: naming the entry that JSON cannot hold.

    Example:
      >>> as_json({"accuracy": np.float32(0.5), "seeds": (0, 1), "rate": float("nan")})
      {'accuracy': 0.5, 'seeds': [0, 1], 'rate': None}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name} must have strings as keys; got {key!r}.")
        return {key: as_json(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, name)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_json(value._asdict(), name)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [as_json(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    if hasattr(value, "dtype") and hasattr(value, "tolist") and np.asarray(value).dtype.kind in "bifuV":
        array = np.asarray(value)
        # kind V: bfloat16 and its like, of which json knows nothing and float32 holds every value
        return as_json((array.astype(np.float32) if array.dtype.kind == "V" else array).tolist(), name)
    raise ValueError(f"{name} must be something that JSON can hold; got {value!r} of type {type(value).__name__}.")


class _Bounded(io.BufferedReader):
    """Asks for no more than the file has: Python makes room for all that is asked for before it reads."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def open_bounded(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file to be read by parsers that believe the sizes in it: a header that lies costs no memory."""
    return _Bounded(io.FileIO(path))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that whoever looks finds the old content or all of the new, also after a crash.

    Args:
      path: the file; folders that are missing above it are made.
      data: its whole content.
    """
    target = Path(path)
    # beside the target, since only within one file system is a rename a single act
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system that does not name `path`, as that of a write to a full disk does not, comes to name it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or os.fspath(path) in str(error):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as one indented, strict JSON document, whole or not at all.

    Args:
      path: the file, replaced if it is there.
      value: as for `as_json`.

    Raises:
      ValueError: naming the entry that JSON cannot hold; the file is then untouched.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_json(f"{folder}/results.json", {"accuracy": float("nan")})
      ...     json.loads(Path(folder, "results.json").read_text())
      {'accuracy': None}
    """
    text = json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def append_json_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Adds `record` to a file of JSON lines, in one write to its end: two writers do not mix their lines.

    Where a killed writer left a part of a line, the record begins a line of its own. A write that fails, as on a full
    disk, leaves nothing of the record.

    Args:
      path: the file, made if it is missing, with the folders above it.
      record: as for `as_json`.

    Raises:
      ValueError: naming the entry that JSON cannot hold; the file is then untouched.
    """
    line = _line(record)
    target = Path(path)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "a+b", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            if before and os.pread(file.fileno(), 1, before - 1) != b"\n":
                line = b"\n" + line
            written = 0
            try:
                while written < len(line):  # a disk that becomes full takes a part, and says so at the next write only
                    written += file.write(line[written:])
            except OSError:
                if file.seek(0, os.SEEK_END) == before + written:  # nobody else has written since
                    file.truncate(before)
                raise


def write_json_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, one a record, whole or not at all."""
    write_bytes(path, b"".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(as_json(record, "record"), ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of_json(document: Any) -> str:
    """Of what JSON holds, whatever the order of its keys."""
    return blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16).hexdigest()


def set_aside(folder: Path) -> None:
    """Renames rather than removes: what cannot be read today may be read on another day."""
    names = {child.name for child in folder.parent.iterdir()}
    name = f"damaged-{folder.name}"
    while name in names:
        name += "-again"
    folder.rename(folder.with_name(name))


def check_writable(folder: Path) -> None:
    """Makes the folder, and a file in it, since permissions alone do not tell of a read-only disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(f"The folder {folder} must be writable, and is not: {error}") from error
