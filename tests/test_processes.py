"""Two processes of two devices each do what one process does: the same training, the same files, the same evaluation."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from processes import EXAMPLES, HALF
from saved import spoil

from kdjax import Weights, connectors
from kdjax.checkpoints import load_weights, open_run, save_state
from kdjax.training import data_mesh, replicate

PATIENCE = 600  # seconds; a process that waits for another would wait for ever


def run_two(task: str, folder: Path) -> list[dict]:
    """Starts both and waits; when one fails, or time runs out, none stays behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    outputs = [folder / f"output-{index}.txt" for index in range(2)]
    started = []
    try:
        for index, output in enumerate(outputs):
            command = [sys.executable, str(tests / "processes.py"), task, address, "2", str(index), str(folder)]
            with output.open("w") as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
        last = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started) or time.monotonic() > last:
                break
            time.sleep(0.1)
        codes = [process.poll() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    if codes != [0, 0]:
        ends = "\n".join(f"--- process {index}\n{output.read_text()[-4000:]}" for index, output in enumerate(outputs))
        pytest.fail(f"the processes ended with {codes}; None is one that was still running\n{ends}")
    return [json.loads((folder / f"seen-{index}.json").read_text()) for index in range(2)]


def distance(first, second):
    assert first.keys() == second.keys()
    return max(float(np.max(np.abs(first[name] - second[name]))) for name in first)


@pytest.mark.slow
def test_training_is_that_of_one_process(tmp_path):
    """Relational loss, BatchNorm, dropout and a contrastive bank; 20 steps in one process, in two, and half in each."""
    mesh, step = data_mesh(jax.devices()[:1]), processes.compiled_step()
    taught, fresh = replicate(processes.teacher_weights(), mesh), replicate(processes.first_state(), mesh)
    start = processes.numbers(fresh.params)
    state = processes.train(step, fresh, taught, mesh, tmp_path / "one")
    wanted, evaluation = processes.numbers(state.params), processes.evaluate(connectors.student_of(state), mesh)
    assert distance(start, wanted) > 1e-2
    assert evaluation["examples"] == EXAMPLES

    for index, seen in enumerate(run_two("training", tmp_path)):
        assert distance(np.load(tmp_path / f"two-{index}.npz"), wanted) < 1e-6
        assert distance(np.load(tmp_path / f"one-two-{index}.npz"), wanted) < 1e-6
        assert seen["record"] == {"step": HALF}
        assert seen["evaluation"] == pytest.approx(evaluation, rel=1e-5)

    state, record = processes.restored(tmp_path / "two", replicate(processes.first_state(), mesh))
    assert record == {"step": HALF}
    assert state.step == HALF
    assert distance(processes.numbers(processes.train(step, state, taught, mesh).params), wanted) < 1e-6


def test_all_processes_read_and_write_one_folder_and_refuse_together(tmp_path):
    for name, steps in {"one": (1,), "damaged": (1, 2), "private-0": (1,)}.items():
        with open_run(tmp_path / name) as run:
            for number in steps:
                save_state(run, number, processes.small_state(), {"step": number})
    spoil(tmp_path / "damaged" / "2")
    for index, seen in enumerate(run_two("files", tmp_path)):
        # The state's own leaves were split over both, so that neither process saw them whole.
        assert seen["split"] == ["params/kernel", "opt_state/0/trace/kernel"]
        assert seen["gone back to"] == {"step": 1}
        assert "Going back from step 2 to step 1" in "".join(seen["warned"])
        assert seen["different"] == "tree must be the same in every process; different are own."
        assert "must be the same in every process; different are model_state/own" in seen["different in a state"]
        assert "folder must be one that all processes see" in seen["private"]
        assert "exists already" in seen["twice"]
        assert seen["rows"] == [[8], [4 * index, 4 * index + 1, 4 * index + 2, 4 * index + 3]]
        assert seen["uneven"] == "batch must divide by this process's 2 devices; got 3 examples."
    assert (tmp_path / "damaged" / "damaged-2").is_dir()
    assert not (tmp_path / "damaged" / "2").exists()

    like = processes.small_state()
    state, _ = processes.restored(tmp_path / "split", like)
    assert processes.same(state, like)
    assert processes.same(load_weights(tmp_path / "weights", Weights(like.params, {})), Weights(like.params, {}))


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_comparison_is_that_of_one_process(cache, tmp_path):
    (tmp_path / cache).mkdir()
    wanted = processes.small_comparison(tmp_path / "alone", cache=cache)["seeds"][0]
    first, second = run_two("compared", tmp_path)
    assert "out is not empty" in first["taken"]
    assert "out cannot be the run's folder, as the first process found" in second["taken"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == first["seeds"]
    assert "latency, ms" in (tmp_path / "run" / "report.html").read_text()
    for seen in (first, second):
        for network in ("teacher", "alone", "distilled"):
            for measure in ("accuracy", "cross_entropy"):
                assert seen["seeds"][0][network][measure] == pytest.approx(wanted[network][measure], rel=1e-4)
