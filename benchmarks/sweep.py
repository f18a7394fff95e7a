"""What does another student cost? One step of 1 to 32 students together: one vmapped program against one after the other.

python benchmarks/sweep.py --out sweep.json

Article C's student, a CNN of 9,098 parameters, and an MLP of 50,890, at batch 32 with Adam; their temperatures and learning
rates all differ. The teacher is article C's: "online", it runs once a step for all of them; "cached", its logits come with
the batch. All cases of a network and a teacher take turns, so that a slow minute of the machine hits all alike. Runs on
JAX's default backend; which way is faster depends on it. `choose_way` is asked too, and its choice stands beside what the
rounds say.

On a GPU the target is that 32 students cost at most three times what one costs, by the faster way of each.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import _machine
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from _work import ALPHA, LEARNING_RATE, STUDENT, TEACHER, random_batches
from rich.console import Console
from rich.table import Table

from kdjax import Apply, Outputs, Weights, cross_entropy, init_state, make_train_step, on_logits, weighted_sum
from kdjax._files import write_json
from kdjax.losses import soft_target_kl
from kdjax.models import make_model
from kdjax.networks import from_linen
from kdjax.training.sweeps import WAYS, choose_way, make_sweep_step, stack

STUDENTS = (1, 4, 16, 32)
NETWORKS = ("CNN", "MLP")
TEACHERS = ("cached", "online")
IMAGE = np.zeros((1, 28, 28, 1), np.float32)
HIDDEN = 64
TARGET = 32, 3.0
"""So many students cost at most so many times one student's step, on a GPU."""
Row = tuple[str, str, str]  # network, teacher, way
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Benchmark:
    """Many students a step, in both ways."""

    students: tuple[int, ...] = STUDENTS
    """how many train together, one column each"""
    seconds: float = 0.3
    """how long each case is timed for, in each round; one step at least"""
    rounds: int = 7
    """how often every case has its turn"""
    batch: int = 32
    """images a step"""
    out: Path | None = None
    """JSON file for the results"""
    quick: bool = False
    """a trial: 1 and 3 students, one step a round, 3 rounds"""

    def __post_init__(self) -> None:
        if not self.students or min(self.students) < 1:
            raise ValueError(f"students must be whole numbers greater than 0; got {self.students}.")
        for name, least in (("rounds", 3), ("batch", 1), ("seconds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")


def main(settings: Benchmark) -> None:
    console = Console()
    environment = _machine.environment(console) | {"device": jax.devices()[0].device_kind}
    students = (1, 3) if settings.quick else settings.students
    rounds, seconds = (3, 0.0) if settings.quick else (settings.rounds, settings.seconds)
    rows: list[Row] = list(product(NETWORKS, TEACHERS, WAYS))
    times: dict[Row, dict[int, list[float]]] = {}
    for network, teacher in product(NETWORKS, TEACHERS):
        with console.status(f"{network}, {teacher}"):
            cases = {
                (way, count): case(network, teacher, way, count, settings.batch)
                for way, count in product(WAYS, students)
            }
            measured = in_turns(cases, seconds, rounds)
            for way in WAYS:
                times[network, teacher, way] = {count: measured[way, count] for count in students}
    summary = {
        row: {count: quantiles(values, n=4, method="inclusive") for count, values in of_row.items()}
        for row, of_row in times.items()
    }
    verdicts = []
    for network, teacher in product(NETWORKS, TEACHERS):
        with console.status(f"{network}, {teacher}: choose_way"):
            chosen = choose_way(*made(network, teacher, max(students), settings.batch)[:-1]).way
        by_way = {way: summary[network, teacher, way] for way in WAYS}
        verdicts.append({"network": network, "teacher": teacher, **verdict(by_way, chosen, jax.default_backend())})
    console.print(table(summary, students))
    console.print(verdict_table(verdicts))
    if settings.out is not None:
        records = [
            {"network": row[0], "teacher": row[1], "way": row[2], "students": count,
             "quartiles_ms": summary[row][count], "rounds_ms": times[row][count]}
            for row in rows for count in students
        ]  # fmt: skip
        config = asdict(settings) | {"out": str(settings.out)}
        write_json(settings.out, environment | {"config": config, "rows": records, "verdicts": verdicts})
        console.print(f"Written to {settings.out}")


def case(network: str, teacher: str, way: str, students: int, size: int) -> Callable[[int], None]:
    """Makes so many updates of all students and waits until they are done. The arrays lie on the device before."""
    step, teacher_apply, together, taught, goals, _, batches = made(network, teacher, students, size)
    sweep = make_sweep_step(step, teacher_apply, way=way)

    def run(count: int) -> None:
        nonlocal together
        for number in range(count):
            together, metrics = sweep(together, taught, goals, batches[number % len(batches)])
        jax.block_until_ready((together, metrics))

    return run


def made(network: str, teacher: str, students: int, size: int) -> tuple:
    """What `choose_way` is given, and all batches."""
    init, apply = student(network)
    taught, teacher_apply = fresh_teacher()
    batches = jax.device_put([{"inputs": inputs, "labels": labels} for inputs, labels in random_batches(size)])
    if teacher == "cached":
        forward = jax.jit(lambda weights, inputs: teacher_apply(*weights, inputs, train=False)[0].logits)
        batches = [batch | {"teacher": Outputs(forward(taught, batch["inputs"]), {})} for batch in batches]
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=LEARNING_RATE)
    states, objectives = [], []
    for number in range(students):
        state = init_state(init(jax.random.key(number), IMAGE), optimizer, jax.random.key(number))
        rate = LEARNING_RATE * (1 + number / students)
        states.append(state._replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate)))
        soft = on_logits(soft_target_kl, temperature=4.0 + number / 2)
        objectives.append(weighted_sum(labels=(ALPHA, cross_entropy), soft=(1.0 - ALPHA, soft)))
    step = make_train_step(apply, None, optimizer)
    return step, teacher_apply, stack(states), taught, stack(objectives), batches[0], batches


