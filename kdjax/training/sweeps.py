"""Many students at once: one compilation and one pass of the teacher for all settings of a search.

What the students differ in are numbers: seeds, the objective's weights and temperatures, the optimiser's learning rate.
Stacked, those numbers get a leading axis ``[students]``. Names, functions and shapes are the same for all.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import _checks
from kdjax._types import Apply, Batch, TrainState, Tree, Weights
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._step import Metrics, TrainStep
from kdjax.training._teach import teach

SweepStep = Callable[[TrainState, Weights | None, Objective, Batch], tuple[TrainState, Metrics]]


def stack(trees: Sequence[Tree]) -> Tree:
    """One pytree of all students' numbers: each leaf gets a leading axis, [students, …].

    Args:
      trees: one a student: objectives, or states. They may differ in their numbers only.

    Returns:
      A pytree of the same structure. Numbers become arrays of one fixed type, so that no later step compiles again.

    Raises:
      ValueError: if there are none, or one differs from the first in structure or in a leaf's shape or type; it says
        in what.

    Example:
      One objective a setting; `itertools.product` makes a grid.

      >>> from itertools import product
      >>> from kdjax import on_logits, weighted_sum
      >>> from kdjax.losses import soft_target_kl
      >>> def objective(temperature, weight):
      ...     return weighted_sum(soft=(weight, on_logits(soft_target_kl, temperature=temperature)))
      >>> many = stack([objective(*setting) for setting in product([4.0, 4.5], [0.5, 1.0])])
      >>> many.weights["soft"].tolist()
      [0.5, 1.0, 0.5, 1.0]

      A learning rate is a number of the optimiser's state, where optax is told to keep it there.

      >>> import optax
      >>> from kdjax import Weights, init_state
      >>> optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
      >>> def state(seed, rate):
      ...     fresh = init_state(Weights({"w": jnp.zeros(3)}, {}), optimizer, jax.random.key(seed))
      ...     return fresh._replace(opt_state=optax.tree.set(fresh.opt_state, learning_rate=rate))
      >>> stack([state(0, 0.125), state(1, 0.25)]).opt_state.hyperparams["learning_rate"].tolist()
      [0.125, 0.25]
    """
    if not isinstance(trees, Sequence):
        raise ValueError(f"trees must be a list of pytrees, one for each student; got a {type(trees).__name__}.")
    if not trees:
        raise ValueError("trees must hold one pytree a student, and one student at least; got none.")
    first, *others = trees
    for number, other in enumerate(others, 1):
        if difference := _difference(first, other):
            raise ValueError(f"trees must differ in numbers only; number {number} differs from number 0: {difference}.")
    return jax.tree.map(_stacked, *trees)


def unstack(tree: Tree) -> list[Tree]:
    """The students' own pytrees again: `stack` undone.

    Example:
      >>> [float(one["w"]) for one in unstack({"w": jnp.array([1.0, 2.0])})]
      [1.0, 2.0]
    """
    students = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(students) != 1 or () in students:
        raise ValueError(f"tree must have one leading axis in all leaves, [students, …]; got {sorted(students)}.")
    return _apart(tree, students.pop()[0])


def make_sweep_step(step: TrainStep, teacher_apply: Apply | None = None) -> SweepStep:
    """Builds ``sweep(states, teacher, objectives, batch) -> (states, metrics)``: one update of every student.

    One program in which every operation does all students' work: what a GPU or TPU wants, whose one small student leaves
    most of it idle. On a CPU `jax.vmap` turns convolutions into slow grouped ones: train such students one after the other
    with `step` itself, whose program serves all of them, since what they differ in is traced.

    Args:
      step: from `make_train_step`, made without a teacher: it is run here, once for all students.
      teacher_apply: the teacher, or None to train without one. Not run where the batch carries ``"teacher"``.

    Returns:
      A function of

        - `states`: `stack` of the students' `TrainState`. Safe to donate.
        - `teacher`: the teacher's `Weights`, or None.
        - `objectives`: `stack` of the students' objectives.
        - `batch`: as in `make_train_step`; all students see the same one.

      that returns the new states, for the next call or for `unstack`, and the step's metrics, each [students].

    Raises:
      ValueError: later, if the students' axes differ, their keys are not of threefry2x32, or the teacher is missing or has
        no teacher_apply.

    Note:
      Students of different seeds differ in their initial weights and in their dropout, not in the order of the data nor in
      the teacher. An interval over such seeds says nothing about those two: repeat the sweep for that.
    """
    _checks.function("step", step, "step(state, teacher, objective, batch)")

    def sweep(
        states: TrainState, teacher: Weights | None, objectives: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _checks.instance("states", states, TrainState, "a TrainState, stacked as by stack([state, …])")
        _check_axes(objectives=objectives, states=states)
        taught = dict(batch) | _teach(teacher_apply, teacher, batch, objectives)
        return jax.vmap(step, in_axes=(0, None, 0, None))(states, None, objectives, taught)

    return sweep


def _teach(teacher_apply: Apply | None, teacher: Weights | None, batch: Batch, objectives: Objective) -> dict[str, Any]:
    """The teacher's outputs as an entry of the batch, with all that the objectives read of it."""
    if teacher is None and (teacher_apply is None or "teacher" in batch):
        return {}
    if teacher_apply is None or teacher is None:
        raise ValueError(
            "teacher_apply and teacher belong together, the function and its Weights; "
            f"got no {'teacher_apply' if teacher_apply is None else 'teacher'}."
        )
    return {"teacher": teach(teacher_apply, teacher, batch, objectives)}


