"""What a run says of itself: one record of where its numbers come from, for every command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax._files import FORMAT, digest_of_json
from kdjax._files import append_json_line as append_json_line
from kdjax._files import as_json as as_json
from kdjax._files import write_bytes as write_bytes
from kdjax._files import write_json as write_json
from kdjax.runs.folders import RECORD_FORMAT, read_object

PACKAGES = ("kdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance(config: Mapping[str, Any], *, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Where a run's numbers come from, as JSON can hold it.

    Args:
      config: the run's settings.
      data: digests of what it reads, by name, as of `digest`.

    Returns:
      ``"kdjax_format"``, the number of the record's format, ``"command"``, ``"config"``, ``"data"``, ``"versions"``,
      ``"hardware"`` (platform, kind and number of devices, processes, cores, machine, load before the run) and
      ``"commit"``: of the script's repository, with ``+`` where files differ from it; None outside of one.
    """
    devices = jax.devices()
    return as_json({
        FORMAT: RECORD_FORMAT,
        "command": shlex.join(["python", *sys.argv]),
        "config": config,
        "data": dict(data or {}),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": {
            "platform": devices[0].platform,
            "device": devices[0].device_kind,
            "devices": len(devices),
            "processes": jax.process_count(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "commit": _commit(Path(sys.argv[0]).absolute().parent),
    })  # fmt: skip


def open_results(path: str | os.PathLike[str], about: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """A ``results.json`` with a record a seed, which is written entry by entry and gone on with where it was left.

    Args:
      path: of the file; what it holds from before a resumption stays.
      about: of `provenance`. That of the runs before stands under ``"before"``.

    Returns:
      The results, `about` and the list of ``"seeds"``, and ``entry(seed, name, make, *arguments)``. It gives what the seed's
      record holds under that name from before, or else ``make(*arguments)``, as JSON can hold it and written at once.

    Raises:
      ValueError: if the file is damaged, also where it is still JSON: it holds a digest of itself.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "results.json"
      >>> results, entry = open_results(path, {"commit": "a"})
      >>> entry(0, "alone", lambda: {"accuracy": 0.5})
      {'accuracy': 0.5}
      >>> results, entry = open_results(path, {"commit": "b"})
      >>> entry(0, "alone", lambda: "not called"), entry(1, "alone", lambda: {"accuracy": 0.75}), len(results["seeds"])
      ({'accuracy': 0.5}, {'accuracy': 0.75}, 2)
    """
    file = Path(path)
    results: dict[str, Any] = {"seeds": []}
    if file.exists():
        results = read_object(file)
        if not isinstance(results.get("seeds"), list):
            raise ValueError(f"{file} must hold a list of seeds, as the run wrote it; it is damaged.")
        if results.pop("digest", None) not in (None, digest_of_json(results)):  # None: of an older version
            raise ValueError(
                f"{file} must hold what the run wrote; its digest is another: it is damaged or was edited."
            )
        last = {name: results[name] for name in about if name in results}
        results["before"] = [*results.get("before", []), last]
    results |= as_json(about)

    def entry(seed: int, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
        seeds = results["seeds"]
        seeds.extend({} for _ in range(seed + 1 - len(seeds)))
        if name not in seeds[seed]:
            seeds[seed][name] = as_json(make(*arguments))
            write_results(file, results)
        return seeds[seed][name]

    return results, entry


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes results that `open_results` is to go on with, and their digest beside them."""
    own = as_json(results)
    write_json(path, own | {"digest": digest_of_json(own)})


def digest(*arrays: Any) -> str:
    """A digest of arrays' bytes, shapes and dtypes: the same data have the same one.

    Example:
      >>> digest(np.arange(3)) == digest(np.arange(3)), digest(np.arange(3)) == digest(np.arange(4))
      (True, False)
    """
    told = blake2b(digest_size=16)
    for array in arrays:
        host = np.ascontiguousarray(array)
        told.update(f"{host.dtype}{host.shape}".encode())
        told.update(host.reshape(-1).view(np.uint8).data)
    return told.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit(folder: Path) -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
