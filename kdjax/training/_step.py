"""The train step and the evaluation step: pure functions that know gradients and, where told, a device axis."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from kdjax import _checks
from kdjax._apply import outputs_of, run
from kdjax._types import Apply, Batch, Outputs, TrainState, Tree, Weights
from kdjax.connectors import Connector, connect, student_of
from kdjax.metrics import accuracy, agreeing, sums_of
from kdjax.metrics._measures import correct
from kdjax.objectives._counted import LABELLED, MASK, both, keep, mean_of, read_counted, weighted, without_ignored
from kdjax.objectives._supervised import are_classes, cross_entropy
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._axis import agreed, gather, mean_over

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Weights | None, Objective, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Weights, Batch], Metrics]


def init_state(weights: Weights, optimizer: optax.GradientTransformation, rng: PRNGKeyArray) -> TrainState:
    """The state before the first step.

    Args:
      weights: the student's, and a connector's beside them.
      optimizer: any optax transformation. It sees ``weights.params`` and nothing else.
      rng: a key. Step number n draws from ``fold_in(rng, n)``, so a resumed run draws what an unbroken one would.
    """
    # Copies: a compiled step takes its state's memory, and these weights may be another student's, or the teacher's.
    params, model_state, rng = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (*weights, rng))
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), rng)


def weights_of(state: Any) -> Any:
    """The weights to evaluate and to keep, out of any step's state: of the student alone, without its connectors.

    Args:
      state: a `TrainState`; a pair (state, average), whose average it is; one in a phase; a tuple of states, for a tuple
        of weights.

    Raises:
      ValueError: if `state` is none of them.
    """
    if isinstance(state, TrainState):
        weights = Weights(state.params, state.model_state)
        return student_of(weights) if _is_beside(state.params) else weights
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Weights):
        return state[1]
    if hasattr(state, "state"):
        return weights_of(state.state)
    if isinstance(state, tuple) and state:
        return tuple(map(weights_of, state))
    raise ValueError(f"state must be a TrainState, a pair (state, average) or a tuple of states; got {type(state)}.")


def make_train_step(
    student_apply: Apply,
    teacher_apply: Apply | None,
    optimizer: optax.GradientTransformation,
    *,
    connectors: Mapping[str, Connector] | None = None,
    ignore_label: int | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds ``step(state, teacher, objective, batch) -> (state, metrics)``, a pure function still to be compiled.

    The loss is the objective's weighted sum of its terms' means over the whole batch; its gradient with respect to the
    student's params goes through `optimizer`. The teacher is an argument: it is run in inference mode, no gradient enters it, and it
    stands neither in the state nor in the compiled program.

    Args:
      student_apply: the student; run with ``train=True`` and a fresh key each step.
      teacher_apply: the teacher, or None to train without one. Not run where the batch carries ``"teacher"``.
      optimizer: an optax transformation.
      connectors: learnt parts by name, from `kdjax.connectors`; the state is then of `init_beside`'s weights. They act on
        the gathered outputs, hence on the whole batch on every device.
      ignore_label: a label that is none, such as -100 or 255. Terms that read labels, and the accuracy, are then means
        over the entries that have another.
      axis_name: the device axis, where the step runs inside `jax.pmap`, `jax.shard_map` or ``jax.vmap(axis_name=...)``
        and each device holds its part of the batch. Outputs are then gathered, so that a relational loss sees the
        whole batch. A student with BatchNorm or dropout must know the same axis, as `kdjax.models` do by their own
        ``axis_name``. Leave it None under `jax.jit`, also with a sharded batch: there arrays are whole by themselves.

    Returns:
      A function of

        - `state`: `TrainState`. Safe to donate.
        - `teacher`: the teacher's `Weights`, or None.
        - `objective`: from `weighted_sum`. Its numbers are traced.
        - `batch`: ``"inputs"`` [batch, …]; ``"labels"`` as the terms read them, such as int [batch] or [batch, time];
          ``"teacher"``: cached `Outputs`; ``"mask"``, [batch] or [batch, *positions], 0 where an entry does not count;
          ``"labelled"``, of the labels' shape, 0 where there is no label.

      that returns the new state and float32 scalars: ``loss``, ``accuracy`` (where labels are class numbers), each term's
      unweighted mean under its name, and its weight under ``<name>_weight``.

      What the mask leaves out changes no number, be it NaN: each mean is over the entries that count, on all devices
      together, and is 0 where none does. What a network itself mixes it cannot undo: batch normalisation sees all
      examples, and attention all positions that the inputs do not tell it to leave out.

    Note:
      Several devices: the mean over `axis_name` is taken of the loss inside the differentiated function and of the
      gradients outside it. Under `jax.shard_map`, gradients of replicated params arrive summed, so the common
      "differentiate, then average" gives n times too much; under `jax.pmap`, the inner mean alone is wrong. Both
      together are right everywhere (tests/test_training_devices.py, with the wrong forms as controls). Where the types
      of `jax.shard_map` say that the gradients are the same on all devices already, the outer mean would change nothing,
      and is left out: they travel once.
    """
    learner = Learner(student_apply, optax.with_extra_args_support(optimizer), connectors)

    def step(
        state: TrainState, teacher: Weights | None, objective: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        batch = counting(batch, ignore_label)
        taught = gather(_teach(teacher_apply, teacher, batch), axis_name)
        (state,), (metrics,) = learn([learner], [state], [objective], batch, lambda said: [taught], axis_name)
        return state, metrics

    return step


class Learner(NamedTuple):
    """A network that a step trains: its apply, its optimizer, and its connectors by name."""

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    connectors: Mapping[str, Connector] | None


def learn(
    learners: Sequence[Learner],
    states: Sequence[TrainState],
    objectives: Sequence[Objective],
    batch: Batch,
    teach: Callable[[list[Outputs]], Sequence[Outputs | None]],
    axis_name: str | None,
) -> tuple[list[TrainState], list[Metrics]]:
    """One update of each network, all from one moment: the one place where a gradient is taken.

    Args:
      learners: the networks.
      states: one for each.
      objectives: one for each.
      batch: what all of them see.
      teach: from what the networks say of the whole batch, to each one's teacher's outputs, also of the whole batch.
      axis_name: as in `make_train_step`.
    """
    if MASK in batch:
        _refuse_moving_connectors(learners, states)
    rngs = [jax.random.fold_in(state.rng, state.step) for state in states]
    known = {name: value for name, value in batch.items() if name != "teacher"}

    def loss_of(all_params: list[Tree]) -> tuple[Array, list[tuple[Tree, Tree, Metrics]]]:
        said, own_states, made = [], [], []
        for learner, params, state, rng in zip(learners, all_params, states, rngs, strict=True):
            own, own_state = (_parts(tree, learner.connectors)[0] for tree in (params, state.model_state))
            with jax.named_scope("student"):
                outputs, own_state = run(learner.apply, own, own_state, batch["inputs"], train=True, rng=rng)
            said.append(outputs)
            own_states.append(own_state)
        said, whole_batch = gather((said, known), axis_name)
        said = keep(said, whole_batch.get(MASK))
        everything = zip(learners, all_params, states, objectives, said, teach(said), rngs, strict=True)
        for learner, params, state, objective, outputs, taught, rng in everything:
            others, others_state = (_parts(tree, learner.connectors)[1] for tree in (params, state.model_state))
            outputs, taught, others_state = connect(
                learner.connectors or {}, others, others_state, outputs, taught, whole_batch, train=True, rng=rng
            )
            with jax.named_scope("loss"):
                made.append((others_state, judge(objective, outputs, taught, whole_batch, state.step, axis_name)))
        # Each network's params reach its own loss alone: the gradient of the sum is each one's own.
        total = reduce(operator.add, [loss for _, (loss, _) in made])
        return total, [(own, others, its) for own, (others, (_, its)) in zip(own_states, made, strict=True)]

    all_params = [state.params for state in states]
    (_, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(all_params)
    new_states, all_metrics = [], []
    for learner, state, gradient, (own_state, others_state, metrics) in zip(
        learners, states, gradients, parts, strict=True
    ):
        gradient, model_state, metrics = mean_over(axis_name, (gradient, own_state, metrics))
        if learner.connectors is not None:
            others_state = agreed(axis_name, others_state, state.model_state["connectors"])
            model_state = {"student": model_state, "connectors": others_state}
        with jax.named_scope("optimizer"):
            new_states.append(_updated(learner.optimizer, state, gradient, model_state, metrics["loss"]))
        all_metrics.append(metrics)
    return new_states, all_metrics


def judge(
    objective: Objective, student: Outputs, teacher: Outputs | None, batch: Batch, step: Array, axis_name: str | None
) -> tuple[Array, Metrics]:
    """The loss, averaged over the whole batch, and what a step reports. All outputs are whole."""
    scores = objective(student, teacher, batch, step)
    means = {name: mean_of(value, scores.counted[name]) for name, value in scores.terms.items()}
    parts = [weighted(scores.weights[name], mean) for name, mean in means.items()]
    loss = mean_over(axis_name, reduce(operator.add, parts, jnp.zeros((), jnp.float32)))
    metrics = {"loss": loss} | means
    metrics |= {f"{name}_weight": weight.astype(jnp.float32) for name, weight in scores.weights.items()}
    if "labels" in batch and are_classes(batch["labels"], student.logits):
        entries = student.logits.shape[:-1]
        counted = both(read_counted(batch, MASK, entries), read_counted(batch, LABELLED, entries))
        metrics["accuracy"] = mean_of(correct(student.logits, batch["labels"]), counted)
    return loss, metrics


def counting(batch: Batch, ignore_label: int | None) -> Batch:
    """The batch as networks and terms see it: without ignored labels, and without inputs of examples that do not count.

    Raises:
      ValueError: if the mask or the labels do not belong to the inputs' examples.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch["inputs"])}
    for name in {"labels", MASK, LABELLED} & batch.keys():
        if jnp.shape(batch[name])[:1] not in sizes:
            raise ValueError(
                f'batch["{name}"] must have one row for each example of batch["inputs"], {sorted(sizes)}; '
                f"got shape {jnp.shape(batch[name])}."
            )
    batch = without_ignored(batch, ignore_label)
    if MASK not in batch:
        return batch
    mask = read_counted(batch, MASK, jnp.shape(batch[MASK]))
    examples = jnp.any(mask, axis=tuple(range(1, mask.ndim)))
    return {**batch, "inputs": keep(batch["inputs"], examples), MASK: mask}


def _updated(
    optimizer: optax.GradientTransformationExtraArgs, state: TrainState, gradient: Tree, model_state: Tree, loss: Array
) -> TrainState:
    """The next state; the gradient and the loss are averaged over devices already."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, model_state, opt_state, state.rng)


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

    def step(weights: Weights, batch: Batch) -> Metrics:
        batch = counting(batch, ignore_label)
        outputs, _ = run(apply, weights.params, weights.model_state, batch["inputs"], train=False)
        taught = outputs_of(batch["teacher"], 'batch["teacher"]') if "teacher" in batch else None
        if taught is not None:
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


def _teach(teacher_apply: Apply | None, teacher: Weights | None, batch: Mapping[str, Any]) -> Outputs | None:
    """The teacher's outputs, from the batch or by running it; the one place where its gradient is stopped."""
    if "teacher" in batch:
        return lax.stop_gradient(outputs_of(batch["teacher"], 'batch["teacher"]'))
    if teacher_apply is None:
        return None
    if teacher is None:
        raise ValueError(
            "teacher must be the teacher's Weights, since the step was made with a teacher_apply; got None."
        )
    # Also on the way in: then nothing of the teacher's backward pass is ever built.
    params, model_state = lax.stop_gradient(teacher)
    with jax.named_scope("teacher"):
        outputs, _ = run(teacher_apply, params, model_state, batch["inputs"], train=False)
    return lax.stop_gradient(outputs)


def _parts(tree: Tree, connectors: Mapping[str, Connector] | None) -> tuple[Tree, Tree]:
    """The student's part of the params or the model_state, and the connectors'."""
    if connectors is None:
        return tree, {}
    if not _is_beside(tree):
        raise ValueError(
            "state must hold the connectors beside the student, as init_beside makes them: params and model_state "
            f"{{'student': …, 'connectors': …}}; got {sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__}."
        )
    return tree["student"], tree["connectors"]


def _refuse_moving_connectors(learners: Sequence[Learner], states: Sequence[TrainState]) -> None:
    for learner, state in zip(learners, states, strict=True):
        its_state = _parts(state.model_state, learner.connectors)[1]
        moving = sorted(name for name, tree in its_state.items() if jax.tree.leaves(tree))
        if moving:
            raise ValueError(
                f'batch must have no "mask" beside the connectors {", ".join(moving)}: what they carry from step to step, '
                "such as batch statistics or a bank, is of all examples. Leave out examples before they are in a batch."
            )


def _is_beside(tree: Tree) -> bool:
    """Whether `init_beside` made it."""
    return isinstance(tree, Mapping) and {*tree} == {"student", "connectors"}
