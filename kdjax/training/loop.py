"""The loop: one pass of training, over arrays on the device, rows on the host, or streams.

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
from kdjax._types import Tree
from kdjax.batches import take
from kdjax.objectives._counted import check_zeros_and_ones, count_of
from kdjax.training._step import Metrics
from kdjax.training.compiler import Options, with_options
from kdjax.training.devices import AXIS, apart, numbers_only

STEPS_PER_CALL = 64  # in one scan, on GPU and TPU

Arrays = Mapping[str, Any]
Watch = Callable[[int, Metrics], object]
Stop = Callable[[], bool]


def make_epoch(
    step: Callable[..., Any],
    *,
    steps_per_call: int | None = None,
    mesh: Mesh | None = None,
    compiler_options: Options = None,
) -> Any:
    """Builds ``epoch(state, teacher, objective, arrays, order=None, *, watch=None, …) -> (state, means)``: one pass.

    Args:
      step: any ``step(state, teacher, objective, batch) -> (state, metrics)``, not compiled yet: of `make_train_step`,
        `make_mutual_step`, `make_mean_teacher_step`, `phases.make_planned_step`, `sweeps.make_sweep_step` or `augmented`.
      steps_per_call: how many steps are one call of the device, in a `jax.lax.scan`. None: one on a CPU, where XLA's
        convolutions are slow inside a loop, and 64 elsewhere. Batches that come one by one are one step a call.
      mesh: of `kdjax.training.data_mesh`; each batch is then split over its devices. Place state and teacher by
        `replicate`, or as `shard_by_rules` and `shard_largest_axis` do.
      compiler_options: as in `jit_step`.

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

      that returns the new state and each metric's mean over the steps, as a float, or for a sweep as an array [students];
      of what the step counts, as ``"<name> count"`` says, the mean over all that was counted in the pass, 0 where nothing
      was; of a stream of which some batches have a mask and others none, each kind's by its steps. The device is waited
      for once, at the end.

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

    @partial(jax.jit, donate_argnums=(0, 1), **with_options(compiler_options))
    def advance(
        state: Any, totals: Metrics, teacher: Any, objective: Any, arrays: Tree, rows: Tree
    ) -> tuple[Any, Metrics, Metrics]:
        def one(carry: tuple[Any, Metrics], own: Tree) -> tuple[tuple[Any, Metrics], Metrics]:
            state, metrics = step(carry[0], teacher, objective, split(batch_of(arrays, own), mesh))
            return (state, jax.tree.map(jnp.add, carry[1], _weighed(metrics))), metrics

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
        batch = batch_of(arrays, jax.tree.map(lambda array: array[0], rows))
        sums = jax.eval_shape(lambda *given: _weighed(step(*given)[1]), state, teacher, objective, batch)
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), sums)

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
        resident, calls = calls_of(arrays, order, per_call, mesh)
        apart(state, teacher)
        # Of a stream some batches may have a mask and others none: what is counted is then not the same.
        totals: dict[Any, tuple[int, dict[str, Any]]] = {}
        done, before = begun
        for rows in calls:
            kind = jax.tree.structure(rows)
            if kind not in totals:
                sums, first = zeros(state, teacher, objective, resident, rows), 0
                if done and not totals:
                    sums, first, others = _begun(sums, done, before)
                    totals |= {} if others is None else {"begun": (done, others)}
                totals[kind] = first, sums
            steps, sums = totals[kind]
            state, sums, newest = advance(state, sums, teacher, objective, resident, rows)
            made = len(jax.tree.leaves(rows)[0])
            totals[kind] = steps + made, sums
            done += made
            if watch is not None:
                watch(done, newest)
            if stop is not None and stop():
                break
        if not totals:
            raise ValueError("arrays must give one batch at least; got none.")
        return state, _means([*totals.values()])

    return epoch


