"""ONNX: one file that ONNX Runtime runs, without JAX and without Python where need be; in 32 bits or in 8."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from kdjax import _checks
from kdjax._files import as_json, check_format, write_bytes
from kdjax._types import Apply, Tree, Weights
from kdjax.export import _student
from kdjax.export._portable import for_any_platform
from kdjax.export._student import RECORD_FORMAT, Preprocess

_RECORD = "kdjax"
_LARGEST = 2**31
"""Bytes; what a protocol buffer, which an ONNX file is, can have at most."""


def to_onnx(
    path: str | os.PathLike[str],
    apply: Apply,
    weights: Weights,
    example: Tree,
    *,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Writes a network, its weights and its preprocessing as one ONNX file for a batch of any size, and runs it once.

    The file's inputs are called as in the record, a single one ``"inputs"``, and its output ``"logits"``. Its metadata hold
    the record as JSON under ``"kdjax"``, and the class names as a JSON list under ``"class_names"``.

    Args:
      path: of the new file, such as ``"student.onnx"``; folders missing above it are made.
      apply: the network alone, run with ``train=False``.
      weights: its own, without those of connectors; less than 2 GiB.
      example: some raw inputs, an array or a tree of arrays [batch, …]: they give shapes and dtypes, and prove the file.
      preprocess: from raw inputs to the network's; it becomes part of the file.
      class_names: a word for each logit.
      tolerance: by how much of the largest |logit| ONNX Runtime's logits may differ from the network's.

    Returns:
      The record, as that of `to_stablehlo`, without platforms.

    Raises:
      FileExistsError: if something is at `path`; it stays as it was.
      ImportError: if jax2onnx or onnxruntime is missing; it says how to install them.
      ValueError: as in `to_stablehlo`; or if jax2onnx or ONNX Runtime cannot take an operation of the network.

    Note:
      jax2onnx translates operation by operation. Where the network computes one thing in several ways by
      `jax.lax.platform_dependent`, as the convolutions of `kdjax.models` do, its default way is translated.
    """
    jax2onnx, onnxruntime = _imported("jax2onnx"), _imported("onnxruntime")
    target = _student.free(path)
    student = _student.student(apply, weights, example, preprocess, class_names)
    if sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(weights)) >= _LARGEST:
        raise ValueError("weights must have less than 2 GiB, the most that an ONNX file can hold.")
    structure, names = jax.tree.structure(student.shapes), list(_student.named(student.shapes))

    def of_arrays(*arrays: jax.Array) -> jax.Array:
        return student.logits_of(jax.tree.unflatten(structure, arrays))

    try:
        with _silent():
            model = jax2onnx.to_onnx(
                for_any_platform(of_arrays),
                inputs=jax.tree.leaves(student.shapes),
                input_names=names,
                output_names=["logits"],
            )
    except Exception as error:  # it has several for what it cannot translate
        raise ValueError(f"apply must be of operations that jax2onnx translates: {error}") from error
    _tidy(model)
    try:
        running = _running(onnxruntime, model.SerializeToString())
        running(student.example)
    except Exception as error:  # its errors have no class in common
        raise ValueError(f"apply must be of operations that ONNX Runtime runs: {error}") from error
    difference = _student.largest_difference(running, student, tolerance, "ONNX Runtime")
    record = {"format": "onnx"} | student.record | {"largest_difference": difference}
    return _written(target, model, record)


