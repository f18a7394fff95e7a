"""Memory between steps: kept where it is asked for, in a process of its own, and the numbers stay."""

import json
import os
import platform
import subprocess
import sys
from statistics import median

import jax
import pytest

from kdjax.training import keep_memory, memory

# A block of 64 MB is needed for each call, beside 8 bytes of arguments and results.
CALLS = """
import json, resource, sys
import jax, jax.numpy as jnp
from kdjax.training import keep_memory

kept = keep_memory() if sys.argv[1] == "keep" else None

@jax.jit
def product(shift):
    rows = (jnp.arange(8 * 2**21, dtype=jnp.float32) * 1e-7 + shift).reshape(-1, 8)
    return (rows.T @ rows).sum()

found, faults = [], []
for number in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found.append(float(product(jnp.float32(number))))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([kept, faults, found]))
"""


def calls(way):
    """What `keep_memory` said, how many pages each later call had to be given (the median), and what all calls computed."""
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CALLS, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=variables)
    kept, faults, found = json.loads(done.stdout)
    return kept, median(faults[8:]), found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_kept_memory_is_not_taken_anew_for_each_call():
    _, anew, plain = calls("plain")
    kept, again, found = calls("keep")
    assert kept is True
    if anew < 8192:
        pytest.skip("this system gives memory in large pages, or this jaxlib keeps it")
    assert again < anew / 100
    assert found == plain


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_after_jax_has_begun_it_is_too_late():
    assert jax.devices()
    with pytest.raises(RuntimeError, match=r"keep_memory must be called before JAX makes a device"):
        keep_memory()


@pytest.mark.parametrize(("system", "library"), [("darwin", ("", "")), ("win32", ("", "")), ("linux", ("", ""))])
def test_another_c_library_is_left_alone(system, library, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: library)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("it was asked"))
    assert memory.keep_memory() is False


def test_a_refusal_of_the_c_library_is_told(monkeypatch):
    class Refusing:
        def __init__(self, name):
            pass

        def mallopt(self, setting, value):
            return 0

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(memory.ctypes, "CDLL", Refusing)
    monkeypatch.setattr(memory, "_has_begun", lambda: False)
    assert memory.keep_memory() is False
