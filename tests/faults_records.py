"""Records, a cache and exports as saves to be struck; and the table of all saves."""

import functools
import json
from pathlib import Path

import numpy as np
from faults_saves import (
    Save,
    after_going_back,
    damaged_weights,
    gone_back,
    mend,
    mended_weights,
    missing_weights,
    newest,
    nothing,
    one_damaged,
    state_again,
    third_state,
    two_states,
    weights,
    whole_weights,
)
from saved import bits

from kdjax._files import FORMAT
from kdjax.caching import cache_teacher
from kdjax.export import from_safetensors, open_stablehlo, to_safetensors, to_stablehlo
from kdjax.runs import append_json_line, open_folder, open_results

CONFIG = {"title": "small", "seeds": 2, "data_digests": {"train": "a", "test": "b"}}


def one_result(folder: Path) -> None:
    open_results(folder / "results.json", {"commit": "a"})[1](0, "alone", lambda: {"accuracy": 0.5})


def another_result(folder: Path) -> None:
    open_results(folder / "results.json", {"commit": "a"})[1](0, "distilled", lambda: {"accuracy": 0.75})


def results_of(folder: Path) -> str:
    seeds = open_results(folder / "results.json", {})[0]["seeds"]
    assert seeds[0].pop("alone") == {"accuracy": 0.5}
    assert seeds in ([{}], [{"distilled": {"accuracy": 0.75}}])
    return "after" if seeds[0] else "before"


def begun(folder: Path, resume: bool = False) -> None:
    with open_folder(folder / "run", CONFIG, resume=resume) as out:
        (out / "seed-0").mkdir(exist_ok=True)


def begun_again(folder: Path) -> None:
    try:
        begun(folder)
    except FileExistsError:
        begun(folder, resume=True)


def config_of(folder: Path) -> str:
    file = folder / "run" / "config.json"
    if not file.exists():
        return "before"
    assert json.loads(file.read_text()) == CONFIG | {FORMAT: 1}
    return "after"


def first_line(folder: Path) -> None:
    append_json_line(folder / "metrics.jsonl", {"epoch": 1})


def next_line(folder: Path) -> None:
    append_json_line(folder / "metrics.jsonl", {"epoch": 2})


def lines_of(folder: Path) -> str:
    """After a kill in the midst of a line that line is no JSON; all before and after it are whole."""
    text = (folder / "metrics.jsonl").read_text()
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            assert '{"epoch": 2}'.startswith(line), line
    assert found in ([{"epoch": 1}], [{"epoch": 1}, {"epoch": 2}])
    return "after" if len(found) == 2 else "before"


def line_again(folder: Path) -> None:
    if lines_of(folder) == "before":
        next_line(folder)


# --- what is handed over


def teacher(params, model_state, inputs, *, train, rng=None):
    return inputs @ params["kernel"] + params["bias"][None], model_state


def cached(folder: Path):
    inputs = np.linspace(-1, 1, 14, dtype=np.float32).reshape(7, 2)
    return cache_teacher(teacher, weights(1), inputs, path=folder / "cache")["teacher"].logits


@functools.cache
def wanted_logits():
    inputs = np.linspace(-1, 1, 14, dtype=np.float32).reshape(7, 2)
    return np.asarray(cache_teacher(teacher, weights(1), inputs)["teacher"].logits)


def cache_of(folder: Path) -> str:
    if not (folder / "cache").exists():
        return "before"
    np.testing.assert_array_equal(cached(folder), wanted_logits())
    return "after"


def safetensors(folder: Path) -> None:
    if not (folder / "student.safetensors").exists():
        to_safetensors(folder / "student.safetensors", weights(1))


def safetensors_of(folder: Path) -> str:
    if not (folder / "student.safetensors").exists():
        return "before"
    found, _ = from_safetensors(folder / "student.safetensors", weights(1))
    assert bits(found) == bits(weights(1))
    return "after"


def stablehlo(folder: Path) -> None:
    if not (folder / "student").exists():
        to_stablehlo(folder / "student", teacher, weights(1), np.ones((4, 2), np.float32), platforms=["cpu"])


def stablehlo_of(folder: Path) -> str:
    if not (folder / "student").exists():
        return "before"
    program, _ = open_stablehlo(folder / "student")
    logits, _ = teacher(*weights(1), np.ones((4, 2), np.float32), train=False)
    np.testing.assert_array_equal(program(np.ones((4, 2), np.float32)), logits)
    return "after"


SAVES = {
    "weights": Save(nothing, missing_weights, whole_weights, missing_weights),
    "weights written anew": Save(damaged_weights, mend, mended_weights, mend),
    "a training state": Save(two_states, third_state, newest, state_again),
    "a damaged state set aside": Save(one_damaged, gone_back, after_going_back, gone_back),
    "results.json": Save(one_result, another_result, results_of, another_result, tidy=False),
    "a run's folder and config.json": Save(nothing, begun, config_of, begun_again),
    "a line of metrics.jsonl": Save(first_line, next_line, lines_of, line_again),
    "a teacher's cache": Save(nothing, cached, cache_of, cached, tidy=False),
    "an export to safetensors": Save(nothing, safetensors, safetensors_of, safetensors, tidy=False),
    "an export to StableHLO": Save(nothing, stablehlo, stablehlo_of, stablehlo, tidy=False),
}