def to_int8(
    path: str | os.PathLike[str], source: str | os.PathLike[str], calibration: Tree, *, batch_size: int = 100
) -> dict[str, Any]:
    """Quantises an ONNX file of `to_onnx` to 8-bit integers, by ONNX Runtime: weights by channel, activations by tensor.

    Convolutions and dense layers compute in integers; all else stays in float32. No training follows, so measure the new
    file on data of its own: the difference on `calibration` is no measure of accuracy.

    Args:
      path: of the new file, such as ``"student-int8.onnx"``.
      source: the file of `to_onnx`.
      calibration: raw inputs as the file takes them, some hundred examples of the training data: the ranges of the
        activations are those that they cause.
      batch_size: how many of them are run at once.

    Returns:
      The record of `source`, with ``"format"``, ``"bytes"`` and ``"sha256"`` of the new file, ``"calibrated_with"``, the
      number of examples, and on them ``"largest_difference"`` and ``"agreement"``, the part of the predictions that stay.

    Raises:
      FileExistsError: if something is at `path`; it stays as it was.
      FileNotFoundError: if there is no `source`.
      ImportError: if onnxruntime is missing; it says how to install it.
      ValueError: if `source` is no file of `to_onnx`, or `calibration` does not fit it.
    """
    onnxruntime, onnx = _imported("onnxruntime"), _imported("onnx")
    quantization = import_module("onnxruntime.quantization")
    shape_inference = import_module("onnxruntime.quantization.shape_inference")
    target, record = _student.free(path), read_onnx(source)
    if record["format"] != "onnx":
        raise ValueError(f"source must be a file of to_onnx; {source} is one of to_int8.")
    _checks.whole("batch_size", batch_size, 1)
    arrays = _student.named(_student.batch_of("calibration", calibration))
    found = {name: _student.any_batch(array) for name, array in arrays.items()}
    if found != record["inputs"]:
        raise ValueError(f"calibration must be batches of what {source} takes, {record['inputs']}; got {found}.")
    examples = len(next(iter(arrays.values())))
    starts = range(0, examples, batch_size)
    batches = [{name: array[at : at + batch_size] for name, array in arrays.items()} for at in starts]

    def logits_of(data: bytes) -> np.ndarray:
        running = _running(onnxruntime, data)
        return np.concatenate([running(batch) for batch in batches])

    theirs = logits_of(Path(source).read_bytes())
    if not np.isfinite(theirs).all():
        raise ValueError("calibration must give finite logits; got NaN or infinity.")
    reader = SimpleNamespace(get_next=partial(next, iter(batches), None))
    with TemporaryDirectory() as folder, _silent():
        prepared, quantised = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            shape_inference.quant_pre_process(os.fspath(source), os.fspath(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(prepared, quantised, reader, per_channel=True)
        except Exception as error:  # its errors have no class in common
            raise ValueError(f"source must be of operations that ONNX Runtime quantises: {error!r}") from error
        model = onnx.load(quantised)
    _tidy(model)
    ours = logits_of(model.SerializeToString())
    record |= {
        "format": "onnx int8",
        "calibrated_with": examples,
        "largest_difference": float(np.abs(ours - theirs).max()),
        "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }
    return _written(target, model, record)


def read_onnx(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the record of a file of `to_onnx` or `to_int8`, which stands in its metadata.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if onnx is missing; it says how to install it.
      ValueError: if it is damaged, or has no record.
    """
    onnx, source = _imported("onnx"), Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path must be a file of to_onnx; {source} does not exist.")
    try:
        metadata = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
        record: dict[str, Any] = json.loads(metadata[_RECORD])
    except Exception as error:  # whatever a damaged file makes the protocol buffer's parser say
        raise ValueError(f"path must be a file of to_onnx, whole; {source} is none: {error!r}.") from error
    check_format(record, RECORD_FORMAT, f"The record in {source}")
    return record


def _tidy(model: Any) -> None:
    """Leaves out what the translator adds and others stumble over."""
    # Shapes between layers, some of them wrong: ONNX Runtime finds its own, and warns of these.
    del model.graph.value_info[:]
    # A bias of one zero, where a dense layer has none: quantisation wants a bias for each channel, or none.
    to_array = import_module("onnx.numpy_helper").to_array
    single = {one.name for one in model.graph.initializer if not one.dims and not to_array(one)}
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in single:
            del node.input[2]


def _written(target: Path, model: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    helper = import_module("onnx.helper")
    record = {name: value for name, value in record.items() if name not in ("bytes", "sha256")}
    metadata = {_RECORD: json.dumps(as_json(record, "record"))}
    if record["class_names"]:
        metadata["class_names"] = json.dumps(record["class_names"])
    helper.set_model_props(model, metadata)
    data = model.SerializeToString()
    write_bytes(target, data)
    return record | {"bytes": len(data), "sha256": _student.digest(data)}


def _running(onnxruntime: Any, data: bytes) -> Callable[[Tree], np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def logits_of(inputs: Tree) -> np.ndarray:
        return np.asarray(session.run(["logits"], _student.named(inputs))[0])

    return logits_of


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f'{name} is missing, which exports to ONNX. Install it with kdjax, by pip install "kdjax[onnx]", '
            "in an environment of its own where other packages want a newer orbax than jax2onnx does."
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the notes on their own work that the translators log by the dozen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
