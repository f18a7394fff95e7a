"""What every format exports: one function from raw inputs to logits, proved on an example, and what is said of it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import jaxpr_as_fun

from kdjax import _trees
from kdjax._apply import run
from kdjax._files import FORMAT
from kdjax._types import Apply, Tree, Weights

RECORD_FORMAT = 1  # of what is said of an export
Preprocess = Callable[[Any], Any]


class Student(NamedTuple):
    """A network with its weights, as one function.

    Attributes:
      logits_of: from raw inputs to logits, to be traced with `shapes`; preprocessing is in it, the weights are constants.
      example: the inputs that it was tried with, as NumPy's arrays.
      logits: what it returned for them, float32.
      shapes: of its inputs, for a batch of any size.
      record: what is said of it, as JSON can hold it.
    """

    logits_of: Callable[[Tree], jax.Array]
    example: Tree
    logits: np.ndarray
    shapes: Tree
    record: dict[str, Any]


def free(path: str | os.PathLike[str]) -> Path:
    """The path, if nothing stands there."""
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"path must be free for a new export; {target} exists already.")
    return target


def student(
    apply: Apply, weights: Weights, example: Tree, preprocess: Preprocess | None, class_names: Sequence[str] | None
) -> Student:
    """Runs the network once, and refuses what could not be exported or compared."""
    check_finite(weights)
    # By way of JAX: where it has no 64 bits, the program has none either.
    example = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), batch_of("example", example))
    # By way of the host: what lies split over devices is one array in the program.
    params, model_state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tuple(weights))

    def logits_of(inputs: Tree) -> jax.Array:
        ready = inputs if preprocess is None else preprocess(inputs)
        logits = run(apply, params, model_state, ready, train=False)[0].logits
        return jnp.asarray(logits, jnp.float32)

    try:
        logits = np.asarray(jax.jit(logits_of)(example))
    except Exception as error:  # whatever a network says of inputs or weights that are not its own
        raise ValueError(f"example and weights must be the network's; got {_shapes(example)}: {error}") from error
    if not np.isfinite(logits).all():
        raise ValueError("weights must give finite logits for the example; got NaN or infinity.")
    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), example)
    record = {
        FORMAT: RECORD_FORMAT,
        "inputs": {name: any_batch(leaf) for name, leaf in named(example).items()},
        "logits": any_batch(logits),
        "class_names": _checked(class_names, logits),
        "preprocess": None if preprocess is None else _name(preprocess),
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(params)),
        "jax": jax.__version__,
    }
    return Student(_of_any_batch(logits_of, shapes, len(jax.tree.leaves(example)[0])), example, logits, shapes, record)


def check_finite(weights: Weights) -> None:
    """That no number of a network is NaN or infinite: training has diverged, and nobody wants to be handed that."""
    for name, leaf in _trees.by_path(weights).items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"weights must be finite; NaN or infinity is in {name}.")


def batch_of(name: str, inputs: Tree) -> Tree:
    """The inputs as NumPy's arrays, if they are a batch."""
    inputs = jax.tree.map(np.asarray, inputs)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ValueError(f"{name} must be a batch, arrays with one first axis of at least 1; got {_shapes(inputs)}.")
    return inputs


def named(inputs: Tree) -> dict[str, Any]:
    """The arrays by path; a single array is called ``inputs``."""
    return {name or "inputs": leaf for name, leaf in _trees.by_path(inputs).items()}


def largest_difference(found: Callable[[Tree], Any], student: Student, tolerance: float, where: str) -> float:
    """Between the exported program's logits and the network's, for the example and for its first row alone."""
    first = jax.tree.map(lambda leaf: leaf[:1], student.example)
    both = ((student.example, student.logits), (first, student.logits[:1]))
    # NumPy's, which is NaN where one of them is; Python's says what comes first.
    largest = float(np.max([np.abs(np.asarray(found(inputs)) - logits).max() for inputs, logits in both]))
    allowed = tolerance * float(np.abs(student.logits).max())
    if not largest <= allowed:  # NaN too
        raise ValueError(
            f"The logits in {where} must be the network's within {allowed:.3g}, that is {tolerance:g} (tolerance) of the "
            f"largest; they differ by {largest:.3g}. Nothing was written."
        )
    return largest


def digest(data: bytes) -> str:
    """What ``sha256sum`` prints, so that those without kdjax can check it too."""
    return sha256(data).hexdigest()


def _of_any_batch(logits_of: Callable[[Tree], jax.Array], shapes: Tree, rows: int) -> Callable[[Tree], jax.Array]:
    """Itself; or, where it wants the batch's size as a number, as ``len(inputs)`` does, itself for each example alone.

    Whether examples are independent, as the latter takes for granted, shows in the logits of a batch of several.
    """

    def of_each(inputs: Tree) -> jax.Array:
        alone = jax.vmap(lambda one: logits_of(jax.tree.map(lambda leaf: leaf[None], one))[0])
        return alone(inputs)

    try:
        jax.eval_shape(logits_of, shapes)
    except Exception:  # JAX has several errors for it
        if rows == 1:
            raise ValueError(
                "example must have two rows or more where the network wants the batch's size as a number: one alone does "
                "not show whether its examples are independent; got one."
            ) from None
        try:
            # Now: translators put operations of their own in the place of JAX's, for which there is no vmap.
            program = jaxpr_as_fun(jax.make_jaxpr(of_each)(shapes))
        except Exception as error:
            raise ValueError(f"apply must take a batch of any size, one example among them: {error}") from error
        return lambda inputs: program(*jax.tree.leaves(inputs))[0]
    return logits_of


def _checked(class_names: Sequence[str] | None, logits: np.ndarray) -> list[str] | None:
    if class_names is None:
        return None
    names = list(class_names)
    words = all(isinstance(name, str) for name in names) and not isinstance(class_names, str)
    if not words or len(set(names)) != len(names) or len(names) != logits.shape[-1]:
        raise ValueError(
            f"class_names must be {logits.shape[-1]} different words, one for each logit; got {class_names!r:.99}."
        )
    return names


def any_batch(leaf: Any) -> dict[str, Any]:
    return {"shape": [None, *np.shape(leaf)[1:]], "dtype": str(leaf.dtype)}


def _shapes(inputs: Tree) -> str:
    found = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in map(np.asarray, jax.tree.leaves(inputs))]
    return ", ".join(found) or "no arrays"


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def digest_of_record(record: Mapping[str, Any]) -> str:
    """Of what is said of an export, as JSON."""
    return digest(json.dumps(record, sort_keys=True).encode())
