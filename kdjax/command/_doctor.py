"""``kdjax doctor``: what is installed, what JAX computes on, what is missing and what brings it."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kdjax.command._packages import CORE, OPTIONAL, install
from kdjax.command._settings import Common


@dataclass(frozen=True, kw_only=True)
class Doctor(Common):
    """Say which versions and devices there are, what is missing, and which extra brings it."""


def doctor() -> int:
    """Prints it; 1 if JAX finds no device to compute on."""
    print(f"kdjax {version_of('kdjax') or 'from a checkout'}, Python {platform.python_version()}, {platform.system()}")
    print(", ".join(f"{name} {version_of(name) or 'missing'}" for name in CORE))
    found, code = devices()
    print(found)
    for package in OPTIONAL:
        there = version_of(package.distribution)
        said = there or f"missing ({package.purpose}): {install(package)}"
        print(f"  {package.extra:<12} {package.distribution:<20} {said}")
    return code


def devices() -> tuple[str, int]:
    """What JAX computes on, or why it cannot; and the exit code that follows."""
    import jax

    try:
        there = jax.devices()
    except RuntimeError as error:
        return f"JAX finds no device: {error}", 1
    kind = f"{len(there)} × {there[0].platform} ({there[0].device_kind})"
    return f"JAX computes on {kind}, beside {os.cpu_count()} cores of {platform.machine()}", 0


def version_of(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
