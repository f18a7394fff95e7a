"""What does another student cost? One step of 1 to 32 students together: one vmapped program against one after the other.

python benchmarks/sweep.py --out sweep.json

Article C's student, a CNN of 9,098 parameters, and an MLP of 50,890, at batch 32 with Adam; their temperatures and learning
rates all differ. The teacher is article C's: "online", it runs once a step for all of them; "cached", its logits come with
the batch. "vmap" is `kdjax.training.sweeps.make_sweep_step`; "one by one" is one compiled step, called for each student. All
cases of a network and a teacher take turns, so that a slow minute of the machine hits all alike. Runs on JAX's default
backend; which way is faster depends on it.

On a GPU the target is that 32 students cost at most three times what one costs, by the faster way of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

import _cases
import jax
import jax.numpy as jnp
import optax
from _cases import IMAGE, Case, placed
from _command_line import command_line
from _script import Report, Settings, quartiles, spread, verdict
from _turns import in_turns
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, random_batches

from experiments._networks import make_model
from kdjax import Apply, Outputs, Weights, init_state, make_train_step
from kdjax.training import jit_step
from kdjax.training.sweeps import make_sweep_step, stack

STUDENTS = (1, 4, 16, 32)
NETWORKS = ("CNN", "MLP")
TEACHERS = ("cached", "online")
WAYS = ("vmap", "one by one")
HIDDEN = 64
TARGET = 32, 3.0
"""So many students cost at most so many times one student's step, on a GPU."""
Row = tuple[str, str, str]  # network, teacher, way


@dataclass(frozen=True)
class Benchmark(Settings):
    """Many students a step, in both ways. A trial has 1 and 3 students, one step a round, 3 rounds."""

    LEAST: ClassVar = {"rounds": 3, "batch": 1, "seconds": 0}
    students: tuple[int, ...] = STUDENTS
    """how many train together, one column each"""
    seconds: float = 0.3
    """how long each case is timed for, in each round; one step at least"""
    rounds: int = 7
    """how often every case has its turn"""
    batch: int = 32
    """images a step"""
    networks: tuple[Literal["CNN", "MLP"], ...] = NETWORKS
    """what the students are"""
    teachers: tuple[Literal["cached", "online"], ...] = TEACHERS
    """whether the teacher's logits are there, or it is run in every step"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.students or min(self.students) < 1:
            raise ValueError(f"students must be whole numbers greater than 0; got {self.students}.")


def main(settings: Benchmark) -> None:
    report = Report(settings)
    students = (1, 3) if settings.quick else settings.students
    seconds, rounds = (0.0, 3) if settings.quick else (settings.seconds, settings.rounds)
    times: dict[Row, dict[int, list[float]]] = {}
    for network, teacher in product(settings.networks, settings.teachers):
        with report.console.status(f"{network}, {teacher}"):
            runs = {
                (way, count): case(network, teacher, way, count, settings.batch).runner()
                for way, count in product(WAYS, students)
            }
            for (way, count), values in in_turns(runs, seconds, rounds).items():
                times.setdefault((network, teacher, way), {})[count] = values
    summary = {row: {count: quartiles(values) for count, values in cells.items()} for row, cells in times.items()}
    compared = [
        {"network": network, "teacher": teacher}
        | ways_compared({way: summary[network, teacher, way] for way in WAYS}, jax.default_backend())
        for network, teacher in product(settings.networks, settings.teachers)
    ]
    _print(report, summary, compared)
    rows = [
        {"network": network, "teacher": teacher, "way": way, "students": count, "quartiles_ms": quartiles(values),
         "rounds_ms": values}
        for (network, teacher, way), cells in times.items() for count, values in cells.items()
    ]  # fmt: skip
    report.write(rows=rows, compared=compared)


def case(network: str, teacher: str, way: str, students: int, size: int) -> Case:
    """One update of all students is one step."""
    init, apply = _cases.network(make_model(STUDENT)) if network == "CNN" else (init_mlp, apply_mlp)
    taught, teacher_apply = None, None
    if teacher == "online":
        teacher_init, teacher_apply = _cases.network(make_model(TEACHER))
        taught = teacher_init(jax.random.key(0), IMAGE)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=LEARNING_RATE)
    states, objectives = [], []
    for number in range(students):
        state = init_state(init(jax.random.key(number), IMAGE), optimizer, jax.random.key(number))
        rate = LEARNING_RATE * (1 + number / students)
        states.append(state._replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate)))
        objectives.append(_cases.with_teacher(ALPHA, 4.0 + number / 2))
    batches = placed(random_batches(size), cached=teacher == "cached")
    step = make_train_step(apply, None, optimizer)
    if way == "vmap":
        together = jit_step(make_sweep_step(step, teacher_apply))
        return Case(together, stack(states), taught, stack(objectives), batches)
    return Case(one_by_one(step, teacher_apply), states, taught, objectives, batches)


def one_by_one(step: Callable[..., Any], teacher_apply: Apply | None) -> Callable[..., tuple[list, dict]]:
    """The same as the sweep's step: the teacher once, then each student in a call of its own, all of one program."""
    compiled = jit_step(step)
    teach = None if teacher_apply is None else jax.jit(lambda *given: teacher_apply(*given, train=False)[0])

    def all_students(states: list, teacher: Weights | None, objectives: list, batch: dict) -> tuple[list, dict]:
        if teach is not None:
            batch = batch | {"teacher": teach(*teacher, batch["inputs"])}
        moved = [compiled(state, None, objective, batch) for state, objective in zip(states, objectives, strict=True)]
        return [state for state, _ in moved], {"loss": [metrics["loss"] for _, metrics in moved]}

    return all_students


