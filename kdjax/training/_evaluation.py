"""Evaluation: a pure step from a batch to sums, which divide into exact means at the end; and one pass over the data."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from kdjax import _checks
from kdjax._apply import cached_outputs, run
from kdjax._types import Apply, Batch, Outputs, Tree, Weights
from kdjax.batches import evaluation_indices
from kdjax.metrics import accuracy, agreeing, finished, sums_of
from kdjax.objectives import cross_entropy
from kdjax.objectives._counted import both, counting, read_counted
from kdjax.training._step import Metrics
from kdjax.training.compiler import Options, with_options
from kdjax.training.loop import Arrays, batch_of, calls_of, examples_of, split

EvalStep = Callable[[Weights, Batch], dict[str, Any]]
USUAL_BATCH, COMPARING_BATCH = 128, 500


def make_eval_step(
    apply: Apply,
    *,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    axis_name: str | None = None,
) -> EvalStep:
    """Builds ``step(weights, batch) -> sums``, whose sums over batches divide into exact means whatever the remainder.

    Args:
      apply: the network; run with ``train=False``.
      measures: what to sum, by name: `kdjax.metrics.Measure`, or terms. None: of class labels ``correct`` and
        ``cross_entropy``; with a teacher ``agreeing``, how often both networks' first choice is the same.
      ignore_label: as in `make_train_step`.
      axis_name: the device axis, as in `make_train_step`; the sums are then over all devices.

    Returns:
      A function of

        - `weights`: the network's `Weights`.
        - `batch`: ``"inputs"``; ``"labels"``, or ``"teacher"``, the teacher's `Outputs`, or both; ``"mask"`` and
          ``"labelled"`` as in `make_train_step`.

      that returns float32 sums: ``examples``, the entries that count, which are examples, tokens or pixels; each measure's
      under its name; and under ``<name>_count`` of how many entries that sum is, those that have a label if it reads one.

    Raises:
      ValueError: later, if there is nothing to measure against, or a shape does not fit.
    """
    _checks.function("apply", apply, "apply(params, model_state, inputs, *, train, rng=None)")

    def step(weights: Weights, batch: Batch) -> dict[str, Any]:
        _checks.instance("weights", weights, Weights, "Weights(params, model_state)")
        _checks.batch(batch)
        batch = counting(batch, ignore_label)
        outputs, _ = run(apply, weights.params, weights.model_state, batch["inputs"], train=False)
        taught = cached_outputs(batch) if "teacher" in batch else None
        if taught is not None and taught.logits is not None:
            _checks.same_batch("logits", outputs.logits, 'batch["teacher"]', taught.logits)
        chosen = _usual(batch, outputs) if measures is None else measures
        sums = sums_of(chosen, outputs, taught, batch)
        return sums if axis_name is None else lax.psum(sums, axis_name)

    return step


def make_evaluation(
    apply: Apply,
    *,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    mesh: Mesh | None = None,
    compiler_options: Options = None,
) -> Any:
    """Builds ``evaluate(weights, arrays, *, batch_size=None) -> results``: every example once, whatever the remainder.

    Args:
      apply: the network; run with ``train=False``.
      measures: what to measure, by name: those of `kdjax.metrics`, such as ``{"perplexity": metrics.perplexity}``, or
        terms, whose means are taken. None: of class labels the accuracy and the cross-entropy; with a teacher the
        agreement, how often both networks' first choice is the same.
      ignore_label: as in `make_train_step`.
      mesh: as in `make_epoch`.
      compiler_options: as in `jit_step`.

    Returns:
      A function that compiles at its first call, of

        - `weights`: the network's `Weights`, such as `kdjax.training.weights_of` a state.
        - `arrays`: as in `make_epoch`: ``"inputs"``, ``"labels"``, to measure agreement with it ``"teacher"``'s `Outputs`,
          and ``"mask"`` and ``"labelled"`` as in `make_train_step`. Or an iterable of batches, such as
          `kdjax.data.open_evaluation`'s, with a ``"mask"`` where one is filled up.
        - `batch_size`: examples a call. Numbers do not depend on it but by rounding, save those of a
          term whose loss compares the examples of a batch, such as `kdjax.losses.rkd_distance`: they are of such batches.
          None: 500 where there are `measures`, which may be such; else 128, which convolutions on a CPU are faster with.

      that returns a float, or an array, for each measure, over all entries that count: examples, tokens or pixels. Without
      `measures`: ``accuracy`` and ``cross_entropy``, ``agreement``. NaN where no entry counts for a measure.

    Raises:
      ValueError: later, if no example counts, or as `make_eval_step` says.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return inputs @ params, model_state
      >>> evaluate = make_evaluation(network)
      >>> arrays = {"inputs": jnp.eye(3), "labels": jnp.array([0, 1, 1])}
      >>> round(evaluate(Weights(jnp.eye(3), {}), arrays, batch_size=2)["accuracy"], 3)
      0.667
    """
    step = make_eval_step(apply, measures=measures, ignore_label=ignore_label)
    named = {"correct": "accuracy", "cross_entropy": "cross_entropy", "agreeing": "agreement"}
    of_sums: Mapping[str, Any] = {"correct": accuracy, "cross_entropy": cross_entropy, "agreeing": agreeing}

    @partial(jax.jit, **with_options(compiler_options))
    def sums(weights: Weights, arrays: Tree, rows: Tree) -> Metrics:
        rows = jax.tree.map(lambda array: array[0], rows)
        batch = batch_of(arrays, rows)
        if "filled" in rows:  # 0 where an example only fills up the batch; the data may have a mask of their own
            filled = rows["filled"] > 0
            own = batch.get("mask")
            batch["mask"] = filled if own is None else both(filled, read_counted(batch, "mask", jnp.shape(own)))
        return step(weights, split(batch, mesh))

    def evaluate(
        weights: Weights, arrays: Arrays | Iterable[Arrays], *, batch_size: int | None = None
    ) -> dict[str, Any]:
        order = None
        size = batch_size if batch_size is not None else USUAL_BATCH if measures is None else COMPARING_BATCH
        if isinstance(arrays, Mapping):
            order, counted = map(np.asarray, evaluation_indices(examples_of(arrays), size))
        resident, calls = calls_of(arrays, order, 1, mesh)
        parts = []
        for number, rows in enumerate(calls):
            filled = {} if order is None else {"filled": counted[number][None]}
            parts.append(sums(weights, resident, {**rows, **filled}))
        if not parts:
            raise ValueError("arrays must give one batch at least; got none.")
        totals = jax.tree.map(lambda *each: np.sum(np.asarray(each, np.float64), axis=0), *parts)
        if not totals["examples"]:
            raise ValueError("arrays must have one example at least whose mask is not 0; got none.")
        if measures is not None:
            return finished(measures, totals)
        found = finished({name: measure for name, measure in of_sums.items() if name in totals}, totals)
        return {named[name]: result for name, result in found.items()}

    return evaluate


def _usual(batch: Batch, outputs: Outputs) -> dict[str, Any]:
    if not {"labels", "teacher"} & batch.keys():
        raise ValueError(f'batch must have "labels" or "teacher", to measure against; got {sorted(batch)}.')
    found: dict[str, Any] = {}
    if "labels" in batch:
        _checks.labels('batch["labels"], where no measures are given,', batch["labels"], outputs.logits.shape[:-1])
        found |= {"correct": accuracy, "cross_entropy": cross_entropy}
    return found | ({"agreeing": agreeing} if "teacher" in batch else {})