def calls_of(
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
        return {}, (
            {"batch": jax.tree.map(lambda array: array[None], _checks.uncut(_by_name(batch)))} for batch in arrays
        )
    if order is None:
        raise ValueError("order must say which examples make which batch, [steps, batch]; got None.")
    order = np.asarray(order)
    numbers_only("arrays", arrays)
    check_zeros_and_ones("arrays", arrays)
    examples = examples_of(arrays)
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
            rows = _checks.uncut(jax.tree.map(lambda array, chosen=chosen: np.asarray(array)[chosen], read))
            yield {"chosen": chosen, "batch": rows}

    return resident, calls()


def _by_name(batch: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"arrays must be arrays by name, or an iterable of batches by name; got a {type(batch).__name__}."
        )
    numbers_only("batch", batch)
    check_zeros_and_ones("batch", {name: one for name, one in batch.items() if isinstance(one, np.ndarray)})
    return dict(batch)


def batch_of(arrays: Tree, rows: Tree) -> dict[str, Any]:
    """The batch of one step: what the host sent, and what is taken where the arrays are."""
    if "chosen" not in rows:
        return dict(rows["batch"])
    return {"indices": rows["chosen"]} | take(arrays, rows["chosen"]) | rows["batch"]


def split(batch: Tree, mesh: Mesh | None) -> Tree:
    """Over the devices, where there are several."""
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def _weighed(metrics: Metrics) -> Metrics:
    """What is added up: a mean times what it is of, so that a step in which nothing counts has no part in it."""
    counts = {name: metrics[count_of(name)] for name in metrics if count_of(name) in metrics}
    return {name: value * counts[name] if name in counts else value for name, value in metrics.items()}


def _begun(sums: Metrics, steps: int, means: Mapping[str, Any]) -> tuple[Metrics, int, dict[str, Any] | None]:
    """The sums that so many steps came to, and how many of them; and those of steps of another kind of batch, or None.

    In float64 the product of a mean is so near the sum that it is rounded to the same float32.
    """
    if missing := sorted(name for name in sums.keys() - means.keys() if not name.endswith(count_of(""))):
        raise ValueError(f"begun must have the mean of each metric of the step; it has no {missing[0]!r}.")
    before = {
        name: np.asarray(mean, np.float64) * np.asarray(means.get(count_of(name), 1.0), np.float64) * steps
        for name, mean in means.items()
    }
    if before.keys() != sums.keys():
        return sums, 0, before
    return {name: place(before[name].astype(like.dtype), like.sharding) for name, like in sums.items()}, steps, None


def _means(totals: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """From sums and how many steps they are of, for each kind of batch.

    Where some kinds have a count of what others do not, such as a mask, each kind's mean counts by its steps, but for one
    that counts nothing.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, sums in totals for name in sums):
        own = [(made, sums) for made, sums in totals if name in sums]
        counts = [np.asarray(sums.get(count_of(name), made), np.float64) for made, sums in own]
        alike = len({count_of(name) in sums for _, sums in own}) == 1
        weights = (
            counts if alike else [np.where(count == 0, 0, made) for count, (made, _) in zip(counts, own, strict=True)]
        )
        means = [
            np.asarray(sums[name], np.float64) / np.where(n == 0, 1, n)
            for (_, sums), n in zip(own, counts, strict=True)
        ]
        whole = sum(weights)
        mean = sum(w * one for w, one in zip(weights, means, strict=True)) / np.where(whole == 0, 1, whole)
        mean = means[0] if len(own) == 1 else mean
        found[name] = mean if np.ndim(mean) else float(mean)
    return found


def examples_of(arrays: Arrays) -> int:
    """How many there are, in all arrays as many."""
    sizes = {name: {np.shape(leaf)[:1] for leaf in _leaves(value)} for name, value in arrays.items()}
    found = set().union(*sizes.values())
    if len(found) != 1 or () in found:
        shown = {name: [size[0] if size else "no axis" for size in sorted(own)] for name, own in sizes.items()}
        raise ValueError(f"arrays must have one row for each example, all as many; got {shown}.")
    return int(found.pop()[0])


def _leaves(value: Any) -> list[Any]:
    return jax.tree.leaves(value)
