"""What a report shows beyond the results: measured at a run's end by the networks of the first seed, and kept small."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._apply import run
from kdjax._types import Apply, Weights
from kdjax.metrics import brier_score, calibration_error, cost, finished, latency, reliability, sums_of
from kdjax.objectives._counted import LABELLED, MASK, both, counting, read_counted, spread, without_ignored
from kdjax.objectives._supervised import are_classes
from kdjax.runs._data import arrays_of, class_names_of, count_of, inputs_of
from kdjax.runs.recipes import Recipe, numbers_at
from kdjax.runs.report import _layers

EXAMPLES = 10_000  # of the test data, at most
ENTRIES = 100_000  # tokens or pixels of them, at most
BATCH = 128  # of the throughput, at most
SHOWN = 9  # pictures of each part
DIFFERING = 6  # pictures on which teacher and student differ, at most
CLASSES_SHOWN = 1000  # beyond these no single example's logits are kept
BYTES = 2**28  # of outputs held at once, at most
SECONDS = 1.0  # that one latency may take
_MEASURES = {"calibration": calibration_error(), "brier": brier_score(), "reliability": reliability(10)}


class Network(NamedTuple):
    """A trained network of the first seed; its weights lie on the host."""

    apply: Apply
    weights: Weights


def collect(
    networks: Mapping[str, Network], parts: Sequence[Any], preprocess: Any, recipe: Recipe, *, ignore_label: int | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures what a report shows.

    Args:
      networks: by name, the teacher and both students.
      parts: the training and the test data, as `kdjax.runs.compare` was given them.
      preprocess: from their inputs to the networks', or None.
      recipe: of the distilled student.
      ignore_label: as in `make_train_step`.

    Returns:
      What JSON can hold, and arrays by name.
    """
    examples = len(jax.tree.leaves(inputs_of(parts[1]))[0])
    one = [_first(part, 1) for part in parts]
    shapes = {name: _shapes(network, arrays_of(one, preprocess, _as_it_is).test) for name, network in networks.items()}
    logits = shapes["teacher"][0].shape
    positions = logits[1:-1]
    size = max(sum(4 * leaf.size for leaf in jax.tree.leaves(own)) for own in shapes.values())
    count = min(examples, EXAMPLES, max(1, ENTRIES // max(1, int(np.prod(positions)))))
    # On the host, where a slice is no program.
    test = jax.device_get(arrays_of([_first(part, count) for part in parts], preprocess, _as_it_is).test)
    batch = min(BATCH, count, max(1, BYTES // size))
    about: dict[str, Any] = {
        "examples": examples,
        "read": count,
        "positions": list(positions),
        "classes": logits[-1],
        "device": jax.devices()[0].device_kind,
        "numbers": _numbers(recipe, len(jax.tree.leaves(inputs_of(parts[0]))[0])),
        "class_names": class_names_of(parts) or [],
    }
    labels = test.get("labels")
    with_classes = are_classes(labels, jax.ShapeDtypeStruct((count, *logits[1:]), jnp.float32))
    kind = "classes" if with_classes else _other_kind(labels, logits)
    counted = np.zeros(0, bool)
    if kind != "other":
        counted = _counted(test, ignore_label if with_classes else None, np.shape(labels))
    about["kind"] = kind if counted.any() else "other"
    with_classes = about["kind"] == "classes"
    arrays: dict[str, np.ndarray] = {}
    about["costs"] = {name: _costs(network, test["inputs"], batch) for name, network in networks.items()}
    if with_classes:
        about["calibration"] = {}
        for name, network in networks.items():
            about["calibration"][name], said = _said(network, test, batch, ignore_label)
            arrays |= {f"{what}_{name}": array for what, array in said.items()}
        arrays |= {"labels": np.asarray(labels).astype(np.int64), "counted": counted}
    elif about["kind"] == "number":
        arrays |= {"labels": np.asarray(labels).reshape(count), "counted": counted.reshape(count)}
    unmasked = _unmasked(test, count)
    shown = unmasked[:SHOWN].tolist()
    about["differing"] = []
    if with_classes:
        shown = np.flatnonzero(counted.reshape(count, -1).any(axis=1))[:SHOWN].tolist()
    if with_classes and not positions:
        differ = np.flatnonzero((arrays["first_teacher"] != arrays["first_distilled"]) & counted)
        about["differing"] = differ[:DIFFERING].tolist()
    about["first"] = shown
    shown = shown + [index for index in about["differing"] if index not in shown]
    about["shown"] = shown
    about["layers"], more = _layers.compare(networks, test["inputs"], unmasked, shown, most=max(1, BYTES // size))
    arrays |= {name: array for name, array in more.items() if not name.startswith("logits_")}
    for name in networks:
        if about["kind"] == "number":
            arrays[f"predicted_{name}"] = _predicted(networks[name], test["inputs"], batch)
        elif with_classes and not positions and logits[-1] <= CLASSES_SHOWN:
            arrays[f"logits_{name}"] = more[f"logits_{name}"]
    if pictures(raw := inputs_of(parts[1])):
        arrays["pictures"] = np.asarray(raw)[np.asarray(shown)]
        if with_classes and not positions:
            train = parts[0] if isinstance(parts[0], Mapping) else {"labels": parts[0].labels}
            known = np.asarray(train.get("labels", ()))
            first = known[:0]
            if are_classes(known, jax.ShapeDtypeStruct((len(known), logits[-1]), jnp.float32)):
                first = np.flatnonzero(_counted(train, ignore_label, known.shape))[:SHOWN]
            if first.size:
                arrays["train_pictures"] = np.asarray(inputs_of(parts[0]))[first]
                arrays["train_labels"] = known[first].astype(np.int64)
    return about, arrays


def pictures(inputs: Any) -> bool:
    """Whether they are one array of pictures with 1 or 3 channels."""
    shape: tuple[int, ...] = getattr(inputs, "shape", ())
    return len(shape) == 4 and shape[-1] in (1, 3) and min(shape[1:3]) >= 4


def _as_it_is(tree: Any) -> Any:
    return tree


def _first(part: Any, count: int) -> Any:
    """The first examples of a part, as it was given."""
    if isinstance(part, Mapping):
        return jax.tree.map(lambda array: array[:count], dict(part))
    return dataclasses.replace(part, inputs=part.inputs[:count], labels=part.labels[:count])


def _shapes(network: Network, arrays: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    return jax.eval_shape(_layers.forward(network.apply), network.weights, arrays["inputs"])


def _other_kind(labels: Any, logits: tuple[int, ...]) -> str:
    """``"number"`` where one number an example is predicted; else ``"other"``, of which no figure is known."""
    floats = labels is not None and jnp.issubdtype(labels.dtype, jnp.floating)
    return "number" if floats and logits[1:] == (1,) and labels.size == len(labels) else "other"


def _numbers(recipe: Recipe, examples: int) -> dict[str, list[float]]:
    """Each term's hyper-parameters that are one number, a schedule or not, at the last update of each epoch."""
    steps = examples // recipe.batch_size
    epochs = [numbers_at(recipe, (epoch + 1) * steps - 1) for epoch in range(recipe.epochs)]
    return {name: [one[name] for one in epochs] for name in epochs[0]}


def _costs(network: Network, inputs: Any, batch: int) -> dict[str, Any]:
    """Of one example, and of a batch for the throughput; large networks are called less often."""
    own = jax.tree.map(lambda array: array[:1], inputs)
    several = jax.tree.map(lambda array: array[:batch], inputs)
    counted = cost(network.apply, network.weights, own)
    timed = {}
    for name, examples in (("one", own), ("several", several)):
        timed[name] = latency(network.apply, network.weights, examples, seconds=SECONDS)._asdict()
    return counted._asdict() | timed


def _said(network: Network, test: Mapping[str, Any], batch: int, ignore_label: int | None) -> tuple[dict, dict]:
    """The measures of calibration, and for each entry the first choice, its probability and the entropy in bits."""

    @jax.jit
    def of_batch(weights: Weights, arrays: Any) -> Any:
        arrays = counting(arrays, ignore_label)
        outputs = run(network.apply, *weights, arrays["inputs"], train=False)[0]
        said = jax.nn.log_softmax(outputs.logits.astype(jnp.float32), axis=-1)
        entropy = -jnp.sum(jnp.exp(said) * jnp.where(jnp.isneginf(said), 0.0, said), axis=-1) / np.log(2.0)
        # The largest of NaNs would be class 0.
        first = jnp.where(jnp.isnan(said).any(axis=-1), -1, jnp.argmax(said, axis=-1))
        own = {"first": first, "sure": jnp.exp(jnp.max(said, axis=-1)), "entropy": entropy}
        return sums_of(_MEASURES, outputs, None, arrays), own

    named = {name: test[name] for name in ("inputs", "labels", MASK, LABELLED) if name in test}
    sums, rows = [], []
    for start in range(0, count_of(test), batch):
        part = jax.tree.map(lambda array, start=start: array[start : start + batch], named)
        own_sums, own = jax.device_get(of_batch(network.weights, part))
        sums.append(own_sums)
        rows.append(own)
    whole = jax.tree.map(lambda *each: np.sum(each, axis=0, dtype=np.float64), *sums)
    measured = {name: np.asarray(value).tolist() for name, value in finished(_MEASURES, whole).items()}
    said = jax.tree.map(lambda *each: np.concatenate(each), *rows)
    said["first"], said["entropy"] = said["first"].astype(np.int32), said["entropy"].astype(np.float16)
    if said["first"].ndim != 2:
        del said["entropy"]  # which is drawn by position
    return measured | {"n": float(whole["calibration_count"])}, said


def _counted(test: Mapping[str, Any], ignore_label: int | None, shape: tuple[int, ...]) -> np.ndarray:
    said = {name: jnp.asarray(test[name]) for name in ("labels", MASK, LABELLED) if name in test}
    known = without_ignored(said, ignore_label)
    counted = both(*(read_counted(known, name, shape) for name in (MASK, LABELLED)))
    return np.broadcast_to(True if counted is None else np.asarray(spread(counted, len(shape))), shape)


def _unmasked(test: Mapping[str, Any], count: int) -> np.ndarray:
    """Which examples have an entry that the mask does not leave out; the others' inputs are zeros."""
    if MASK not in test:
        return np.arange(count)
    return np.flatnonzero(np.reshape(test[MASK], (count, -1)).any(axis=1))


def _predicted(network: Network, inputs: Any, batch: int) -> np.ndarray:
    forward = _layers.forward(network.apply)
    starts = range(0, len(jax.tree.leaves(inputs)[0]), batch)
    parts = [jax.tree.map(lambda array, start=start: array[start : start + batch], inputs) for start in starts]
    return np.concatenate([np.asarray(forward(network.weights, part)[0])[:, 0] for part in parts])
