"""StableHLO: one program for CPU, GPU and TPU, which any process with JAX opens, without kdjax and without the model."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax import export
from jaxtyping import Array

from kdjax import _checks
from kdjax._files import check_format, write_bytes, write_json
from kdjax._types import Apply, Tree, Weights
from kdjax.export import _student
from kdjax.export._student import RECORD_FORMAT, Preprocess

_OWN = "record_sha256"  # of all else in the record


def to_stablehlo(
    path: str | os.PathLike[str],
    apply: Apply,
    weights: Weights,
    example: Tree,
    *,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Writes a network, its weights and its preprocessing as one program of `jax.export`, for a batch of any size.

    The program opens without kdjax, by ``jax.export.deserialize(open(path, "rb").read()).call(inputs)``, in this version of
    JAX or a later one. Beside it stands ``path + ".json"``, what is returned here. Both are written whole or not at all.

    Args:
      path: of the new file, such as ``"student.stablehlo"``; folders missing above it are made.
      apply: the network alone, run with ``train=False``.
      weights: its own, without those of connectors.
      example: some raw inputs, an array or a tree of arrays [batch, …], better several: they give shapes and dtypes,
        and prove the program.
      preprocess: from raw inputs to the network's, such as `kdjax.data.unit_range`; it becomes part of the program.
      class_names: a word for each logit.
      platforms: what it is lowered for, among ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``; none of them must be here.
      tolerance: by how much of the largest |logit| the program's logits may differ from the network's; of one that computes
        in bfloat16, which compilers round at places of their own, some 0.01.

    Returns:
      The record: ``"kdjax_format"``, ``"inputs"`` and ``"logits"`` by shape and dtype, ``"class_names"``, ``"preprocess"``
      (its name),
      ``"parameters"``, ``"jax"`` (its version), ``"platforms"``, ``"bytes"``, ``"sha256"``, and ``"largest_difference"``
      (None where this machine has none of the platforms).

    Raises:
      FileExistsError: if something is at `path` or at its record's; it stays as it was.
      ImportError: if ``flatbuffers`` is missing.
      ValueError: if example, weights, class names or platforms do not fit, the network cannot be traced for a batch of any
        size, or the logits differ.

    Note:
      A network that asks for the batch's size as a number, as ``len(inputs)`` does, is exported as one that takes each
      example alone, by `jax.vmap`.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return inputs @ params, model_state
      >>> weights = Weights(np.eye(3, 2, dtype=np.float32), {})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     record = to_stablehlo(f"{folder}/student", network, weights, np.ones((4, 3), np.float32))
      ...     program = export.deserialize(Path(folder, "student").read_bytes())
      >>> record["inputs"], program.call(np.ones((7, 3), np.float32)).shape
      ({'inputs': {'shape': [None, 3], 'dtype': 'float32'}}, (7, 2))
    """
    target, beside = _student.free(path), _record_of(Path(path))
    if not _is_left_over(beside):
        _student.free(beside)
    for platform in platforms:
        _checks.one_of("platforms", platform, ("cpu", "cuda", "rocm", "tpu"))
    if not platforms:
        raise ValueError("platforms must name at least one; got none.")
    student = _student.student(apply, weights, example, preprocess, class_names)
    with _without_places():
        exported = export.export(jax.jit(student.logits_of), platforms=list(platforms))(student.shapes)
        data = bytes(exported.serialize())
    here = jax.default_backend().replace("gpu", "cuda")
    difference = None
    if here in platforms:
        opened = jax.jit(export.deserialize(bytearray(data)).call)
        difference = _student.largest_difference(opened, student, tolerance, "StableHLO")
    record = {"format": "stablehlo"} | student.record | {"platforms": list(platforms), "bytes": len(data)}
    record |= {"sha256": _student.digest(data), "largest_difference": difference}
    # The record first: where the program is, what it is said to be is there too.
    write_json(beside, record | {_OWN: _student.digest_of_record(record)})
    try:
        write_bytes(target, data)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return record


def open_stablehlo(path: str | os.PathLike[str]) -> tuple[Callable[[Tree], Array], dict[str, Any]]:
    """Opens what `to_stablehlo` wrote, and proves it to be the same bytes.

    Args:
      path: of the program, with its record beside it.

    Returns:
      The compiled function from raw inputs, as the record describes them, to logits; and the record.

    Raises:
      FileNotFoundError: if the program or its record is missing.
      ValueError: if either has changed or cannot be read; later, if this machine's platform is not among the program's, or
        the inputs are others.
    """
    source, beside = Path(path), _record_of(Path(path))
    for file in (source, beside):
        if not file.is_file():
            raise FileNotFoundError(
                f"path must be a program of to_stablehlo, with its record beside it; {file} is missing."
            )
    data = source.read_bytes()
    try:
        record = json.loads(beside.read_text())
        said, own = record["sha256"], record.pop(_OWN)
        whole = own == _student.digest_of_record(record)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"The record {beside} is damaged or of another kind: {error!r}.") from error
    if not whole:
        raise ValueError(f"The record {beside} is damaged: it is not what was written.")
    check_format(record, RECORD_FORMAT, f"The record {beside}")
    if _student.digest(data) != said:
        raise ValueError(f"The program {source} is damaged: it is not what {beside} describes.")
    return jax.jit(export.deserialize(bytearray(data)).call), record


@contextmanager
def _without_places() -> Iterator[None]:
    """Programs that do not say in which files, of whose folders, each operation was written."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _is_left_over(beside: Path) -> bool:
    """Whether it is the record of an export that was killed before it wrote the program."""
    try:
        record = json.loads(beside.read_text())
        return bool(record.pop(_OWN) == _student.digest_of_record(record))
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return False


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
