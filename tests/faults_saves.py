"""Weights and states as saves to be struck: what is there before, how it is read, and how one goes on after a fault."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from saved import bits, spoil

from kdjax import TrainState, Weights
from kdjax.checkpoints import load_weights, open_run, read_description, restore_state, save_state, save_weights
from kdjax.runs.fitting import keep_weights


@dataclass(frozen=True)
class Save:
    """Attributes:
    before: fills the folder as it is before.
    save: the save that is struck.
    check: "before" or "after", which the folder is like; raises where it is neither.
    again: goes on after the fault, as a person would; what is then read must be "after".
    tidy: whether nothing unfinished may be left once one has gone on.
    """

    before: Callable[[Path], object]
    save: Callable[[Path], object]
    check: Callable[[Path], str]
    again: Callable[[Path], object]
    tidy: bool = True


def nothing(folder: Path) -> None:
    """A save into an empty folder."""


def weights(number: int) -> Weights:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3) + np.float32(number)
    return Weights({"kernel": kernel, "bias": np.full(3, number, np.float32)}, {})


def state(number: int) -> TrainState:
    params = {"kernel": np.full((2, 3), number, np.float32)}
    return TrainState(np.int32(number), params, {"mean": np.float32(number)}, (), jax.random.key(number))


# --- weights


def whole_weights(folder: Path) -> str:
    if not (folder / "w").exists():
        return "before"
    assert bits(load_weights(folder / "w", weights(1))) == bits(weights(1)), "other weights"
    return "after"


def missing_weights(folder: Path) -> None:
    if not (folder / "w").exists():
        save_weights(folder / "w", weights(1))


def damaged_weights(folder: Path) -> None:
    save_weights(folder / "w", weights(1))
    spoil(folder / "w")


def mended_weights(folder: Path) -> str:
    try:
        return whole_weights(folder)
    except ValueError:
        return "before"  # damaged, as it was


def mend(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep_weights(folder / "w", weights(1), {})


# --- states


def two_states(folder: Path) -> None:
    with open_run(folder / "state") as run:
        for number in (1, 2):
            save_state(run, number, state(number), {"step": number})


def third_state(folder: Path) -> None:
    with open_run(folder / "state") as run:
        save_state(run, 3, state(3), {"step": 3})


def newest(folder: Path, known: tuple[int, int] = (2, 3)) -> str:
    with open_run(folder / "state") as run:
        found, record = restore_state(run, state(0))
    number = record["step"]
    assert number in known, f"the state after step {number}"
    assert bits(found) == bits(jax.tree.map(jax.numpy.asarray, state(number))), "another state"
    return "after" if number == known[1] else "before"


def state_again(folder: Path) -> None:
    if newest(folder) == "before":
        third_state(folder)


def one_damaged(folder: Path) -> None:
    two_states(folder)
    spoil(folder / "state" / "2")


def gone_back(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest(folder, (0, 1))


def after_going_back(folder: Path) -> str:
    gone_back(folder)
    return "after"


# --- read after damage


def write_weights(folder: Path) -> None:
    save_weights(folder / "w", weights(1), description={"model": "dense"})


def read_weights(folder: Path) -> str:
    assert bits(load_weights(folder / "w", weights(1))) == bits(weights(1))
    assert read_description(folder / "w") == {"model": "dense"}
    return "right"


def large_weights() -> Weights:
    return Weights({"kernel": np.random.default_rng(0).normal(size=(90, 100)).astype(np.float32)}, {})


def read_large(folder: Path) -> str:
    assert bits(load_weights(folder / "w", large_weights())) == bits(large_weights())
    return "right"


def read_state(folder: Path) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_run(folder / "state") as run:
            found = restore_state(run, state(0))
    assert found is not None, "no state at all, and no error"
    number = found[1]["step"]
    assert bits(found[0]) == bits(jax.tree.map(jax.numpy.asarray, state(number))), "another state"
    if number == 2:
        return "right"
    warned = any("Going back from step 2 to step 1" in str(one.message) for one in said)
    assert number == 1, number
    assert warned, "an older state without a word"
    return "state before, with a warning"
