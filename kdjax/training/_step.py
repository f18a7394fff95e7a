"""The train step: a pure function that knows gradients and, where told, a device axis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Batch, Outputs, Shared, TrainState, Tree, Weights
from kdjax.connectors import Connector, connect
from kdjax.metrics._measures import correct
from kdjax.objectives._counted import (
    LABELLED,
    MASK,
    both,
    count_of,
    counting,
    keep,
    mean_of,
    read_counted,
    size_of,
    weighted,
)
from kdjax.objectives._places import places_of
from kdjax.objectives._supervised import are_classes
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._asked import asking, compared, functions_of_params, gradients_of_terms, total
from kdjax.training._axis import agreed, gather, mean_over
from kdjax.training._teach import teach
from kdjax.training.state import is_beside

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Weights | None, Objective, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    student_apply: Apply,
    teacher_apply: Apply | None,
    optimizer: optax.GradientTransformation,
    *,
    connectors: Mapping[str, Connector] | None = None,
    ignore_label: int | None = None,
    term_gradients: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds ``step(state, teacher, objective, batch) -> (state, metrics)``, a pure function still to be compiled.

    The loss is the objective's weighted sum of its terms' means over the whole batch; its gradient with respect to the
    student's params goes through `optimizer`. The teacher is an argument: it is run in inference mode, no gradient enters
    it, and it stands neither in the state nor in the compiled program.

    Args:
      student_apply: the student; run with ``train=True`` and a fresh key each step.
      teacher_apply: the teacher, or None to train without one. Not run where the batch carries ``"teacher"``; what the terms
        then read of it and is `Shared`, such as its head, is still taken from its weights.
      optimizer: an optax transformation.
        It may ask for ``value``, the loss; ``grad`` and ``value_fn``, for a line search; ``grad_fn``, as
        ``optax.contrib.sam`` does; ``counts``, by term how many entries its mean is of, or None where that is the same for
        all; ``term_gradients``, by term, weighted, where taken.
      connectors: learnt parts by name, from `kdjax.connectors`; the state is then of `init_beside`'s weights. They act on
        the gathered outputs, hence on the whole batch on every device.
      ignore_label: a label that is none, such as -100 or 255. Terms that read labels, and the accuracy, are then means
        over the entries that have another.
      term_gradients: whether each term's own gradient is taken, by one backward pass for each, and handed to `optimizer`,
        such as `distillation_oriented`; the metrics then have each one's ``<name>_gradient_norm`` and, of each two,
        ``<name>_gradient_cosine_<other>``.
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

      that returns the new state and float32 scalars: ``loss``, each term's unweighted mean under its name, its weight under
      ``<name>_weight``, what a schedule moves or a connector learns under ``<name>_temperature`` and the like, what `scaled`
      weighs a term by under ``<name>_scale``, and ``accuracy``, where labels are class numbers. A student that gives its
      head, a `Shared` feature, to terms that do not read its logits has none: they are not built for it. Where
      something is left out, ``"<name> count"`` says how many entries a term's mean, or the accuracy's, is of.

      What the mask leaves out changes no number, be labels or outputs there NaN: each mean is over the entries that count,
      on all devices together, and is 0 where none does. Inputs are left out of whole examples alone. What a network itself
      mixes a mask cannot undo: batch normalisation sees all examples, and attention all positions that the inputs do not
      tell it to leave out.

    Note:
      Several devices: the mean over `axis_name` is taken of the loss inside the differentiated function and of the
      gradients outside it. Under `jax.shard_map`, gradients of replicated params arrive summed, so the common
      "differentiate, then average" gives n times too much; under `jax.pmap`, the inner mean alone is wrong. Both
      together are right everywhere (tests/test_training_devices.py, with the wrong forms as controls). Where the types
      of `jax.shard_map` say that the gradients are the same on all devices already, the outer mean would change nothing,
      and is left out: they travel once.
    """
    _checks.function("student_apply", student_apply, "apply(params, model_state, inputs, *, train, rng=None)")
    if teacher_apply is not None:
        _checks.function("teacher_apply", teacher_apply, "apply(params, model_state, inputs, *, train, rng=None)")
    learner = Learner(student_apply, asking(optimizer), connectors, term_gradients)

    def step(
        state: TrainState, teacher: Weights | None, objective: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _checks.instance("state", state, TrainState, "a TrainState, as init_state makes it")
        _checks.instance("objective", objective, Objective, "one of weighted_sum")
        _checks.batch(batch)
        batch = counting(batch, ignore_label)
        taught = gather(teach(teacher_apply, teacher, batch, objective), axis_name)
        (state,), (metrics,) = learn([learner], [state], [objective], batch, lambda said: [taught], axis_name)
        return state, metrics

    return step


class Learner(NamedTuple):
    """A network that a step trains: its apply, its optimizer, its connectors by name, and whether terms are told apart."""

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    connectors: Mapping[str, Connector] | None
    term_gradients: bool = False


@partial(jax.tree_util.register_dataclass, data_fields=("numbers",), meta_fields=("places",))
@dataclass(frozen=True)
class _Counts:
    """How many entries each term counts: the different numbers, and by term which of them."""

    numbers: tuple[Any, ...]
    places: tuple[tuple[str, int], ...]

    def by_term(self) -> dict[str, Any]:
        """Terms that count the same have the same object, not an equal one."""
        return {name: self.numbers[place] for name, place in self.places}


class Judged(NamedTuple):
    """What an objective comes to over the whole batch: its weighted terms, what a step reports, and how many count."""

    parts: dict[str, Array]
    metrics: Metrics
    counts: _Counts


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

    def parts_of(all_params: list[Tree]) -> tuple[list[dict[str, Array]], list[tuple[Tree, Tree, Judged]]]:
        said, own_states, made = [], [], []
        for learner, params, state, rng in zip(learners, all_params, states, rngs, strict=True):
            own, own_state = (_parts(tree, learner.connectors)[0] for tree in (params, state.model_state))
            with jax.named_scope("student"):
                outputs, own_state = run(learner.apply, own, own_state, batch["inputs"], train=True, rng=rng)
            said.append(outputs)
            own_states.append(own_state)
        said, whole_batch = gather((said, known), axis_name)
        for outputs in said:
            _checks.floating("the student's logits", outputs.logits)
        said = keep(said, whole_batch.get(MASK))
        taught_each = keep(list(teach(said)), whole_batch.get(MASK))
        everything = zip(learners, all_params, states, objectives, said, taught_each, rngs, strict=True)
        for learner, params, state, objective, outputs, taught, rng in everything:
            others, others_state = (_parts(tree, learner.connectors)[1] for tree in (params, state.model_state))
            outputs, taught, others_state = connect(
                learner.connectors or {}, others, others_state, outputs, taught, whole_batch, train=True, rng=rng
            )
            with jax.named_scope("loss"):
                made.append((others_state, judge(objective, outputs, taught, whole_batch, state.step, axis_name)))
        # Each network's params reach its own terms alone: the gradient of their sum is each one's own.
        rest = [(own, others, judged) for own, (others, judged) in zip(own_states, made, strict=True)]
        return [judged.parts for _, judged in made], rest

    all_params = [state.params for state in states]
    parts, pull_back, judged = jax.vjp(parts_of, all_params, has_aux=True)
    (gradients,) = pull_back(jax.tree.map(jnp.ones_like, parts))
    new_states, all_metrics = [], []
    for number, (learner, state, gradient) in enumerate(zip(learners, states, gradients, strict=True)):
        own_state, others_state, (_, metrics, counts) = judged[number]
        gradient, model_state, metrics, counts = mean_over(axis_name, (gradient, own_state, metrics, counts))
        offered = {"counts": counts.by_term(), "grad": gradient, "value": metrics["loss"]}
        offered |= functions_of_params(parts_of, all_params, number, axis_name)
        if learner.term_gradients:
            offered["term_gradients"] = mean_over(axis_name, gradients_of_terms(pull_back, parts, number))
            metrics |= compared(offered["term_gradients"])
        if learner.connectors is not None:
            others_state = agreed(axis_name, others_state, state.model_state["connectors"])
            model_state = {"student": model_state, "connectors": others_state}
        with jax.named_scope("optimizer"):
            updates, opt_state = learner.optimizer.update(gradient, state.opt_state, state.params, **offered)
            params = optax.apply_updates(state.params, updates)
        new_states.append(TrainState(state.step + 1, params, model_state, opt_state, state.rng))
        all_metrics.append(metrics)
    return new_states, all_metrics


def judge(
    objective: Objective, student: Outputs, teacher: Outputs | None, batch: Batch, step: Array, axis_name: str | None
) -> Judged:
    """Each term's mean over the whole batch, weighted, and what a step reports. All outputs are whole."""
    scores = objective(student, teacher, batch, step)
    means = {name: mean_of(value, scores.counted[name]) for name, value in scores.terms.items()}
    parts = mean_over(axis_name, {name: weighted(scores.weights[name], mean) for name, mean in means.items()})
    metrics = {"loss": total(parts)} | means
    metrics |= {f"{name}_weight": weight.astype(jnp.float32) for name, weight in scores.weights.items()}
    if taken := sorted(scores.moving.keys() & means.keys()):
        raise ValueError(
            f"The name {taken[0]!r} is a term's and that of a number that moves in another; choose another for the term."
        )
    metrics = scores.moving | metrics
    if "labels" in batch and _logits_are_built(objective, student) and are_classes(batch["labels"], student.logits):
        entries = student.logits.shape[:-1]
        counted = both(read_counted(batch, MASK, entries), read_counted(batch, LABELLED, entries))
        right = correct(student.logits, batch["labels"])
        metrics["accuracy"] = mean_of(right, counted)
        if counted is not None:
            metrics[count_of("accuracy")] = size_of(right, counted)
    # Terms of one shape that leave out the same count the same.
    kinds = {name: (id(scores.counted[name]), value.shape) for name, value in scores.terms.items()}
    different = {kind: name for name, kind in kinds.items()}
    numbers = tuple(size_of(scores.terms[name], scores.counted[name]) for name in different.values())
    places = tuple((name, [*different].index(kind)) for name, kind in kinds.items())
    counts = _Counts(numbers, places)
    metrics |= {count_of(name): of for name, of in counts.by_term().items() if scores.counted[name] is not None}
    return Judged(parts, metrics, counts)


def _logits_are_built(objective: Objective, student: Outputs) -> bool:
    """Whether an accuracy costs nothing more: without a head among the features logits are what the network makes anyway."""
    gives_head = any(isinstance(feature, Shared) for feature in student.features.values())
    read = {place for term in objective.terms.values() for place in places_of(term) or ("student.logits",)}
    return not gives_head or bool(read & {"student.logits", "detached.logits"})


def _parts(tree: Tree, connectors: Mapping[str, Connector] | None) -> tuple[Tree, Tree]:
    """The student's part of the params or the model_state, and the connectors'."""
    if connectors is None:
        return tree, {}
    if not is_beside(tree):
        raise ValueError(
            "state must hold the connectors beside the student, as init_beside makes them: params and model_state "
            f"{{'student': …, 'connectors': …}}; got {sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__}."
        )
    return tree["student"], tree["connectors"]


def _refuse_moving_connectors(learners: Sequence[Learner], states: Sequence[TrainState]) -> None:
    for learner, state in zip(learners, states, strict=True):
        its_state = _parts(state.model_state, learner.connectors)[1]
        moving = set()
        for name, connector in (learner.connectors or {}).items():
            leaves = jax.tree.leaves(its_state.get(name, {}))
            carries = any(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves)
            told = connector.compares_examples
            if told or (told is None and carries):
                moving.add(name)
        if moving:
            raise ValueError(
                f'batch must have no "mask" beside the connectors {", ".join(sorted(moving))}: what they compute or carry '
                "from step to step, such as batch statistics or a bank, is of all examples. Leave out examples before they "
                "are in a batch."
            )
