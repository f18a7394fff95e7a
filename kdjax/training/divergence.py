"""Training that has diverged: found while it runs, without waiting for the device in each step; and what can be done then.

**The rule.** Training has diverged when the loss or the mean of a term with a weight is not finite; when the mean of such a
term has risen to more than `EXPLODED` times its size at the start and stays there for `IN_A_ROW` calls, so that a batch with
an outlier stops nothing; or at once when it has risen to more than `AT_ONCE` times. The size at the start is that of its
first mean, or 1 where that is smaller. A term that falls without bound does not diverge, nor does one that rises with a
negative weight.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import _checks
from kdjax._types import Batch, Number, TrainState, Tree, Weights
from kdjax.objectives._counted import count_of
from kdjax.training._asked import asking
from kdjax.training._step import Metrics, TrainStep
from kdjax.training.state import states_in

EXPLODED, IN_A_ROW = 1_000.0, 10
AT_ONCE = 1e12
_OWN_PARAMS = (
    "LookaheadState",
    "SAMState",
    "ScaleByBacktrackingLinesearchState",
    "ScaleByZoomLinesearchState",
    "ScheduleFreeState",
)
CALLS_BEHIND = 16  # that many calls of the device may be under way before the oldest one's metrics are read


class DivergedError(FloatingPointError):
    """Training has diverged.

    Attributes:
      done: the steps of the epoch that were done when it was seen.
    """

    def __init__(self, message: str, done: int = 0) -> None:
        super().__init__(message)
        self.done = done


class DivergenceWatch:
    """Finds that training has diverged, as the module says: the `watch` of an epoch, to be finished after it.

    The metrics that are read are those of `CALLS_BEHIND` calls ago: the device always has work, and several processes
    stop at the same call. One is for one training: it remembers what the terms were at the start.

    Attributes:
      start: each term's size at the start, for a state's record; a resumed training is given it.

    Example:
      >>> watch = DivergenceWatch()
      >>> for done, mean in enumerate((2.0, 1.5, *[2_500.0] * 10), start=1):
      ...     watch(done, {"loss": mean, "labels": mean, "labels_weight": 1.0})
      >>> watch.finish({"loss": 2083.6})
      Traceback (most recent call last):
      kdjax.training.divergence.DivergedError: at step 12 its term 'labels' is 2500, more than 1,000 times as much as at \
the start, 2, as in the 9 before
    """

    def __init__(self, start: Mapping[str, Any] | None = None) -> None:
        self.start: dict[str, Any] = dict(start or {})
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()
        self._risen: dict[str, Any] = {}  # of each term, for how many calls in a row it has been high

    def __call__(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a call, and judges those of a call some time ago."""
        self._waiting.append((done, metrics))
        if len(self._waiting) > CALLS_BEHIND:
            self._judge(*self._waiting.popleft())

    def finish(self, means: Mapping[str, Any]) -> None:
        """Judges what is left of an epoch, and its means.

        Raises:
          DivergedError: if training has diverged; so may a call.
        """
        done = 0
        while self._waiting:
            done, metrics = self._waiting.popleft()
            self._judge(done, metrics)
        if not np.isfinite(means["loss"]).all():
            raise DivergedError(f"up to step {done} the mean of its loss is {_worst(means['loss']):.4g}", done)
        skipped = np.asarray(means.get("skipped", 0.0)) == 1.0
        if skipped.any():
            which = f" of student {' and '.join(map(str, np.flatnonzero(skipped)))}" if skipped.ndim else ""
            raise DivergedError(f"up to step {done} every update{which} was skipped", done)

    def _judge(self, done: int, metrics: Mapping[str, Any]) -> None:
        skipped = np.asarray(metrics.get("skipped", 0.0)) == 1.0  # of a sweep, by student
        if skipped.all():
            return
        for name, value in metrics.items():
            found = np.asarray(value, np.float64)
            weight = metrics.get(f"{name}_weight")
            if weight is None:
                continue
            idle = skipped | (np.asarray(metrics.get(count_of(name), 1.0)) == 0)  # it says nothing of this batch
            counts = (np.asarray(weight) != 0) & ~idle  # what has weight 0 is not trained
            if not np.isfinite(found[counts]).all():
                raise DivergedError(f"at step {done} its term {name!r} is {_worst(value):.4g}", done)
            if counts.all() and name not in self.start:
                self.start[name] = np.abs(found).tolist()
            if name not in self.start:
                continue
            times = np.sign(weight) * found / np.maximum(self.start[name], 1.0)
            before = self._risen.get(name, 0)
            risen = self._risen[name] = np.where(idle, before, np.where(counts & (times > EXPLODED), before + 1, 0))
            at_once = (counts & (times > AT_ONCE)).any()
            if at_once or (risen >= IN_A_ROW).any():
                raise DivergedError(
                    f"at step {done} its term {name!r} is {_worst(value):.4g}, more than "
                    f"{AT_ONCE if at_once else EXPLODED:,.0f} times as much as at the start, {np.max(self.start[name]):.4g}"
                    + ("" if at_once else f", as in the {IN_A_ROW - 1} before"),
                    done,
                )
        if not np.isfinite(np.asarray(metrics["loss"])).all():
            raise DivergedError(f"at step {done} its loss is {_worst(metrics['loss']):.4g}", done)


