"""Many students at once: one compilation and one pass of the teacher for all settings of a search.

What the students differ in are numbers: seeds, the objective's weights and temperatures, the optimiser's learning rate.
Stacked, those numbers get a leading axis ``[students]``. Names, functions and shapes are the same for all.
"""

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import _checks
from kdjax._types import Apply, Batch, TrainState, Tree, Weights
from kdjax.objectives._weighted_sum import Objective
from kdjax.training._step import Metrics, TrainStep

WAYS = ("vmap", "one by one")
States = TrainState | list[TrainState]  # stacked, or one by one
SweepStep = Callable[[Any, Weights | None, Objective, Batch], tuple[Any, Metrics]]


class Choice(NamedTuple):
    """The faster way on this machine, for these shapes.

    Attributes:
      way: ``"vmap"`` or ``"one by one"``.
      step: the compiled sweep step of that way.
      milliseconds: by way, the median time of a step of all students.
    """

    way: str
    step: SweepStep
    milliseconds: dict[str, float]


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
    if not trees:
        raise ValueError("trees must hold one pytree a student, and one student at least; got none.")
    first, *others = trees
    for number, other in enumerate(others, 1):
        if difference := _difference(first, other):
            raise ValueError(f"trees must differ in numbers only; number {number} differs from number 0: {difference}.")
    return jax.tree.map(_stacked, *trees)


def unstack(tree: Tree) -> list[Tree]:
    """The students' own pytrees again: `stack` undone. What is a list of them already stays as it is.

    Example:
      >>> [float(one["w"]) for one in unstack({"w": jnp.array([1.0, 2.0])})]
      [1.0, 2.0]
    """
    if isinstance(tree, list):
        return tree
    students = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(students) != 1 or () in students:
        raise ValueError(f"tree must have one leading axis in all leaves, [students, …]; got {sorted(students)}.")
    return _apart(tree, students.pop()[0])


def make_sweep_step(step: TrainStep, teacher_apply: Apply | None, *, way: str) -> SweepStep:
    """Compiles ``sweep(states, teacher, objectives, batch) -> (states, metrics)``: one update of every student.

    Args:
      step: from `make_train_step`, made without a teacher: it is run here, once for all students.
      teacher_apply: the teacher, or None to train without one. Not run where the batch carries ``"teacher"``.
      way: ``"vmap"``, one program in which every operation does all students' work: what a GPU or TPU wants, whose one
        small student leaves most of it idle; or ``"one by one"``, one program for a student, called for each: what a
        CPU wants, where `jax.vmap` turns convolutions into slow grouped ones. `choose_way` measures which is faster.

    Returns:
      A function of
        states: `stack` of the students' `TrainState`, or what the last call gave back. Donated: keep only what comes back.
        teacher: the teacher's `Weights`, or None.
        objectives: `stack` of the students' objectives.
        batch: as in `make_train_step`; all students see the same one.
      that returns the new states, to be handed to the next call, or to `unstack` in the end; and the step's metrics, each
      [students]. It compiles at its first call, and never again for other numbers.

    Raises:
      ValueError: if `way` is none of the two; when called, if the students' axes differ, or the teacher is missing or has
        no teacher_apply.

    Note:
      Students of different seeds differ in their initial weights and in their dropout, not in the order of the data nor in
      the teacher. An interval over such seeds says nothing about those two: repeat the sweep for that.
    """
    _checks.one_of("way", way, WAYS)
    return _together(step, teacher_apply) if way == "vmap" else _in_turn(step, teacher_apply)


def choose_way(
    step: TrainStep,
    teacher_apply: Apply | None,
    states: States,
    teacher: Weights | None,
    objectives: Objective,
    batch: Batch,
    *,
    rounds: int = 5,
) -> Choice:
    """Times both ways on the real arrays, where they lie, and gives back the faster one, compiled.

    Args:
      step: as in `make_sweep_step`.
      teacher_apply: likewise.
      states: as the sweep step takes them; not donated here.
      teacher: likewise.
      objectives: likewise.
      batch: likewise.
      rounds: how many steps of each way are timed, in turns, after one that compiles.

    Returns:
      A `Choice`.

    Raises:
      ValueError: if rounds is less than 1; or as the sweep step does.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}.")
    steps = {way: make_sweep_step(step, teacher_apply, way=way) for way in WAYS}
    copies: dict[str, Any] = {way: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), states) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, sweep in steps.items():
            jax.block_until_ready(copies[way])
            started = time.perf_counter()
            copies[way], metrics = sweep(copies[way], teacher, objectives, batch)
            jax.block_until_ready((copies[way], metrics))
            if number:
                seconds[way].append(time.perf_counter() - started)
    milliseconds = {way: 1000 * sorted(times)[len(times) // 2] for way, times in seconds.items()}
    way = min(milliseconds, key=milliseconds.__getitem__)
    return Choice(way, steps[way], milliseconds)


def _together(step: TrainStep, teacher_apply: Apply | None) -> SweepStep:
    @partial(jax.jit, donate_argnums=0)
    def sweep(
        states: TrainState, teacher: Weights | None, objectives: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _check_axes(objectives=objectives, states=states)
        taught = dict(batch) | _teach(teacher_apply, teacher, batch)
        return jax.vmap(step, in_axes=(0, None, 0, None))(states, None, objectives, taught)

    return sweep


def _in_turn(step: TrainStep, teacher_apply: Apply | None) -> SweepStep:
    teach = jax.jit(partial(_teach, teacher_apply))

    # Which student is a number, so that one program serves all. The states come apart: XLA would copy a stack for each.
    @partial(jax.jit, donate_argnums=0)
    def advance(
        state: TrainState, student: jax.Array | int, objectives: Objective, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        return step(state, None, jax.tree.map(lambda leaf: leaf[student], objectives), batch)

    @jax.jit
    def collected(metrics: list[Metrics]) -> Metrics:
        return jax.tree.map(lambda *values: jnp.stack(values), *metrics)

    def sweep(
        states: States, teacher: Weights | None, objectives: Objective, batch: Batch
    ) -> tuple[list[TrainState], Metrics]:
        _check_axes(objectives=objectives, states=states)
        batch = jax.device_put(dict(batch))  # once, not once a student
        batch |= teach(teacher, batch)
        results = [advance(state, student, objectives, batch) for student, state in enumerate(unstack(states))]
        return [state for state, _ in results], collected([metrics for _, metrics in results])

    return sweep


def _teach(teacher_apply: Apply | None, teacher: Weights | None, batch: Batch) -> dict[str, Any]:
    """The teacher's outputs as an entry of the batch, if it does not have them yet."""
    if "teacher" in batch or (teacher_apply is None and teacher is None):
        return {}
    if teacher_apply is None or teacher is None:
        raise ValueError(
            "teacher_apply and teacher belong together, the function and its Weights; "
            f"got no {'teacher_apply' if teacher_apply is None else 'teacher'}."
        )
    return {"teacher": teacher_apply(teacher.params, teacher.model_state, batch["inputs"], train=False)[0]}


def _check_axes(*, objectives: Objective, states: States) -> None:
    trees: dict[str, Tree] = {"objectives": objectives}
    if isinstance(states, TrainState):
        if jnp.ndim(states.step) != 1:
            raise ValueError(
                f"states must be stacked, [students, …], as by stack([state, …]); their step has shape "
                f"{jnp.shape(states.step)}."
            )
        trees["states"] = states
    students = len(states.step if isinstance(states, TrainState) else states)
    for name, tree in trees.items():
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
