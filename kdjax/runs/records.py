"""What a run says of itself: one record of where its numbers come from, for every command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax._files import append_json_line as append_json_line
from kdjax._files import as_json as as_json
from kdjax._files import write_bytes as write_bytes
from kdjax._files import write_json as write_json

PACKAGES = ("kdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance(config: Mapping[str, Any], *, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Where a run's numbers come from, as JSON can hold it.

    Args:
      config: the run's settings.
      data: digests of what it reads, by name, as of `digest`.

    Returns:
      ``"command"``, ``"config"``, ``"data"``, ``"versions"``, ``"hardware"`` (platform, kind and number of devices,
      processes, cores, machine, load before the run) and ``"commit"``: of the script's repository, with ``+`` where files
      differ from it; None outside of one.
    """
    devices = jax.devices()
    return as_json({
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
