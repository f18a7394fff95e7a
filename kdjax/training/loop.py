"""The loop: one pass of training and one of evaluation, over arrays on the device, rows on the host, or streams.

What happens between epochs is the caller's Python: save, evaluate, observe, stop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import _checks
from kdjax._processes import place
from kdjax._types import Apply, Tree, Weights
from kdjax.batches import evaluation_indices, take
from kdjax.metrics import accuracy, agreeing, finished
from kdjax.objectives import cross_entropy
from kdjax.objectives._counted import both, read_counted
from kdjax.training._evaluation import make_eval_step
from kdjax.training._step import Metrics
from kdjax.training.devices import AXIS, apart, numbers_only

STEPS_PER_CALL = 64  # in one scan, on GPU and TPU

Arrays = Mapping[str, Any]
Watch = Callable[[int, Metrics], object]
Stop = Callable[[], bool]


def make_epoch(step: Callable[..., Any], *, steps_per_call: int | None = None, mesh: Mesh | None = None) -> Any:
    """Builds ``epoch(state, teacher, objective, arrays, order=None, *, watch=None, …) -> (state, means)``: one pass.

    Args:
      step: any ``step(state, teacher, objective, batch) -> (state, metrics)``, not compiled yet: of `make_train_step`,
        `make_mutual_step`, `make_mean_teacher_step`, `phases.make_planned_step`, `sweeps.make_sweep_step` or `augmented`.
      steps_per_call: how many steps are one call of the device, in a `jax.lax.scan`. None: one on a CPU, where XLA's
        convolutions are slow inside a loop, and 64 elsewhere. Batches that come one by one are one step a call.
      mesh: of `kdjax.training.data_mesh`; each batch is then split over its devices. Place state and teacher by
        `replicate`, or as `shard_by_rules` and `shard_largest_axis` do.

    Returns:
      A function that compiles at its first call, of

        - `state`: of the step. Its buffers are donated: keep only the state that comes back.
        - `teacher`, `objective`: as for the step.
        - `arrays`: the data by name, each an array or a pytree of arrays [examples, …]. Those of JAX stay where they are,
          and a batch is taken from them there; those of NumPy, such as memory-mapped ones, are read batch by batch. Or an
          iterable of batches, such as a stream.
        - `order`: which examples make which batch, whole numbers [steps, batch], of `kdjax.batches.epoch_indices`; None for
          an iterable. The batch's ``"indices"`` are its row, where the data have none of their own.
        - `watch`: called after every compiled call, of `steps_per_call` steps, with the number of steps so far and the
          newest metrics, which may not be there yet: ``metrics["loss"].is_ready()`` asks, and reading one waits.
        - `stop`: asked after every compiled call; where it says True, the pass ends there. Of several processes all must
          get the same answer.
        - `begun`: of a pass that was ended before, the number of steps and their means; `order` then has the rows that are
          left. Steps and means go on from there, to the same bits as those of an unbroken pass.

      that returns the new state and each metric's mean over the steps, as a float, or for a sweep as an array [students].
      The device is waited for once, at the end.

    Raises:
      ValueError: if `steps_per_call` is not a whole number above 0; later, if there is no batch, `order` does not fit, or
        as the step says.

    Example:
      >>> import optax
      >>> from kdjax import Weights, cross_entropy, init_state, make_train_step, weighted_sum
      >>> from kdjax.batches import epoch_indices
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return inputs @ params, model_state
      >>> epoch = make_epoch(make_train_step(network, None, optax.sgd(0.5)))
      >>> state = init_state(Weights(jnp.zeros((4, 4)), {}), optax.sgd(0.5), jax.random.key(0))
      >>> arrays = {"inputs": jnp.eye(4), "labels": jnp.arange(4)}
      >>> for number in range(2):
      ...     order = epoch_indices(4, 2, seed=0, epoch=number)
      ...     state, means = epoch(state, None, weighted_sum(labels=(1.0, cross_entropy)), arrays, order)
      ...     print(number, round(means["loss"], 2))
      0 1.39
      1 1.2
    """
    _checks.function("step", step, "step(state, teacher, objective, batch)")
    if steps_per_call is not None:
        _checks.whole("steps_per_call", steps_per_call, 1)

    @partial(jax.jit, donate_argnums=(0, 1))
    def advance(
        state: Any, totals: Metrics, teacher: Any, objective: Any, arrays: Tree, rows: Tree
    ) -> tuple[Any, Metrics, Metrics]:
        def one(carry: tuple[Any, Metrics], own: Tree) -> tuple[tuple[Any, Metrics], Metrics]:
            state, metrics = step(carry[0], teacher, objective, _split(_batch_of(arrays, own), mesh))
            return (state, jax.tree.map(jnp.add, carry[1], metrics)), metrics

        if len(jax.tree.leaves(rows)[0]) == 1:
            (state, totals), newest = one((state, totals), jax.tree.map(lambda array: array[0], rows))
        else:
            (state, totals), history = jax.lax.scan(one, (state, totals), rows)
            newest = jax.tree.map(lambda values: values[-1], history)
        return state, totals, newest

    # Unused arguments are kept: the sums then lie where the state does, and the second call is no other program.
    @partial(jax.jit, keep_unused=True)
    def zeros(state: Any, teacher: Any, objective: Any, arrays: Tree, rows: Tree) -> Metrics:
        """Where the metrics of an epoch are added up, on the device; the step is traced for their shapes once."""
        batch = _batch_of(arrays, jax.tree.map(lambda array: array[0], rows))
        _, metrics = jax.eval_shape(step, state, teacher, objective, batch)
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), metrics)

    def epoch(
        state: Any,
        teacher: Any,
        objective: Any,
        arrays: Arrays | Iterable[Arrays],
        order: Any = None,
        *,
        watch: Watch | None = None,
        stop: Stop | None = None,
        begun: tuple[int, Mapping[str, Any]] = (0, {}),
    ) -> tuple[Any, dict[str, Any]]:
        per_call = steps_per_call or (1 if jax.default_backend() == "cpu" else STEPS_PER_CALL)
        resident, calls = _calls(arrays, order, per_call, mesh)
        apart(state, teacher)
        totals: Any = None
        done, before = begun
        for rows in calls:
            if totals is None:
                totals = zeros(state, teacher, objective, resident, rows)
                if done:
                    totals = {name: _total(before[name], done, like) for name, like in totals.items()}
            state, totals, newest = advance(state, totals, teacher, objective, resident, rows)
            done += len(jax.tree.leaves(rows)[0])
            if watch is not None:
                watch(done, newest)
            if stop is not None and stop():
                break
        if totals is None:
            raise ValueError("arrays must give one batch at least; got none.")
        return state, {name: _mean(total, done) for name, total in totals.items()}

    return epoch


def make_evaluation(
    apply: Apply,
    *,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Builds ``evaluate(weights, arrays, *, batch_size=500) -> results``: every example once, whatever the remainder.

    Args:
      apply: the network; run with ``train=False``.
      measures: what to measure, by name: those of `kdjax.metrics`, such as ``{"perplexity": metrics.perplexity}``, or
        terms, whose means are taken. None: of class labels the accuracy and the cross-entropy; with a teacher the
        agreement, how often both networks' first choice is the same.
      ignore_label: as in `make_train_step`.
      mesh: as in `make_epoch`.

    Returns:
      A function that compiles at its first call, of

        - `weights`: the network's `Weights`, such as `kdjax.training.weights_of` a state.
        - `arrays`: as in `make_epoch`: ``"inputs"``, ``"labels"``, to measure agreement with it ``"teacher"``'s `Outputs`,
          and ``"mask"`` and ``"labelled"`` as in `make_train_step`. Or an iterable of batches, such as
          `kdjax.data.open_evaluation`'s, with a ``"mask"`` where one is filled up.
        - `batch_size`: examples a call. Numbers do not depend on it but by rounding.

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

    @jax.jit
    def sums(weights: Weights, arrays: Tree, rows: Tree) -> Metrics:
        rows = jax.tree.map(lambda array: array[0], rows)
        batch = _batch_of(arrays, rows)
        if "filled" in rows:  # 0 where an example only fills up the batch; the data may have a mask of their own
            filled = rows["filled"] > 0
            own = batch.get("mask")
            batch["mask"] = filled if own is None else both(filled, read_counted(batch, "mask", jnp.shape(own)))
        return step(weights, _split(batch, mesh))

    def evaluate(weights: Weights, arrays: Arrays | Iterable[Arrays], *, batch_size: int = 500) -> dict[str, Any]:
        order = None
        if isinstance(arrays, Mapping):
            order, counted = map(np.asarray, evaluation_indices(_examples(arrays), batch_size))
        resident, calls = _calls(arrays, order, 1, mesh)
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


def _calls(
    arrays: Arrays | Iterable[Arrays], order: Any, per_call: int, mesh: Mesh | None
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The arrays that stay on the device; and for each call the rows [steps, batch, …] of the others, and of the order."""
    if not isinstance(arrays, Mapping):
        if not isinstance(arrays, Iterable):
            raise ValueError(
                f"arrays must be arrays by name, or an iterable of batches; got a {type(arrays).__name__}."
            )
        if order is not None:
            raise ValueError("order must be None where the batches come one by one; got an order beside an iterable.")
        return {}, ({"batch": jax.tree.map(lambda array: array[None], _by_name(batch))} for batch in arrays)
    if order is None:
        raise ValueError("order must say which examples make which batch, [steps, batch]; got None.")
    order = np.asarray(order)
    numbers_only("arrays", arrays)
    examples = _examples(arrays)
    if order.ndim != 2 or not order.shape[1] or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(
            "order must be whole numbers [steps, batch], one example a batch or more; "
            f"got shape {order.shape} and dtype {order.dtype}."
        )
    if order.size and not (order.min() >= 0 and order.max() < examples):
        raise ValueError(f"order must lie between 0 and {examples - 1}; got {order.min()} to {order.max()}.")
    order = order.astype(np.int32)
    on_host = {name for name, value in arrays.items() if any(isinstance(leaf, np.ndarray) for leaf in _leaves(value))}
    resident = {name: value for name, value in arrays.items() if name not in on_host}
    read = {name: arrays[name] for name in on_host}

    def calls() -> Iterator[dict[str, Any]]:
        for first in range(0, len(order), per_call):
            chosen = order[first : first + per_call]
            rows = jax.tree.map(lambda array, chosen=chosen: np.asarray(array)[chosen], read)
            yield {"chosen": chosen, "batch": rows}

    return resident, calls()


