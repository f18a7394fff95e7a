"""A frozen teacher's outputs, computed once and kept: in memory, or in a folder that is proved to be its own.

Where the teacher meets the same inputs in every epoch, a distillation step then costs what the student's step costs.
"""

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks, _leaves, records
from kdjax._types import AnyArray, Apply, Outputs, Weights

_RECORD = "record.json"
_ROWS = 1000  # read at a time for a digest, which does not depend on it
_DTYPES = ("float32", "bfloat16", "float16")


class StaleError(ValueError):
    """The cache on disk is of another teacher, of other inputs, or holds other things than are wanted."""


def cache_teacher(
    apply: Apply,
    teacher: Weights,
    inputs: AnyArray,
    *,
    features: Sequence[str] = (),
    top_k: int | None = None,
    dtype: str = "float32",
    batch_size: int = 500,
    path: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Runs the teacher over all inputs, once, in inference mode, and keeps what it says of each.

    Args:
      apply: the teacher's `Apply`.
      teacher: its weights.
      inputs: [examples, …], preprocessed, as the step would give them to the teacher.
      features: names of the features to keep beside the logits, those that the objective reads.
      top_k: keep only the k largest log-probabilities and their classes, for `losses.top_k_kl`; no logits, no features.
      dtype: what the numbers are kept in: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Half the space, three or two
        digits.
      batch_size: examples at a time.
      path: a folder to keep them in, memory-mapped; made whole or not at all. One that exists is taken, if it is of this
        teacher and these inputs. None: in memory.

    Returns:
      Entries for the data set's arrays, to be taken batch by batch along with them: ``{"teacher": Outputs}``, which the
      step reads instead of running the teacher, or with `top_k` ``{"top_values": …, "top_indices": …}``. Arrays
      [examples, …] on the default device; with a `path`, NumPy's, read-only and on disk: `jax.device_put` what fits.

    Raises:
      ValueError: if the teacher has no such feature, or an argument is out of its range.
      StaleError: a ValueError that says what differs, if `path` holds the outputs of something else. The folder stays.
      FloatingPointError: if the teacher gives NaN or an infinity, or a number that `dtype` cannot hold.

    Example:
      >>> def apply(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {"doubled": 2 * inputs}), model_state
      >>> kept = cache_teacher(apply, Weights(jnp.eye(3), {}), jnp.ones((7, 3)), features=["doubled"], batch_size=4)
      >>> kept["teacher"].logits.shape, kept["teacher"].features["doubled"][6].tolist()
      ((7, 3), [2.0, 2.0, 2.0])

    Note:
      A cache is right only where training shows the teacher the same inputs. For augmented ones, make the views a
      function of the epoch, cache some epochs of views, and train on those.

      What makes a folder this teacher's own: a digest of the weights, of the inputs, and (under the same JAX version) of
      the traced program, so that a network with the same weights and another padding is another teacher.
    """
    _checks.one_of("dtype", dtype, _DTYPES)
    for name, value in (("batch_size", batch_size), ("top_k", top_k)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number greater than 0; got {value!r}.")
    if top_k is not None and features:
        raise ValueError(f"features must be empty with top_k, which keeps predictions alone; got {list(features)}.")
    if np.ndim(inputs) < 1 or len(inputs) == 0:
        raise ValueError(f"inputs must hold one example at least, [examples, …]; got shape {np.shape(inputs)}.")

    def outputs(weights: Weights, batch: jax.Array) -> dict[str, jax.Array]:
        said, _ = apply(weights.params, weights.model_state, batch, train=False)
        return _kept(said, features, top_k, jnp.dtype(dtype))

    def of(examples: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((examples, *inputs.shape[1:]), inputs.dtype)

    layout = jax.eval_shape(outputs, teacher, of(2))
    layout = {name: jax.ShapeDtypeStruct((len(inputs), *one.shape[1:]), one.dtype) for name, one in layout.items()}

    def fill(arrays: Mapping[str, np.ndarray]) -> None:
        _fill(arrays, jax.jit(outputs), teacher, inputs, batch_size)

    if path is None:
        arrays = {name: np.empty(one.shape, one.dtype) for name, one in layout.items()}
        fill(arrays)
        return jax.device_put(_entries(arrays))
    identity = {
        "teacher": _digest_of_weights(teacher),
        "inputs": _digest_of_rows(inputs),
        "program": _digest_of_program(outputs, teacher, of(2)),
        "jax": jax.__version__,
        "arrays": {name: {"shape": list(one.shape), "dtype": str(one.dtype)} for name, one in layout.items()},
    }
    return _entries(_in_folder(Path(path).absolute(), identity, layout, fill))


def _in_folder(
    folder: Path,
    identity: Mapping[str, Any],
    layout: Mapping[str, jax.ShapeDtypeStruct],
    fill: Callable[[Mapping[str, np.ndarray]], None],
) -> dict[str, np.memmap]:
    """The arrays that `folder` holds, if they are the wanted ones; or those that it holds from now on."""

    def opened(where: Path, mode: Any) -> dict[str, np.memmap]:
        # Plain bytes: NumPy's own format does not know bfloat16. Shapes and dtypes stand in the record.
        return {name: np.memmap(_file(where, name), one.dtype, mode, shape=one.shape) for name, one in layout.items()}

    if folder.exists():
        record = _checked_record(folder, identity)
        for name, array in opened(folder, "r").items():
            if record["digests"].get(name) != _digest_of_rows(array):
                raise StaleError(f"path must hold what was written; {_file(folder, name)} has changed since.")
        return opened(folder, "r")
    with _made_whole(folder) as unfinished:
        written = opened(unfinished, "w+")
        fill(written)
        for array in written.values():
            array.flush()
        digests = {name: _digest_of_rows(array) for name, array in written.items()}
        records.write_json(unfinished / _RECORD, {**identity, "digests": digests})
    return opened(folder, "r")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{quote(name, safe='')}.bin"


def _kept(said: Outputs, features: Sequence[str], top_k: int | None, dtype: Any) -> dict[str, jax.Array]:
    """What is kept of a batch, flat and by name."""
    if top_k is not None:
        classes = said.logits.shape[-1]
        if top_k > classes:
            raise ValueError(f"top_k must be at most the teacher's {classes} classes; got {top_k}.")
        values, indices = jax.lax.top_k(jax.nn.log_softmax(said.logits.astype(jnp.float32)), top_k)
        return {"top_values": values.astype(dtype), "top_indices": indices.astype(jnp.int32)}
    for name in features:
        if name not in said.features:
            raise ValueError(f"features must be among the teacher's, {sorted(said.features)}; got {name!r}.")
    return {"logits": said.logits.astype(dtype)} | {
        f"features.{name}": said.features[name].astype(dtype) for name in features
    }


def _entries(arrays: Mapping[str, Any]) -> dict[str, Any]:
    if "logits" not in arrays:
        return dict(arrays)
    features = {name.partition(".")[2]: array for name, array in arrays.items() if name != "logits"}
    return {"teacher": Outputs(arrays["logits"], features)}


def _fill(arrays: Mapping[str, np.ndarray], outputs: Any, teacher: Weights, inputs: AnyArray, batch_size: int) -> None:
    """All batches have one size, so that one program computes them: the last begins early and repeats some examples."""
    examples = len(inputs)
    size = min(batch_size, examples)
    for start in range(0, examples, size):
        start = min(start, examples - size)
        for name, values in outputs(teacher, jnp.asarray(inputs[start : start + size])).items():
            rows = np.asarray(values)
            if not np.isfinite(rows.astype(np.float32)).all():
                raise FloatingPointError(
                    f"The teacher's {name} are not all finite as {rows.dtype}, for examples {start} to {start + size - 1}."
                )
            arrays[name][start : start + size] = rows


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that becomes it when all went well, and is gone when not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _checked_record(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        raise FileExistsError(f"path must be free, or hold a teacher's cache; {folder} holds something else.") from None
    same_jax = kept.get("jax") == identity["jax"]
    names = [name for name in ("teacher", "inputs", "program", "arrays") if name != "program" or same_jax]
    if changed := [name for name in names if kept.get(name) != identity[name]]:
        raise StaleError(
            f"path must hold the outputs of this teacher for these inputs; in {folder} {_listed(changed)}. "
            "Remove the folder, or give another path."
        )
    for name, array in identity["arrays"].items():
        wanted = math.prod(array["shape"]) * jnp.dtype(array["dtype"]).itemsize
        file = _file(folder, name)
        found = file.stat().st_size if file.exists() else 0
        if found != wanted:
            raise StaleError(f"path must hold whole arrays; {file} has {found} bytes, and {wanted} are wanted.")
    return kept


def _listed(names: Sequence[str]) -> str:
    said = {
        "teacher": "the teacher's weights are others",
        "inputs": "the inputs are others",
        "program": "the teacher's program is another",
        "arrays": "other arrays are kept (features, top_k or dtype)",
    }
    return ", ".join(said[name] for name in names)


def _digest_of_weights(weights: Weights) -> str:
    digests = {name: _leaves.digest(_leaves.on_host(leaf)) for name, leaf in _leaves.by_path(weights).items()}
    return blake2b(repr(sorted(digests.items())).encode(), digest_size=16).hexdigest()


def _digest_of_rows(array: AnyArray) -> str:
    """Piece by piece: the array may be larger than memory."""
    digest = blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    for start in range(0, len(array), _ROWS):
        digest.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    return digest.hexdigest()


def _digest_of_program(function: Any, *shapes: Any) -> str:
    """Of the traced program's text; it names functions by their address in memory, which says nothing."""
    text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*shapes)))
    return blake2b(text.encode(), digest_size=16).hexdigest()
