"""Everything that a machine can measure here, piece by piece, for whoever has one with a GPU for a short while.

python benchmarks/everything.py

A call stops by itself after 12 minutes (`--minutes`): the pieces that are wanted most come first, each has its own limit,
and none begins that might not end in what is left. The same command again goes on with the others. A piece that fails
stops no other. Each leaves NAME.txt, what it printed, and what it measured beside it, in `--out`; `summary.json`
there says how each ended. What is measured on a GPU is also a line of the ledger, from which `ledger.py` makes tables.
`--only NAME ...` runs those pieces, also again; `--list` shows all; `--quick` is a trial of each, also on a CPU.

Nothing is needed but the packages of the core, flax, orbax and rich; without pytest no test runs, without PyTorch nothing is
compared with it, and without tyro no experiment runs. Pictures lie in a folder with them, packed before:

    python benchmarks/everything.py --pack idx:MNIST_FOLDER carried/mnist.npz
    python benchmarks/everything.py --pack folder:CIFAR_FOLDER carried/cifar10-jpeg75.npz --count 12000
    python benchmarks/everything.py --carried carried

In the same folder may lie packages that the machine lacks (``pip install --target carried --no-deps NAME …``).
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _everything_figures import FIGURES, figures_of
from _everything_pieces import CARRIED, PIECES, Piece

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    given = _arguments()
    stop = time.monotonic() + 60 * given.minutes
    if given.list:
        for name, piece in PIECES.items():
            print(f"{name:17} {piece.minutes:g} min  {_shown(piece.quick if given.quick else piece.command)}")
        return
    if given.pack:
        pack(given.pack[0], Path(given.pack[1]), given.count)
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
    later = []
    for name in wanted:
        piece = PIECES[name]
        command = piece.quick if given.quick else piece.command
        if lacks := [file for key, file in CARRIED.items() if f"{{{key}}}" in command and not filled[key]]:
            print(f"{name}: left out, since there is no carried/{lacks[0]} (--carried, --pack)", flush=True)
            continue
        if time.monotonic() + 60 * piece.minutes > stop:
            later.append(name)
            continue
        words = [word.format(**filled) if "\n" not in word else word for word in shlex.split(command)]
        if "--resume" in words:  # an empty folder holds a run's start
            (given.out / name).mkdir(exist_ok=True)
        ended[name] = run(name, words, piece, environment, given.out)
        summary.write_text(json.dumps(ended, indent=1))
        if name in FIGURES and filled["backend"] == "gpu" and not given.quick:
            note(name, given.out, given.ledger, given.commit)
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


def note(name: str, out: Path, ledger: Path, commit: str | None) -> None:
    """Adds what a piece measured to the ledger; where it measured nothing, nothing is added."""
    from experiments._ledger import add, line_of
    from kdjax.runs import as_json

    file = next((file for file in (out / f"{name}.json", out / f"{name}.xml") if file.exists()), None)
    if file is None:
        return
    figures, result = figures_of(name, file)
    machine = json.loads((out / "machine.txt").read_text())
    of_machine = {
        "versions": {"python": machine["python"]} | {key: machine["packages"].get(key) for key in ("jax", "torch")},
        "hardware": {
            "platform": machine["backend"],
            "device": machine["devices"][0]["kind"],
            "cores": machine["cores"],
        },
        "commit": None,
    }
    about = of_machine | {key: result[key] for key in of_machine if result.get(key)}
    about |= {"settings": _without_folders(result.get("config", {})), "data": result.get("data", {})}
    add(ledger, [as_json(line_of("everything", name, None, figures, about | {"commit": about["commit"] or commit}))])


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that say nothing of where this machine has its files."""
    return {key: value for key, value in config.items() if not (isinstance(value, str) and os.sep in value)}


def pack(source: str, file: Path, count: int) -> None:
    """Pictures of any source of `kdjax.data` as one compressed archive, which ``--data npz:FILE`` reads."""
    import numpy as np

    from kdjax.data import load

    arrays = {}
    for split in ("train", "test"):
        part = load(source, split)
        own = np.random.default_rng(0).permutation(len(part.labels))[: count or None]  # a folder's are class by class
        own = own if count else np.arange(len(part.labels))
        arrays |= {f"x_{split}": part.inputs[own], f"y_{split}": part.labels[own]}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    sizes = " and ".join(f"{len(arrays[f'y_{split}']):,}" for split in ("train", "test"))
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {sizes} examples")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "everything", help="folder for all results")
    parser.add_argument("--minutes", type=float, default=12, help="how long this call may take; default 12")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these pieces, also if they have ended before")
    parser.add_argument(
        "--carried", type=Path, help="folder with packed pictures, and Python packages that are missing"
    )
    parser.add_argument(
        "--ledger", type=Path, default=ROOT / "benchmarks" / "ledger.jsonl", help="where lines are added"
    )
    parser.add_argument("--commit", help="of the project, where the machine has no repository to ask")
    parser.add_argument("--pack", nargs=2, metavar=("SOURCE", "FILE"), help="pack pictures, and do no more")
    parser.add_argument("--count", type=int, default=0, help="of --pack: so many of each split at random; 0: all")
    parser.add_argument("--list", action="store_true", help="show the pieces, and do no more")
    parser.add_argument("--quick", action="store_true", help="a trial of every piece: its figures mean nothing")
    given = parser.parse_args()
    if given.minutes <= 0:
        parser.error(f"--minutes must be above 0; got {given.minutes:g}")
    given.out, given.ledger = given.out.resolve(), given.ledger.resolve()  # the pieces run in the repository's folder
    return given


def _filled(given: argparse.Namespace, environment: dict[str, str]) -> dict[str, str]:
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    folder = given.carried.resolve() if given.carried else None
    carried = {key: str(folder / file) if folder and (folder / file).exists() else "" for key, file in CARRIED.items()}
    platform = "cuda" if backend == "gpu" else "cpu"
    workers = f"-n{min(12, os.cpu_count() or 1)}" if find_spec("xdist") else "-q"
    return carried | {
        "out": str(given.out),
        "backend": backend,
        "platform": platform,
        "workers": workers,
        "ledger": str(given.ledger),
    }


def _shown(command: str) -> str:
    return f"python {command}" if "\n" not in command else "(what the machine is)"


if __name__ == "__main__":
    main()