def _by_name(batch: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"arrays must be arrays by name, or an iterable of batches by name; got a {type(batch).__name__}."
        )
    numbers_only("batch", batch)
    return dict(batch)


def _batch_of(arrays: Tree, rows: Tree) -> dict[str, Any]:
    """The batch of one step: what the host sent, and what is taken where the arrays are."""
    if "chosen" not in rows:
        return dict(rows["batch"])
    return {"indices": rows["chosen"]} | take(arrays, rows["chosen"]) | rows["batch"]


def _split(batch: Tree, mesh: Mesh | None) -> Tree:
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def _total(mean: Any, steps: int, like: jax.Array) -> jax.Array:
    """The sum of which it was the mean: in float64 the product is so near that it is rounded to the same float32."""
    return place(np.asarray(np.asarray(mean, np.float64) * steps, like.dtype), like.sharding)


def _mean(total: Any, steps: int) -> Any:
    mean = np.asarray(total, np.float64) / steps
    return mean if mean.ndim else float(mean)


def _examples(arrays: Arrays) -> int:
    sizes = {name: {np.shape(leaf)[:1] for leaf in _leaves(value)} for name, value in arrays.items()}
    found = set().union(*sizes.values())
    if len(found) != 1 or () in found:
        shown = {name: [size[0] if size else "no axis" for size in sorted(own)] for name, own in sizes.items()}
        raise ValueError(f"arrays must have one row for each example, all as many; got {shown}.")
    return int(found.pop()[0])


def _leaves(value: Any) -> list[Any]:
    return jax.tree.leaves(value)