@jax.jit
def init_mlp(rng: jax.Array, images: jax.Array) -> Weights:
    first, second = jax.random.split(rng)
    size = images[0].size
    return Weights(
        {
            "hidden": jax.random.normal(first, (size, HIDDEN)) * (2 / size) ** 0.5,
            "bias": jnp.zeros(HIDDEN),
            "logits": jax.random.normal(second, (HIDDEN, 10)) / HIDDEN**0.5,
            "offset": jnp.zeros(10),
        },
        {},
    )


def apply_mlp(params, model_state, inputs, *, train, rng=None):
    hidden = jax.nn.relu(inputs.reshape(len(inputs), -1) @ params["hidden"] + params["bias"][None])
    return Outputs(hidden @ params["logits"] + params["offset"][None], {}), model_state


def ways_compared(by_way: dict[str, dict[int, list[float]]], backend: str) -> dict[str, Any]:
    """Which way is faster for most students, by how much, and what those cost of one student's step."""
    counts = next(iter(by_way.values()))
    most, least = max(counts), min(counts)
    medians = {count: {way: cells[count][1] for way, cells in by_way.items()} for count in (most, least)}
    fastest = {count: min(ways.values()) for count, ways in medians.items()}
    ratio = fastest[most] / fastest[least]
    is_asked = backend == "gpu" and (most, least) == (TARGET[0], 1)
    return {
        "students": most,
        "faster": min(medians[most], key=medians[most].__getitem__),
        "slower_over_faster": max(medians[most].values()) / fastest[most],
        "over_one": ratio if least == 1 else None,
        "limit": TARGET[1] if is_asked else None,
        "met": ratio <= TARGET[1] if is_asked else None,
    }


def _print(report: Report, summary: dict[Row, dict[int, list[float]]], compared: list[dict[str, Any]]) -> None:
    counts = list(next(iter(summary.values())))
    most, least = max(counts), min(counts)
    report.table(
        "ms a step of so many students: median over the rounds (quartiles)",
        ("network", "teacher", "way", *map(str, counts), f"{most} / {least}"),
        [
            (*row, *(spread(cells[count]) for count in counts), f"{cells[most][1] / cells[least][1]:.1f}")
            for row, cells in summary.items()
        ],
    )
    rows = []
    for row in compared:
        target = "" if row["limit"] is None else f"≤ {row['limit']:g}, {verdict(row['met'])}"
        over_one = "" if row["over_one"] is None else f"{row['over_one']:.1f}"
        names = (row["network"], row["teacher"], str(row["students"]), row["faster"])
        rows.append((*names, f"{row['slower_over_faster']:.2f}", over_one, target))
    heads = ("network", "teacher", "students", "faster", "slower / faster", "all / one", "target")
    report.table("The faster way", heads, rows)


if __name__ == "__main__":
    main(command_line(Benchmark, __doc__))
