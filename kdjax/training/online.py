"""Networks that learn while they teach: several from each other, or one from its own running average."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Apply, Batch, Number, TrainState, Tree, Weights
from kdjax.networks.ensembles import fixed_shares, pooled
from kdjax.objectives import schedules
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._step import Metrics, TrainStep, gather, judge, mean_over, update

MutualStep = Callable[
    [Sequence[TrainState], Sequence[Objective], Batch], tuple[tuple[TrainState, ...], tuple[Metrics, ...]]
]
FollowingStep = Callable[[TrainState, Weights, Objective, Batch], tuple[TrainState, Weights, Metrics]]


def make_mutual_step(
    applies: Sequence[Apply], optimizers: Sequence[optax.GradientTransformation], *, axis_name: str | None = None
) -> MutualStep:
    """Builds a step in which each network learns from the others as they are now: deep mutual learning.

    Each network's teacher is what the others say of the same batch, in training mode, with the gradient stopped. With a
    peer in the role of the teacher this is also how a large network and a small one learn together.

    Args:
      applies: two networks or more; any frameworks and sizes, the same classes.
      optimizers: one for each.
      axis_name: as in `make_train_step`.

    Returns:
      ``step(states, objectives, batch) -> (states, metrics)``, tuples with one entry a network. Each objective says what
      its network learns from the labels and from its peers: with two networks the teacher's `Outputs` are the peer's
      own; with more, the logits are of the mean probabilities of the others, and feature ``name`` of the i-th of them is
      ``"i/name"``, as in `ensemble`.

    Raises:
      ValueError: if there are fewer than two networks, or not one optimizer, state and objective for each.

    Example:
      >>> from kdjax import Outputs, cross_entropy, init_state, on_logits, weighted_sum
      >>> from kdjax.losses import soft_target_kl
      >>> def apply(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {}), model_state
      >>> step = make_mutual_step([apply, apply], [optax.sgd(0.1)] * 2)
      >>> states = [init_state(Weights(scale * jnp.eye(3), {}), optax.sgd(0.1), jax.random.key(0)) for scale in (1, -1)]
      >>> goal = weighted_sum(labels=(1, cross_entropy), peer=(1, on_logits(soft_target_kl, temperature=1)))
      >>> batch = {"inputs": jnp.eye(3), "labels": jnp.arange(3)}
      >>> states, metrics = step(states, [goal, goal], batch)
      >>> len(states), bool(metrics[0]["peer"] > 0)
      (2, True)

    Note:
      All learn from one moment: the paper's algorithm lets each see the peer's newest update, which costs another forward
      pass a network. Among more than two, it takes the mean of the divergences from each peer; that from the mean of
      their probabilities has the same gradient at T = 1.

    Reference:
      Zhang, Xiang, Hospedales and Lu, Deep Mutual Learning, 2018, sections 2.1 to 2.3. https://arxiv.org/abs/1706.00384
    """
    count = len(applies)
    if count < 2:
        raise ValueError(f"applies must be two networks or more; got {count}.")
    _one_each("optimizers", optimizers, count)
    share_out = fixed_shares(None, count - 1)

    def step(
        states: Sequence[TrainState], objectives: Sequence[Objective], batch: Batch
    ) -> tuple[tuple[TrainState, ...], tuple[Metrics, ...]]:
        _one_each("states", states, count)
        _one_each("objectives", objectives, count)
        known = {name: value for name, value in batch.items() if name != "teacher"}

        def loss_of(all_params: tuple[Tree, ...]) -> tuple[Array, tuple[list[Tree], list[Metrics]]]:
            said, new_states = [], []
            for apply, params, state in zip(applies, all_params, states, strict=True):
                rng = jax.random.fold_in(state.rng, state.step)
                outputs, model_state = apply(params, state.model_state, batch["inputs"], train=True, rng=rng)
                said.append(gather(outputs, axis_name))
                new_states.append(model_state)
            whole_batch = gather(known, axis_name)
            losses, metrics = [], []
            for own in range(count):
                others = lax.stop_gradient(said[:own] + said[own + 1 :])
                peers = others[0] if count == 2 else pooled(others, mean="probabilities", share_out=share_out)
                loss, its = judge(objectives[own], said[own], peers, whole_batch, states[own].step, axis_name)
                losses.append(loss)
                metrics.append(its)
            # Each network's params reach its own loss alone: the gradient of the sum is each one's own.
            return jnp.sum(jnp.stack(losses)), (new_states, metrics)

        params = tuple(state.params for state in states)
        (_, (model_states, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        gradients, model_states, metrics = mean_over(axis_name, (gradients, model_states, metrics))
        return tuple(map(update, optimizers, states, gradients, model_states)), tuple(metrics)

    return step


def make_following_step(step: TrainStep, decay: Number | schedules.Schedule) -> FollowingStep:
    """Builds a step whose teacher is the student's own running average: a mean teacher, self-distillation in one run.

    After each update, teacher ← decay · teacher + (1 − decay) · student, for parameters and running statistics alike.

    Args:
      step: from `make_train_step`, the teacher's apply being the student's own.
      decay: how much of the teacher stays in a step, between 0 and 1; a number or a schedule of the step.

    Returns:
      ``step(state, teacher, objective, batch) -> (state, teacher, metrics)``. Both the state and the teacher may be
      donated; both belong into a checkpoint. Start with a copy of the student's own weights.

    Raises:
      ValueError: if the decay is not between 0 and 1; later, if the teacher's tree is not the student's.

    Reference:
      Tarvainen and Valpola, Mean teachers are better role models, 2017, equation 1. https://arxiv.org/abs/1703.01780
    """
    _checks.between("decay", schedules.at(decay, 0), 0.0, 1.0)

    def following(
        state: TrainState, teacher: Weights, objective: Objective, batch: Batch
    ) -> tuple[TrainState, Weights, Metrics]:
        kept = schedules.at(decay, state.step)
        state, metrics = step(state, teacher, objective, batch)
        return state, follow(teacher, Weights(state.params, state.model_state), kept), metrics

    return following


def follow(teacher: Weights, student: Weights, decay: Number) -> Weights:
    """The exponential moving average of weights: decay · teacher + (1 − decay) · student.

    Leaves that are no floating-point numbers, such as counters, are the student's. The average is taken in float32 at
    least, and kept in the teacher's dtype.

    Raises:
      ValueError: if the two trees differ, or the decay is not between 0 and 1.

    Example:
      >>> follow(Weights(jnp.array([1.0]), {}), Weights(jnp.array([3.0]), {}), 0.75).params.tolist()
      [1.5]
    """
    _checks.between("decay", decay, 0.0, 1.0)
    its, own = (str(jax.tree.structure(tree)) for tree in (teacher, student))
    if its != own:
        raise ValueError(f"teacher must have the student's tree, to be its average; got {its} for {own}.")

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        wide = jnp.promote_types(old.dtype, jnp.float32)
        return (decay * old.astype(wide) + (1 - decay) * new.astype(wide)).astype(old.dtype)

    averaged: Tree = jax.tree.map(average, teacher, student)
    return Weights(*averaged)


def _one_each(name: str, values: Sequence, count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{name} must be one for each of the {count} networks; got {len(values)}.")
