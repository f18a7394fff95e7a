"""A comparison's data as its loops take them: two parts, arrays by name on the devices, whatever they came as."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _checks
from kdjax.data import Dataset, on_device, unit_range
from kdjax.data.preprocessing import preprocessed
from kdjax.objectives._counted import LABELLED, MASK, both, check_zeros_and_ones, counting, read_counted, spread
from kdjax.objectives._supervised import are_classes
from kdjax.runs import records


class Data(NamedTuple):
    """Two parts, what is done to their inputs, and what they are called.

    Attributes:
      train: arrays by name, [examples, …].
      test: of the same names.
      preprocess: what their inputs went through.
      classes: how many there are; None where that is not known.
      name: for people and records.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    preprocess: Callable[[Any], Any]
    classes: int | None
    name: str


def check_data(data: Any) -> None:
    """Two data sets of the same classes, or arrays by name twice."""
    parts = list(data) if isinstance(data, list | tuple) else []
    kinds: Any = [type(one).__name__ for one in parts] or data
    of_names = len(parts) == 2 and all(isinstance(one, Mapping) for one in parts)
    if [*map(type, parts)] != [Dataset, Dataset] and not of_names:
        raise ValueError(
            "data must be two data sets, to train on and to test on, as of load or make_dataset, or arrays by name, "
            f"{{'inputs': …, 'labels': …}}, twice; got {kinds!r:.99}."
        )
    if of_names:
        for where, arrays in zip(("train", "test"), data, strict=True):
            check_zeros_and_ones(f"data (the {where} data)", arrays)
            if "teacher" in arrays:
                raise ValueError(
                    f'data must have no "teacher", which the teacher of the comparison gives; the {where} data have one. '
                    "Stored outputs go under another name, for a term of your own, or into kdjax.training.make_epoch."
                )
            sizes = {
                name: sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(value)}) for name, value in arrays.items()
            }
            if "inputs" in arrays and (0,) in {size for found in sizes.values() for size in found}:
                raise ValueError(f"data must have one example at least; the {where} data have none.")
            if "inputs" not in arrays or len({size for found in sizes.values() for size in found}) != 1:
                raise ValueError(
                    f'data must have "inputs", and one row for each example in every array; the {where} data have {sizes}.'
                )
        return
    names = [one.class_names for one in data]
    if names[0] != names[1]:
        raise ValueError(
            f"data must have the same class names in both sets; got {names[0]!r:.99} and {names[1]!r:.99}."
        )


def arrays_of(data: Sequence[Any], preprocess: Callable[[Any], Any] | None, placed: Callable[[Any], Any]) -> Data:
    """Checked, preprocessed, and placed on the devices."""
    check_data(data)
    if isinstance(data[0], Mapping):
        preprocess = preprocess or _as_it_is
        train, test = (placed(_by_name(part, preprocess)) for part in data)
        return Data(train, test, preprocess, None, "the given arrays")
    preprocess = preprocess or usual_preprocess(data)
    train, test = (placed(on_device(part, preprocess)) for part in data)
    return Data(train, test, preprocess, len(data[0].class_names), data[0].name)


def usual_preprocess(data: Sequence[Dataset]) -> Callable[[Any], Any]:
    """What is done to the inputs of data sets where nobody says: bytes go into [0, 1], floats stay as they are."""
    kinds = [str(one.inputs.dtype) for one in data]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "data must have inputs of one dtype in both sets, where no preprocess brings them to one; got "
            f"{kinds[0]} to train on and {kinds[1]} to test on."
        )
    return unit_range if kinds[0] == "uint8" else as_given


def as_given(inputs: Any) -> Any:
    """Inputs of a data set that are in the range that their owner wants them in; runs record it by this name."""
    return inputs


def not_finite(arrays: Mapping[str, Any]) -> str | None:
    """The first example whose inputs are NaN or infinite, in words."""
    for leaf in jax.tree.leaves(arrays["inputs"]):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            odd = np.flatnonzero(~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1))
            if odd.size:
                return f"the inputs of {odd.size:,} examples are not all finite, the first of them example {odd[0]:,}"
    return None


def labels_outside(part: Any, logits: tuple[int, ...], ignore_label: int | None) -> str | None:
    """Which labels that count are none of the logits' classes, in words; None where all are, or are no class numbers."""
    if not isinstance(part, Mapping) or "labels" not in part:
        return None  # a data set's were checked when it was made
    labels = np.asarray(part["labels"])
    if not are_classes(labels, jax.ShapeDtypeStruct(logits, jnp.float32)):
        return None
    known = counting(part, ignore_label)
    counted = both(*(read_counted(known, name, labels.shape) for name in (MASK, LABELLED)))
    outside = (labels < 0) | (labels >= logits[-1])
    if counted is not None:
        outside &= np.asarray(spread(counted, labels.ndim))
    if not outside.any():
        return None
    found = np.unique(labels[outside]).tolist()
    return (
        f'"labels" are from 0 to {logits[-1] - 1} where they are classes of the logits; there are also '
        f"{', '.join(map(str, found[:5]))}{', …' if len(found) > 5 else ''}. Where that stands for no label, say "
        f"ignore_label={found[0]}"
    )


def digest_of(part: Any) -> str:
    """Of all arrays of a part as it was given."""
    return records.digest(*_arrays(part))


def class_names_of(data: Sequence[Any]) -> list[str] | None:
    """The words for the labels, in their order; None where nobody named them."""
    return [str(name) for name in data[0].class_names] if isinstance(data[0], Dataset) else None


def name_of(label: Any, class_names: Sequence[str]) -> str:
    """A label in words; -1, which counts from the end in Python, and what is beyond the classes are none of them."""
    return class_names[label] if 0 <= label < len(class_names) else "none"


def check_of_run(data: Sequence[Any], config: Mapping[str, Any], run: Path) -> None:
    """Refuses data that are not those of the run with this config.json, or whose classes have other names or order."""
    digests = config.get("data_digests")
    for name, part in zip(("train", "test"), data, strict=True):
        if not isinstance(digests, Mapping) or digest_of(part) != digests.get(name):
            raise ValueError(f"data must be those of the run; the {name} data have another digest than in {run}.")
    now = class_names_of(data)
    if config.get("class_names", now) != now:  # older runs do not record them
        raise ValueError(
            f"data must have the class names of the run in {run}, in its order: {config['class_names']!r:.199}; got "
            f"{now!r:.199}."
        )


def inputs_of(part: Any) -> Any:
    """The inputs as they were given, before any preprocessing."""
    return part["inputs"] if isinstance(part, Mapping) else part.inputs


def count_of(arrays: Mapping[str, Any]) -> int:
    """How many examples there are."""
    return len(jax.tree.leaves(arrays["inputs"])[0])


def _by_name(arrays: Mapping[str, Any], preprocess: Callable[[Any], Any]) -> dict[str, Any]:
    placed = jax.tree.map(jnp.asarray, _checks.uncut(arrays))
    inputs = placed["inputs"] if preprocess is _as_it_is else preprocessed(preprocess, placed["inputs"])
    # Inputs of what does not count may be anything, and the teacher is run over all.
    return dict(counting(placed | {"inputs": inputs}, None))


def _as_it_is(inputs: Any) -> Any:
    return inputs


def _arrays(part: Any) -> list[Any]:
    """All arrays of a data set, in one order, each after its name where they have names."""
    if not isinstance(part, Mapping):
        return [part.inputs, part.labels]
    named = [(jax.tree_util.keystr(path), array) for path, array in jax.tree.leaves_with_path(dict(part))]
    return [one for name, array in named for one in (np.frombuffer(name.encode(), np.uint8), array)]
