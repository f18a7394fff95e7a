"""What becomes of memory between two steps on a CPU: given back to the system, or kept for the next one."""

import ctypes
import platform
import sys
from contextlib import suppress
from pathlib import Path

# Of glibc's <malloc.h>: how much free memory is given back from the heap's end, how many blocks are mapped by themselves,
# and how many heaps there are. Blocks of the largest size go through the one heap then, and come out of it again.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
KEPT = ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))


def keep_memory() -> bool:
    """Has this process keep freed memory for its next step, which on a CPU makes steps of many larger networks faster.

    XLA takes all that a call needs beside its arguments and results as one block. Of more than 32 MB glibc, Linux's usual C
    library, maps it anew for each call, and the system clears it page by page. A block that is kept is cleared once. Call
    this first thing in a script of your own, before JAX has made a device, a key or an array. No library should.

    The process may then hold several times as much, and gives nothing back before it ends. Nothing that is computed changes.
    `docs/devices.md` says what it gains and what it costs.

    Returns:
      Whether the C library does it: False where it is not glibc, as on macOS, on Windows and with musl.

    Raises:
      RuntimeError: if JAX has begun: its threads have memory of their own by then, and nothing would be gained.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    if _has_begun():
        raise RuntimeError("keep_memory must be called before JAX makes a device, a key or an array; it has made one.")
    library = ctypes.CDLL(None)
    return all(library.mallopt(setting, value) == 1 for setting, value in KEPT)


def _has_begun() -> bool:
    """Whether XLA has made its threads."""
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # one that has just ended
            if thread.read_text().startswith("tf_XLA"):
                return True
    return False
