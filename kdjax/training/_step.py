"""The train step and the evaluation step: pure functions that know gradients and, where told, a device axis."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from kdjax._types import Apply, Batch, Outputs, TrainState, Tree, Weights
from kdjax.connectors import Connector, connect
from kdjax.objectives._terms import cross_entropy, read_labels
from kdjax.objectives._weighted_sum import Objective

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


def make_train_step(
    student_apply: Apply,
    teacher_apply: Apply | None,
    optimizer: optax.GradientTransformation,
    *,
    connectors: Mapping[str, Connector] | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds ``step(state, teacher, objective, batch) -> (state, metrics)``, a pure function still to be compiled.

    The loss is the mean over the whole batch of the objective's weighted sum; its gradient with respect to the student's
    params goes through `optimizer`. The teacher is an argument: it is run in inference mode, no gradient enters it, and it
    stands neither in the state nor in the compiled program.

    Args:
      student_apply: the student; run with ``train=True`` and a fresh key each step.
      teacher_apply: the teacher, or None to train without one. Not run where the batch carries ``"teacher"``.
      optimizer: an optax transformation.
      connectors: learnt parts by name, from `kdjax.connectors`; the state is then of `init_beside`'s weights. They act on
        the gathered outputs, hence on the whole batch on every device.
      axis_name: the device axis, where the step runs inside `jax.pmap`, `jax.shard_map` or ``jax.vmap(axis_name=...)``
        and each device holds its part of the batch. Outputs are then gathered, so that a relational loss sees the
        whole batch. A student with BatchNorm or dropout must know the same axis, as `kdjax.models` do by their own
        ``axis_name``. Leave it None under `jax.jit`, also with a sharded batch: there arrays are whole by themselves.

    Returns:
      A function of

        - `state`: `TrainState`. Safe to donate.
        - `teacher`: the teacher's `Weights`, or None.
        - `objective`: from `weighted_sum`. Its numbers are traced.
        - `batch`: ``"inputs"`` [batch, …]; ``"labels"`` int [batch] where a term reads them; ``"teacher"``: cached
          `Outputs`.

      that returns the new state and float32 scalars: ``loss``, ``accuracy`` (with labels), each term's unweighted mean
      under its name, and its weight under ``<name>_weight``.

    Note:
      Several devices: the mean over `axis_name` is taken of the loss inside the differentiated function and of the
      gradients outside it. Under `jax.shard_map`, gradients of replicated params arrive summed, so the common
      "differentiate, then average" gives n times too much; under `jax.pmap`, the inner mean alone is wrong. Both
      together are right everywhere (tests/test_parallel.py, with the wrong forms as controls). Where `jax.shard_map`'s
      types say that the gradients are the same on all devices already, the outer mean would change nothing, and is left
      out: they travel once.
    """

    def step(
        state: TrainState, teacher: Weights | None, objective: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)
        taught = _teach(teacher_apply, teacher, batch)
        known = {name: value for name, value in batch.items() if name != "teacher"}

        def loss_of(params: Tree) -> tuple[Array, tuple[Tree, Tree, Metrics]]:
            (own, others), (own_state, others_state) = (
                _parts(tree, connectors) for tree in (params, state.model_state)
            )
            with jax.named_scope("student"):
                outputs, own_state = student_apply(own, own_state, batch["inputs"], train=True, rng=rng)
            outputs, whole_taught, whole_batch = gather((outputs, taught, known), axis_name)
            outputs, whole_taught, others_state = connect(
                connectors or {}, others, others_state, outputs, whole_taught, whole_batch, train=True, rng=rng
            )
            with jax.named_scope("loss"):
                loss, metrics = judge(objective, outputs, whole_taught, whole_batch, state.step, axis_name)
            return loss, (own_state, others_state, metrics)

        (_, (model_state, others_state, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        gradients, model_state, metrics = mean_over(axis_name, (gradients, model_state, metrics))
        if connectors is not None:
            others_state = _agreed(axis_name, others_state, state.model_state["connectors"])
            model_state = {"student": model_state, "connectors": others_state}
        with jax.named_scope("optimizer"):
            return update(optimizer, state, gradients, model_state), metrics

    return step


def judge(
    objective: Objective, student: Outputs, teacher: Outputs | None, batch: Batch, step: Array, axis_name: str | None
) -> tuple[Array, Metrics]:
    """The loss, averaged over the whole batch, and what a step reports. All outputs are whole."""
    scores = objective(student, teacher, batch, step)
    loss = mean_over(axis_name, jnp.mean(scores.total))
    metrics = {"loss": loss} | {name: jnp.mean(value) for name, value in scores.terms.items()}
    metrics |= {f"{name}_weight": weight for name, weight in scores.weights.items()}
    if "labels" in batch:
        metrics["accuracy"] = jnp.mean(_correct(student.logits, read_labels(batch, student.logits.shape[0])))
    return loss, metrics


def update(
    optimizer: optax.GradientTransformation, state: TrainState, gradients: Tree, model_state: Tree
) -> TrainState:
    """The next state; the gradients are averaged over devices already."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, model_state, opt_state, state.rng)


def make_eval_step(apply: Apply, *, axis_name: str | None = None) -> EvalStep:
    """Builds ``step(weights, batch) -> sums``, whose sums over batches divide into exact means whatever the remainder.

    Args:
      apply: the network; run with ``train=False``.
      axis_name: the device axis, as in `make_train_step`; the sums are then over all devices.

    Returns:
      A function of

        - `weights`: the network's `Weights`.
        - `batch`: ``"inputs"``, ``"labels"`` int [batch]; ``"mask"`` [batch], 0 where an example only fills up the batch;
          ``"teacher"``: the teacher's `Outputs`, to count agreement with it.

      that returns float32 scalars, sums over the examples whose mask is not 0: ``examples``, ``correct``,
      ``cross_entropy`` and, with a teacher, ``agreeing``: how often both networks' first choice is the same.
    """

    def step(weights: Weights, batch: Batch) -> Metrics:
        outputs, _ = apply(weights.params, weights.model_state, batch["inputs"], train=False)
        labels = read_labels(batch, outputs.logits.shape[0])
        mask = batch.get("mask", jnp.ones(labels.shape, jnp.float32))
        values = {
            "examples": jnp.ones_like(mask),
            "correct": _correct(outputs.logits, labels),
            "cross_entropy": cross_entropy(outputs, None, batch),
        }
        if "teacher" in batch:
            values["agreeing"] = _correct(outputs.logits, jnp.argmax(batch["teacher"].logits, axis=-1))
        # `where`, not a product: a padded example may be NaN, and 0 · NaN is NaN.
        sums = {name: jnp.sum(jnp.where(mask > 0, value, 0.0)) for name, value in values.items()}
        return sums if axis_name is None else lax.psum(sums, axis_name)

    return step


def _teach(teacher_apply: Apply | None, teacher: Weights | None, batch: Mapping[str, Any]) -> Outputs | None:
    """The teacher's outputs, from the batch or by running it; the one place where its gradient is stopped."""
    if "teacher" in batch:
        return lax.stop_gradient(batch["teacher"])
    if teacher_apply is None:
        return None
    if teacher is None:
        raise ValueError(
            "teacher must be the teacher's Weights, since the step was made with a teacher_apply; got None."
        )
    # Also on the way in: then nothing of the teacher's backward pass is ever built.
    params, model_state = lax.stop_gradient(teacher)
    with jax.named_scope("teacher"):
        outputs, _ = teacher_apply(params, model_state, batch["inputs"], train=False)
    return lax.stop_gradient(outputs)


def gather(tree: Tree, axis_name: str | None) -> Tree:
    """Every device's examples on every device, in order. What no term reads is dropped by the compiler."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda array: lax.all_gather(array, axis_name, tiled=True), tree)


def mean_over(axis_name: str | None, tree: Tree) -> Tree:
    """Averages floating-point leaves over the device axis; what is the same on all devices by its type stays."""
    if axis_name is None:
        return tree
    # Only where types tell: elsewhere no array varies by its type, not even a device's own number.
    typed = _varies(lax.axis_index(axis_name), axis_name)

    def mean(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or (typed and not _varies(leaf, axis_name)):
            return leaf
        averaged: Array = lax.pmean(leaf, axis_name)
        return averaged

    return jax.tree.map(mean, tree)


def _varies(leaf: Array, axis_name: str) -> bool:
    """Whether an array's type says that it differs between devices. A JAX whose types are others says so of none."""
    return axis_name in getattr(getattr(jax.typeof(leaf), "manual_axis_type", None), "varying", ())


def _parts(tree: Tree, connectors: Mapping[str, Connector] | None) -> tuple[Tree, Tree]:
    """The student's part of the params or the model_state, and the connectors'."""
    if connectors is None:
        return tree, {}
    if not (isinstance(tree, Mapping) and {*tree} == {"student", "connectors"}):
        raise ValueError(
            "state must hold the connectors beside the student, as init_beside makes them: params and model_state "
            f"{{'student': …, 'connectors': …}}; got {sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__}."
        )
    return tree["student"], tree["connectors"]


def _agreed(axis_name: str | None, new: Tree, old: Tree) -> Tree:
    """What every device computed alike from the whole batch, in a type that says so; what did not change stays."""
    if axis_name is None:
        return new
    return jax.tree.map(lambda leaf, before: leaf if leaf is before else lax.pmax(leaf, axis_name), new, old)


def _correct(logits: Array, labels: Array) -> Array:
    # The largest of NaNs would be class 0.
    return ((jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)).astype(jnp.float32)
