"""Two processes that train together: one is killed, the other ends and says why, and the pair goes on to the same bits.

As a script it is one of the two, started with an address, its index and the folder.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HEARTBEAT = 10  # seconds until a process that says nothing counts as dead; 100 where nobody asks for less
BOUND = 60  # seconds, within which the other must have ended
STEPS, EVERY = 200, 5
CLEAR = ("another task died", "heartbeat timeout", "Connection closed by peer", "Connection reset by peer")


class Pair:
    """Both processes, started, and what they say."""

    def __init__(self, folder: Path, outputs: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        outputs.mkdir()
        tests = Path(__file__).parent
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
        environment.pop("LD_PRELOAD", None)
        self.outputs = [outputs / f"{index}.txt" for index in range(2)]
        self.processes = []
        for index, output in enumerate(self.outputs):
            command = [sys.executable, "-u", __file__, address, str(index), str(folder)]
            with output.open("w") as file:
                self.processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))

    def reach(self, step: int) -> None:
        self.wait_for(lambda: f"step {step}\n" in self.outputs[0].read_text(), 180)

    def wait_for(self, so, seconds: float) -> float:
        """How long it took; None is never returned: what does not come in time is an error."""
        started = time.monotonic()
        while not so():
            if time.monotonic() - started > seconds:
                raise TimeoutError(self.said()[-3000:])
            time.sleep(0.02)
        return time.monotonic() - started

    def ended(self, seconds: float, which=(0, 1)) -> list[int]:
        self.wait_for(lambda: all(self.processes[index].poll() is not None for index in which), seconds)
        return [process.poll() for process in self.processes]

    def said(self) -> str:
        return "\n".join(output.read_text() for output in self.outputs)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def finished(folder: Path, outputs: Path) -> str:
    """Both to the end; the digest of what both have."""
    pair = Pair(folder, outputs)
    try:
        assert pair.ended(180) == [0, 0], pair.said()[-3000:]
        digests = {output.read_text().rsplit("digest ", 1)[1].split()[0] for output in pair.outputs}
        assert len(digests) == 1
        return digests.pop()
    finally:
        pair.close()


def struck(folder: Path, outputs: Path, step: int, victim: int, number: signal.Signals) -> str:
    """Sends the signal to one at that step; "" where the other ends as it should."""
    pair, other = Pair(folder, outputs), 1 - victim
    try:
        pair.reach(step)
        pair.processes[victim].send_signal(number)
        codes = pair.ended(BOUND, (other,) if number == signal.SIGKILL else (0, 1))
        said = pair.outputs[other].read_text()
        if number == signal.SIGTERM:
            return "" if codes == [75, 75] else f"the processes ended with {codes}: {said[-500:]}"
        if codes[other] == 0:
            return "the other process ended as if all were well"
        return "" if any(words in said for words in CLEAR) else f"no clear message: {said[-500:]}"
    except TimeoutError as error:
        return f"the other had not ended after {BOUND} s: {error!s:.500}"
    finally:
        pair.close()


def run(*, kills: int = 2, stops: int = 1, seed: int = 0) -> dict:
    """So many kills, and stops by SIGTERM, each of a run of its own that is then gone on with."""
    drawn, failures, counted = random.Random(seed), [], Counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get("FAULTS_FOLDER")) as scratch:
        root = Path(scratch)
        wanted = finished(root / "unbroken", root / "said")
        for number in range(kills + stops):
            kind = signal.SIGKILL if number < kills else signal.SIGTERM
            step, folder = drawn.randrange(1, STEPS - 20), root / str(number)
            why = struck(folder, root / f"struck-{number}", step, number % 2, kind)
            try:
                found = finished(folder, root / f"resumed-{number}")
                why = why or ("" if found == wanted else "other weights than those of the unbroken pair")
            except (AssertionError, TimeoutError) as error:
                why = why or f"the pair does not go on: {error!s:.500}"
            counted[kind.name, "failed" if why else "same bits"] += 1
            if why:
                failures.append(f"two processes: {kind.name} to process {number % 2} at step {step}: {why}")
    return {
        "injected": kills + stops,
        "outcomes": [[f"{kind} to one of two", outcome, count] for (kind, outcome), count in sorted(counted.items())],
        "failures": failures,
    }


def train(folder: Path) -> int:
    """This process's part; 0 at the end, 75 where SIGTERM has stopped both."""
    import phased
    from faults_training import SOFT, first, optimizer, steps_of

    from kdjax import make_train_step
    from kdjax._trees import digest_of_tree
    from kdjax.checkpoints import open_run, restore_state, save_state
    from kdjax.runs import stopped_by_signals
    from kdjax.training import data_mesh, jit_step, process_rows, replicate, shard_batch

    mesh = data_mesh()
    step = jit_step(make_train_step(phased.network, phased.network, optimizer()))
    teacher = replicate(phased.weights(1), mesh)
    with open_run(folder) as run, stopped_by_signals() as stop:
        begin = replicate(first(), mesh)
        found = restore_state(run, begin)
        state = begin if found is None else found[0]
        for number in range(steps_of(state), STEPS):
            rows = process_rows(8)
            mine = {name: array[rows] for name, array in phased.batch(number % 16).items()}
            state, metrics = step(state, teacher, SOFT, shard_batch(mine, mesh))
            metrics["loss"].block_until_ready()
            ends = stop()
            if ends or (number + 1) % EVERY == 0:
                save_state(run, number + 1, state, {})
            print(f"step {number}", flush=True)
            if ends:
                return 75
    print("digest", digest_of_tree(state), flush=True)
    return 0


if __name__ == "__main__":
    import jax

    jax.distributed.initialize(
        sys.argv[1], num_processes=2, process_id=int(sys.argv[2]), heartbeat_timeout_seconds=HEARTBEAT
    )
    raise SystemExit(train(Path(sys.argv[3])))
