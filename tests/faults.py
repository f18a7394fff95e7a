"""The fault suite: tens of thousands of failed calls, changed bytes and kills, and one page that says what came of them.

    python tests/faults.py --out docs/reliability-faults.md

Each group of faults is a process of its own, two at a time. Where one fault ends otherwise than it should, each is said,
and no page is written; begun again, the command goes on with what is left. `--share 0.01` tries a seeded sample.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import faults_page
import machine

from kdjax._files import write_json

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "faults_run.json"
BEGUN = ROOT / ".cache" / "faults.json"  # the groups in which nothing failed, of a run that has not come to its end
# What takes long even once: of these a share of the places is struck.
SHARES = {"a comparison, from its first file to results.json": 0.014, "a report": 0.05}
PARTS = {"weights": 4, "training states": 4}


def jobs() -> list[tuple[str, str, dict]]:
    """(module, its subject, keywords) of every group, the longest first."""
    import faults_bytes
    import faults_calls
    import faults_kills

    found = [("pair", "", {})]
    found += [("step", name, {}) for name in faults_kills.WAYS]
    found += [("stop", "", {})]
    for name in faults_bytes.KEPT:
        parts = PARTS.get(name, 1)
        found += [("bytes", name, {"part": (number, parts)}) for number in range(parts)]
    found += [("random", name, {}) for name in faults_kills.WAYS]
    everything = {**faults_calls.RUNS, **faults_calls.SAVES}
    found += [("calls", name, {"share": SHARES[name]} if name in SHARES else {}) for name in everything]
    return found


def do(kind: str, name: str, keywords: dict) -> dict:
    """One group of faults, in this process."""
    import logging

    logging.disable(logging.CRITICAL)  # Orbax tells of each fault at length
    if kind == "pair":
        import faults_pair

        return faults_pair.run(**keywords)
    if kind == "bytes":
        import faults_bytes

        return faults_bytes.run(name, **keywords)
    if kind == "calls":
        import faults_calls

        return faults_calls.run(name, **keywords)
    import faults_kills

    if kind == "stop":
        return faults_kills.asked_at_each_step(**keywords)
    return {"step": faults_kills.at_each_step, "random": faults_kills.at_random}[kind](name, **keywords)


def in_process(job: tuple[str, str, dict], shim: Path | None, scratch: Path) -> dict:
    """One group in a process of its own; what it found, and its seconds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment |= {"JAX_PLATFORMS": "cpu", "FAULTS_FOLDER": str(scratch), "PYTHONWARNINGS": "ignore"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "programs"))
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if job[0] == "calls":
        environment["LD_PRELOAD"] = str(shim)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return {"injected": 0, "outcomes": [], "failures": [f"{job[0]} {job[1]} did not run: {done.stderr[-2000:]}"]}
    found = json.loads(done.stdout.rsplit("\n", 2)[-2])
    return found | {"seconds": round(time.monotonic() - started, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help="one group of faults, as JSON: what the command starts itself")
    parser.add_argument("--share", type=float, help="try only such a share of the faults, and write no page")
    parser.add_argument("--workers", type=int, default=2, help="how many groups at a time")
    parser.add_argument("--only", default="", help="only groups that have this text in their name; no page is written")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args(argv)
    if options.job:
        kind, name, keywords = json.loads(options.job)
        print(json.dumps(do(kind, name, keywords)))
        return 0

    import faults_calls

    started, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        shim = faults_calls.compiled(Path(scratch))
        every = [job for job in jobs() if options.only in f"{job[0]} {job[1]}"]
        if shim is None:
            print("There is no C compiler: no call of a save is failed.")
            every = [job for job in every if job[0] != "calls"]
        if options.share is not None:
            every = [
                (kind, name, keywords | {"share": options.share * keywords.get("share", 1)})
                for kind, name, keywords in every
                if kind in ("bytes", "calls", "step", "stop")
            ]
        whole = options.out is not None and not options.only and options.share is None and shim is not None
        begun = json.loads(BEGUN.read_text()) if whole and BEGUN.exists() else {"seconds": 0.0, "groups": []}
        done = [one["job"] for one in begun["groups"]]
        every = [job for job in every if json.dumps(job) not in done]
        found = begun["groups"]
        with ThreadPoolExecutor(options.workers) as pool:
            for job, one in zip(every, pool.map(lambda job: in_process(job, shim, Path(scratch)), every), strict=True):
                found.append({"job": json.dumps(job), "kind": job[0], "name": job[1], **one})
                print(f"{job[0]:7} {job[1]:50} {one['injected']:7,} faults, {one.get('seconds')} s", flush=True)
                for failure in one["failures"]:
                    print(f"  FAILED {failure}", flush=True)
                if whole:
                    own = [group for group in found if not group["failures"]]
                    write_json(BEGUN, {"seconds": begun["seconds"] + time.monotonic() - started, "groups": own})
    about = machine.described()
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "software": ", ".join([about["software"].split(", hypothesis")[0], faults_page.orbax()]),
        "hardware": about["hardware"],
        "seconds": round(begun["seconds"] + time.monotonic() - started),
        "workers": options.workers,
        "load": round(load, 1),
        "groups": found,
    }
    failed = sum(len(one["failures"]) for one in found)
    print(f"{faults_page.total(record):,} faults in {record['seconds'] / 60:.1f} minutes; {failed} failed.")
    if not failed and whole:
        BEGUN.unlink()
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        options.out.write_text(faults_page.page(record))
        print(f"Written: {options.out}")
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
