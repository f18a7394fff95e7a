"""The evaluation step: a pure function from a batch to sums, which divide into exact means at the end."""

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax

from kdjax import _checks
from kdjax._apply import cached_outputs, run
from kdjax._types import Apply, Batch, Outputs, Weights
from kdjax.metrics import accuracy, agreeing, sums_of
from kdjax.objectives import cross_entropy
from kdjax.objectives._counted import counting

EvalStep = Callable[[Weights, Batch], dict[str, Any]]


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


def _usual(batch: Batch, outputs: Outputs) -> dict[str, Any]:
    if not {"labels", "teacher"} & batch.keys():
        raise ValueError(f'batch must have "labels" or "teacher", to measure against; got {sorted(batch)}.')
    found: dict[str, Any] = {}
    if "labels" in batch:
        _checks.labels('batch["labels"], where no measures are given,', batch["labels"], outputs.logits.shape[:-1])
        found |= {"correct": accuracy, "cross_entropy": cross_entropy}
    return found | ({"agreeing": agreeing} if "teacher" in batch else {})
