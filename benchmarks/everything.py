"""Everything that a machine can measure here, piece by piece, for whoever has one with a GPU for a short while.

python benchmarks/everything.py --out checkpoints/everything --minutes 9

A call works for at most so many minutes, at least 9, and starts no piece that might not end in them; the same command again
goes on with those that are left. A piece that fails stops no other. Each leaves NAME.txt, what it printed, and what it
measured beside it; `summary.json` says how each ended. `--only NAME ...` runs those pieces, also again; `--list` shows all.

Python's packages are those that are there. What is missing can lie in a folder, without what it needs in turn, so that it
hides none of the machine's own; and so can MNIST:

    pip install --target carried --no-deps tyro docstring-parser typeguard beartype
    python benchmarks/everything.py --pack MNIST_FOLDER carried/mnist.npz
    python benchmarks/everything.py --carried carried --minutes 9

Without tyro only the tests run, without carried/mnist.npz no experiment on MNIST, without PyTorch no comparison with it.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "losses losses_special losses_train losses_features losses_logits losses_graph losses_bank losses_contrastive "
    "losses_contrastive_values objectives_terms training_step connectors training_online training_phases training_sweeps "
    "networks_pca models models_wide_resnet networks_precision networks_ensembles training_optimizers_freezing "
    "networks_transfer caching metrics"
)
"""Those that ask the device for numbers; what is about files, processes and several devices a CPU tells as well."""
LONGEST = 8.5
"""Minutes of a piece: with its start, a call of nine minutes has room for any."""


class Piece(NamedTuple):
    """A command, and how many minutes it gets; ``{out}``, ``{platform}``, ``{backend}`` and ``{mnist}`` are filled in."""

    minutes: float
    command: str
    quick: str
    environment: dict[str, str]


def _benchmark(script: str, minutes: float, options: str = "", *, name: str = "", **environment: str) -> Piece:
    command = f"benchmarks/{script}.py {options} --out {{out}}/{name or script}.json"
    return Piece(minutes, command, f"{command} --quick", environment)


def _profile(name: str, **environment: str) -> Piece:
    options = f"--figure {{out}}/{name}-{{backend}}.png --traces {{out}}/{name}-traces"
    return _benchmark("profile_step", 4, options, name=name, **environment)


def _wrn(precision: str) -> Piece:
    options = f"--platform {{platform}} --precision {precision} --batch 128 --steps 40"
    return _benchmark("wrn", LONGEST, options, name=f"wrn-{precision}")


def _experiment(name: str, minutes: float, options: str, quick: str = "") -> Piece:
    command = f"experiments/{name}.py {options} --out {{out}}/{name} --resume"
    return Piece(minutes, command, f"{command} --seeds 1 --epochs 1 {quick}", {})


def _tests(options: str, quick: str, **environment: str) -> Piece:
    files = " ".join(f"tests/test_{name}.py" for name in TESTS.split())
    pytest = "-m pytest -p no:cacheprovider -q -rfE --tb=short"
    # Memory as it is needed: four processes share the device.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environment
    return Piece(LONGEST, f"{pytest} -n 4 -m 'not slow' {options} {files}", f"{pytest} {quick}", environment)


MACHINE = """
import jax, json, os, platform
from importlib.metadata import distributions
devices = [{"kind": device.device_kind, "memory": device.memory_stats()} for device in jax.devices()]
packages = {one.metadata["Name"]: one.version for one in distributions()}
print(json.dumps({"backend": jax.default_backend(), "devices": devices, "cores": os.cpu_count(), "python":
platform.python_version(), "packages": packages}, indent=1))
"""

# The most wanted first. The measuring pieces hold the machine alone; nothing here runs beside another.
PIECES: dict[str, Piece] = {
    "machine": Piece(1, f"-c {shlex.quote(MACHINE)}", f"-c {shlex.quote(MACHINE)}", {}),
    "profile": _profile("profile"),
    # In CUDA graphs the profiler may not know which operation a library's kernel belongs to.
    "profile-no-graphs": _profile("profile-no-graphs", XLA_FLAGS="--xla_gpu_enable_command_buffer="),
    "wrn-bfloat16": _wrn("bfloat16"),
    "wrn-TF32": _wrn("TF32"),
    "article": _benchmark("article", LONGEST, "--platform {platform} --data npz:{mnist}"),
    "sweep": _benchmark("sweep", 6),
    "scaling": _benchmark("scaling", LONGEST, "--figures {out}"),
    "tests-float32": _tests("", "tests/test_networks_precision.py", JAX_DEFAULT_MATMUL_PRECISION="highest"),
    "tests-bfloat16": _tests(
        "-k 'float16 or float32 or dtype or precision or bad_points'", "tests/test_models.py -k bfloat16"
    ),
    "losses": _benchmark("losses", 6, "--platform {platform}"),
    "model_compression": _experiment("model_compression", LONGEST, "--data npz:{mnist} --seeds 3"),
    "soft_targets": _experiment("soft_targets", 7, "--data npz:{mnist} --seeds 5"),
    "pipeline": _experiment("pipeline", 7, "--data npz:{mnist} --seeds 3"),
    "strategies": _experiment("strategies", LONGEST, "--seeds 4", "--teacher-epochs 1"),
    "steps": _benchmark("steps", 6, "--apart"),
    "startup": _benchmark("startup", 5),
}


def main() -> None:
    given = _arguments()
    if given.list:
        for name, piece in PIECES.items():
            print(f"{name:17} {piece.minutes:g} min  {_shown(piece.quick if given.quick else piece.command)}")
        return
    if given.pack:
        pack(*given.pack)
        return
    if unknown := set(given.only or ()) - set(PIECES):
        raise SystemExit(f"--only must name pieces of --list; got {', '.join(sorted(unknown))}.")
    given.out.mkdir(parents=True, exist_ok=True)
    summary = given.out / "summary.json"
    ended: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
    wanted = given.only or [name for name in PIECES if name not in ended]
    paths = [str(ROOT), *([str(given.carried.resolve())] if given.carried else []), os.environ.get("PYTHONPATH", "")]
    # Tables as wide as they want to be.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "COLUMNS": "180"}
    filled = _filled(given, environment)
    stop = time.monotonic() + 60 * given.minutes
    later = []
    for name in wanted:
        piece = PIECES[name]
        command = piece.quick if given.quick else piece.command
        if "{mnist}" in command and not filled["mnist"]:
            print(f"{name}: left out, since there is no carried/mnist.npz (--carried, --pack)", flush=True)
            continue
        if time.monotonic() + 60 * piece.minutes > stop:
            later.append(name)
            continue
        words = [word.format(**filled) if "\n" not in word else word for word in shlex.split(command)]
        if "--resume" in words:  # an empty folder holds a run's start
            (given.out / name).mkdir(exist_ok=True)
        ended[name] = run(name, words, piece, environment, given.out)
        summary.write_text(json.dumps(ended, indent=1))
    left = f"Not begun: {', '.join(later)}. The same command goes on with them." if later else "Nothing is left to do."
    print(f"{left} How the others ended says {summary}.")


def run(name: str, words: list[str], piece: Piece, environment: dict[str, str], out: Path) -> dict[str, Any]:
    """Runs one piece in a process group of its own, so that nothing of it lives on when its time is over."""
    print(f"{name} …", flush=True)
    started = time.monotonic()
    log = out / f"{name}.txt"
    with log.open("w") as output:
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment | piece.environment, stdout=output,
                                 stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            code: int | None = child.wait(60 * piece.minutes)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    seconds = time.monotonic() - started
    how = {0: "done", None: f"stopped after {piece.minutes:g} minutes"}.get(code, f"failed with {code}")
    print(f"{name}: {how}, {seconds:.0f} s", flush=True)
    if code != 0:
        print("".join(f"    {line}\n" for line in log.read_text().splitlines()[-5:]), end="", flush=True)
    return {"ended": how, "seconds": seconds, "command": shlex.join(["python", *words])}


def pack(folder: Path, file: Path) -> None:
    """MNIST's four files as one compressed archive, which ``--data npz:FILE`` reads."""
    import numpy as np

    from kdjax.data import load

    train, test = (load(f"idx:{folder}", split) for split in ("train", "test"))
    arrays = {"x_train": train.inputs, "y_train": train.labels, "x_test": test.inputs, "y_test": test.labels}
    np.savez_compressed(file, **arrays)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {len(train.labels):,} and {len(test.labels):,} examples")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "everything", help="folder for all results")
    parser.add_argument("--minutes", type=float, default=1e9, help="how long this call may take")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these pieces, also if they have ended before")
    parser.add_argument("--carried", type=Path, help="folder with Python packages that are missing, and mnist.npz")
    parser.add_argument(
        "--pack", nargs=2, type=Path, metavar=("DIR", "FILE"), help="pack MNIST's files, and do no more"
    )
    parser.add_argument("--list", action="store_true", help="show the pieces, and do no more")
    parser.add_argument("--quick", action="store_true", help="a trial of every piece: its figures mean nothing")
    given = parser.parse_args()
    if given.minutes < 9:
        parser.error(f"--minutes must be at least 9, so that every piece finds room; got {given.minutes:g}")
    given.out = given.out.resolve()  # the pieces run in the repository's folder
    return given


def _filled(given: argparse.Namespace, environment: dict[str, str]) -> dict[str, str]:
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    mnist = given.carried.resolve() / "mnist.npz" if given.carried else None
    return {
        "out": str(given.out),
        "backend": backend,
        "platform": "cuda" if backend == "gpu" else "cpu",
        "mnist": str(mnist) if mnist and mnist.exists() else "",
    }


def _shown(command: str) -> str:
    return f"python {command}" if "\n" not in command else "(what the machine is)"


if __name__ == "__main__":
    main()