@cache
def student(network: str) -> tuple[Callable, Apply]:
    init, apply = from_linen(make_model(STUDENT)) if network == "CNN" else (init_mlp, apply_mlp)
    return jax.jit(init), apply


@cache
def fresh_teacher() -> tuple[Weights, Apply]:
    """Untrained: the time of a step does not depend on what the teacher knows."""
    init, apply = from_linen(make_model(TEACHER))
    return jax.jit(init)(jax.random.key(0), IMAGE), apply


def in_turns(
    cases: dict[Key, Callable[[int], None]], seconds: float, rounds: int, *, pause: float = 0.0
) -> dict[Key, list[float]]:
    """Milliseconds a step, one number a round, of every case; `pause` seconds before each turn."""
    steps = {}
    for key, run in cases.items():
        run(2)  # the first compiles
        started = time.perf_counter()
        run(1)
        steps[key] = max(1, round(seconds / (time.perf_counter() - started)))
    times: dict[Key, list[float]] = {key: [] for key in cases}
    for _ in range(rounds):
        for key, run in cases.items():
            time.sleep(pause)
            run(1)
            started = time.perf_counter()
            run(steps[key])
            times[key].append(1000 * (time.perf_counter() - started) / steps[key])
    return times


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
    hidden = jax.nn.relu(inputs.reshape(len(inputs), -1) @ params["hidden"] + params["bias"])
    return Outputs(hidden @ params["logits"] + params["offset"], {}), model_state


def table(summary: dict[Row, dict[int, list[float]]], students: tuple[int, ...]) -> Table:
    most, least = max(students), min(students)
    names = ("network", "teacher", "way", *map(str, students), f"{most} / {least}")
    shown = Table(
        *names, title="ms a step of so many students: median over the rounds (quartiles)", title_justify="left"
    )
    for row, cells in summary.items():
        ratio = f"{cells[most][1] / cells[least][1]:.1f}"
        shown.add_row(*row, *(_machine.spread(cells[count]) for count in students), ratio)
    return shown


def verdict(by_way: dict[str, dict[int, list[float]]], chosen: str, backend: str) -> dict[str, Any]:
    """Which way the rounds call faster for most students, and what those cost of one student's step."""
    most, least = max(by_way[chosen]), min(by_way[chosen])
    fastest = {count: min((by_way[way][count][1], way) for way in by_way) for count in (most, least)}
    ratio = fastest[most][0] / fastest[least][0]
    result: dict[str, Any] = {
        "students": most,
        "faster": fastest[most][1],
        "chosen": chosen,
        "chosen_over_faster": by_way[chosen][most][1] / fastest[most][0],
        "over_one": ratio if least == 1 else None,
        "limit": None,
    }
    if backend == "gpu" and (most, least) == (TARGET[0], 1):
        result |= {"limit": TARGET[1], "met": ratio <= TARGET[1]}
    return result


def verdict_table(verdicts: list[dict[str, Any]]) -> Table:
    names = ("network", "teacher", "students", "faster", "chosen", "chosen / faster", "all / one", "target")
    shown = Table(*names, title="The faster way by the rounds, and the one that choose_way chose", title_justify="left")
    for row in verdicts:
        target = "" if row["limit"] is None else f"≤ {row['limit']:g}, {'met' if row['met'] else 'missed'}"
        over_one = "" if row["over_one"] is None else f"{row['over_one']:.1f}"
        cells = (row["network"], row["teacher"], str(row["students"]), row["faster"], row["chosen"])
        shown.add_row(*cells, f"{row['chosen_over_faster']:.2f}", over_one, target)
    return shown


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