def _check_axes(*, objectives: Objective, states: TrainState) -> None:
    if jnp.ndim(states.step) != 1:
        raise ValueError(
            f"states must be stacked, [students, …], as by stack([state, …]); their step has shape {jnp.shape(states.step)}."
        )
    if (kind := jax.random.key_impl(states.rng)) != "threefry2x32":
        raise ValueError(
            "states must have keys of threefry2x32, whose draws under jax.vmap are those of each student alone; got keys of "
            f"{kind}. Begin each by init_state(..., jax.random.key(seed, impl='threefry2x32'))."
        )
    students = len(states.step)
    for name, tree in (("objectives", objectives), ("states", states)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            if jnp.shape(leaf)[:1] != (students,):
                raise ValueError(
                    f"{name} must be stacked for {students} students, as the states are; "
                    f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}."
                )


@partial(jax.jit, static_argnums=1)
def _apart(tree: Tree, students: int) -> list[Tree]:
    return [jax.tree.map(lambda leaf, n=number: leaf[n], tree) for number in range(students)]


def _stacked(*leaves: Any) -> jax.Array:
    # Python's numbers have weak types; the step gives back strong ones, and would then compile twice.
    return jnp.stack([jnp.asarray(leaf, jnp.result_type(leaf)) for leaf in leaves])


def _difference(first: Tree, other: Tree) -> str:
    """What else than numbers two pytrees differ in, at the deepest place that holds the difference; "" if nothing."""
    if _structure(first) == _structure(other):
        for (path, leaf), another in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(other), strict=True):
            if _kind(leaf) != _kind(another):
                return f"{jax.tree_util.keystr(path)} has {_kind(another)}, and not {_kind(leaf)}".lstrip()
        return ""
    here, there = _children(first), _children(other)
    if here.keys() == there.keys() and type(first) is type(other):
        for name in here:
            if _structure(here[name]) != _structure(there[name]):
                return f"{name}{_difference(here[name], there[name])}"
    return f" is {_named(other)}, and not {_named(first)}"


def _kind(leaf: Any) -> str:
    return f"shape {jnp.shape(leaf)} and dtype {jnp.result_type(leaf)}"


def _children(node: Tree) -> dict[str, Tree]:
    found = jax.tree.leaves_with_path(node, is_leaf=lambda inner: inner is not node)
    return {jax.tree_util.keystr(path): child for path, child in found if path}


def _structure(tree: Tree) -> Any:
    return jax.tree.structure(tree)


def _named(node: Tree) -> str:
    """A pytree's structure, functions by their names alone."""
    text = str(_structure(node)).removeprefix("PyTreeDef(").removesuffix(")")
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", text)
