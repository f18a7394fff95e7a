"""What a comparison measures on its test data, and what can be known of it before anything is trained."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import _trees
from kdjax.metrics import Measure, as_measure, finished
from kdjax.objectives._supervised import are_classes, cross_entropy
from kdjax.runs.recipes import Trainer, parameters
from kdjax.training import make_eval_step

Measures = Mapping[str, Any] | None


def check_measures(measures: Any) -> None:
    """Measures by name, or None."""
    if measures is None:
        return
    if not isinstance(measures, Mapping) or not measures:
        raise ValueError(f"measures must be measures by name, one at least, or None; got {measures!r:.99}.")
    for name, measure in measures.items():
        as_measure(measure)
        if name in ("agreement", "seconds", "rate", "skipped"):
            raise ValueError(f"The measure's name {name!r} is taken by what compare itself records; choose another.")


def digest_of_measures(trainer: Trainer, test: Mapping[str, Any], measures: Measures, ignore_label: int | None) -> str:
    """Of the evaluation, traced, so that what cannot be measured is found before anything is trained, and of its results."""
    two = jax.tree.map(lambda array: jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype), dict(test))
    step = make_eval_step(trainer.apply, measures=measures, ignore_label=ignore_label)
    one = jax.tree.map(lambda array: jax.ShapeDtypeStruct((1, *array.shape[1:]), array.dtype), two["inputs"])
    weights = parameters(trainer, one)
    try:
        sums: dict[str, Any] = jax.eval_shape(step, weights, two)
    except ValueError as error:
        raise ValueError(f"measures cannot be taken of the test data: {error}") from error
    if measures is not None:
        name = next(iter(measures))
        nothing = jax.tree.map(lambda one: np.zeros(one.shape), sums) | {f"{name}_count": 1.0}
        with np.errstate(all="ignore"):
            if np.ndim(finished({name: measures[name]}, nothing)[name]):
                raise ValueError(f"The first of measures must be one number, for the table; {name!r} is an array.")
    traced = _trees.digest_of_program(step, weights, two)
    read = {name: _reading(as_measure(measure), sums[name]) for name, measure in (measures or {}).items()}
    plain = {name: _reading(as_measure(cross_entropy), sums[name]) for name in read}
    # A term's mean, of which less is better, adds nothing to its program: older runs have the digest of that alone.
    made = sorted((name, one) for name, one in read.items() if one != plain[name])
    return blake2b(f"{traced}{made}".encode(), digest_size=16).hexdigest() if made else traced


def _reading(measure: Measure, sums: Any) -> tuple[Any, ...]:
    """How it is read, and what it makes of made-up sums: that is done on the host, where nothing is traced."""
    draw, results = np.random.default_rng(0), []
    for low, count in ((0.0, 1.0), (0.0, 7.0), (-1.0, 1000.0)):
        made = jax.tree.map(
            lambda one, low=low, count=count: np.asarray(count * draw.uniform(low, size=one.shape)), sums
        )
        try:
            with np.errstate(all="ignore"):
                result, again = (np.asarray(measure.finish(made, count), np.float64) for _ in range(2))
        except Exception:  # of sums that no data have
            continue
        # The last digits may be another processor's; what draws, as a bootstrap does, has none to tell.
        if np.array_equal(result, again, equal_nan=True):
            results.append((result.shape, [f"{one:.6g}" for one in result.ravel()]))
    return measure.percent, measure.lower_is_better, results


def has_classes(trainer: Trainer, test: Mapping[str, Any]) -> bool:
    """Whether labels are class numbers, so that two networks may agree on a first choice."""
    logits = jax.ShapeDtypeStruct(trainer.logits_shape(test["inputs"]), jnp.float32)
    return "labels" in test and are_classes(test["labels"], logits)


def headline(measures: Measures) -> dict[str, Any]:
    """What the table compares: the first measure, and how to read it."""
    if measures is None:
        return {"name": "accuracy", "percent": True, "lower_is_better": False}
    name, measure = next(iter(measures.items()))
    own = as_measure(measure)
    return {"name": name, "percent": own.percent, "lower_is_better": own.lower_is_better}