def skip_non_finite(step: TrainStep) -> TrainStep:
    """The step, which leaves out updates that would make the loss, the params, the model_state or the opt_state not finite.

    What was not finite before an update, such as a mask of -inf in the model_state, does not count. An optimizer whose own
    state becomes infinite by design is none for it.

    Where an update is left out, params, model_state and opt_state stay, the step is counted, and the metrics are 0.
    `optax.apply_if_finite` sees the gradient alone: by then the network's own statistics have become NaN.

    Args:
      step: of `make_train_step`; or of `make_mutual_step`, of which an update is left out for all networks or for none.

        Not of `make_sweep_step`: one student's fault would skip all; it takes the guarded step of one.

    Returns:
      A step of the same kind, with the metric ``"skipped"``: 1 where the update was left out, 0 elsewhere.

    Example:
      >>> from kdjax import cross_entropy, init_state, make_train_step, weighted_sum
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return inputs @ params, model_state
      >>> step = skip_non_finite(make_train_step(network, None, optax.sgd(0.5)))
      >>> state = init_state(Weights(jnp.eye(2), {}), optax.sgd(0.5), jax.random.key(0))
      >>> batch = {"inputs": jnp.array([[jnp.nan, 0.0]]), "labels": jnp.array([0])}
      >>> new, metrics = step(state, None, weighted_sum(labels=(1.0, cross_entropy)), batch)
      >>> new.params.tolist(), int(new.step), float(metrics["skipped"])
      ([[1.0, 0.0], [0.0, 1.0]], 1, 1.0)
    """

    def guarded(state: Any, teacher: Weights | None, objective: Any, batch: Batch) -> tuple[Any, Metrics]:
        if jnp.ndim(states_in(state)[0].step):
            raise ValueError(
                "step must be of one student, whose updates are skipped by themselves; of several in one program it is "
                "make_sweep_step(skip_non_finite(step))."
            )
        new, metrics = step(state, teacher, objective, batch)
        # A second moment that is infinite divides all later updates to 0.
        carried = ([(one.params, one.model_state, one.opt_state) for one in states_in(each)] for each in (new, state))
        good = jnp.isfinite(metrics["loss"]) & all_finite(*carried)

        def kept(own: TrainState, old: TrainState) -> TrainState:
            params, model_state, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), own[1:4], old[1:4])
            return TrainState(own.step, params, model_state, opt_state, own.rng)

        left = tuple(map(kept, states_in(new), states_in(state)))
        told = {name: jnp.where(good, value, 0.0) for name, value in metrics.items()}
        return (left[0] if isinstance(new, TrainState) else left), told | {"skipped": 1.0 - good}

    return guarded


def of_counted(means: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's means over the updates that were not skipped, from those over all.

    What the step counts is a mean over what was counted, of which a skipped update has nothing.

    Example:
      >>> of_counted({"loss": 1.5, "skipped": 0.25})
      {'loss': 2.0, 'skipped': 0.25}
    """
    share = 1.0 - np.asarray(means.get("skipped", 0.0), np.float64)
    whole = {"skipped", *(name for name in means if count_of(name) in means)}

    def over(value: Any) -> Any:
        mean = value / np.where(share == 0, 1.0, share)
        return mean if np.ndim(mean) else float(mean)

    return {name: value if name in whole else over(value) for name, value in means.items()}


def at_rate(optimizer: optax.GradientTransformation, rate: Number) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its learning rate times `rate`: its updates times it; its state is of the same form.

    Raises:
      ValueError: if `rate` is not a finite number above 0; later, as `check_rate_is_free`.

    Example:
      >>> slower = at_rate(optax.sgd(1.0), 0.5)
      >>> slower.update(jnp.ones(2), slower.init(jnp.ones(2)))[0].tolist()
      [-0.5, -0.5]
    """
    _checks.positive("rate", rate)
    inner = asking(optimizer)

    def update(gradient: Tree, state: Tree, params: Tree = None, **offered: Any) -> tuple[Tree, Tree]:
        check_rate_is_free(state)
        updates, new = inner.update(gradient, state, params, **offered)
        return jax.tree.map(lambda one: one * jnp.asarray(rate, one.dtype), updates), new

    return optax.GradientTransformationExtraArgs(inner.init, update)


def check_rate_is_free(state: Tree) -> None:
    """Refuses the state of an optimizer that keeps a copy of the params which it has moved: its updates are no rate's alone.

    Raises:
      ValueError: naming it.
    """

    def has_own(part: Any) -> bool:
        return type(part).__name__ in _OWN_PARAMS and getattr(part, "cache", part) is not None

    found = jax.tree.leaves(state, is_leaf=has_own)
    if odd := next((part for part in found if has_own(part)), None):
        raise ValueError(
            "diverged must be 'stop' or 'skip' with this optimizer: a lower rate would leave what its state has moved where "
            f"it is; its state has a {type(odd).__name__}."
        )


def all_finite(tree: Tree, before: Tree = None) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite, or those that were so `before`, as an array of one bool."""
    leaves = jax.tree.leaves(tree)
    pairs = zip(leaves, [0.0] * len(leaves) if before is None else jax.tree.leaves(before), strict=True)
    floats = [pair for pair in pairs if jnp.issubdtype(jnp.result_type(pair[0]), jnp.inexact)]
    return jnp.asarray([(jnp.isfinite(leaf) | ~jnp.isfinite(old)).all() for leaf, old in floats] or [True]).all()


def _worst(value: Any) -> float:
    """The number to name out of several students': one that is not finite, or the largest."""
    array = np.ravel(np.asarray(value, np.float64))
    odd = array[~np.isfinite(array)]
    return float(odd[0] if odd.size else array[np.argmax(np.abs(array))])
