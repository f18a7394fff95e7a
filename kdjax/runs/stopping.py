"""A run that is asked to end: by SIGTERM, as clusters do before they take a machine away, or by Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import jax
from jax.experimental import multihost_utils

RESUME = 75  # EX_TEMPFAIL of sysexits.h: try again later
STOPPED = 130  # what a shell gives to a program that Ctrl-C has ended
_calls = count()  # of all blocks: the processes agree on one of these numbers


class StoppedError(Exception):
    """The run was asked to end, and what it has done is saved.

    Attributes:
      code: with which the program is to exit.
    """

    code = RESUME


class _AtOnce(KeyboardInterrupt):
    """Ends a block where it is; no Exception, which whoever happens to be at work would take for a failure of its own."""


def say(text: str) -> None:
    """On standard error, if anybody still reads there: who stops a run may have ended its readers with it."""
    with suppress(OSError, RuntimeError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """What `kdjax.runs.compare` takes as `stop`: whether SIGTERM or Ctrl-C has asked the run to end.

    Asked a second time, the run ends where it is, by a KeyboardInterrupt, or by a `StoppedError` after SIGTERM. Of several
    processes, SIGTERM to any of them stops all after the same step, by the preemption service of ``jax.distributed``.
    Outside of the main thread, which alone is told of signals, it is always False.

    Example:
      >>> import os
      >>> with stopped_by_signals() as stop:
      ...     before = stop()
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     before, stop()
      (False, True)
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise _AtOnce
        say("Asked to stop: it ends after this step. Asked again, it stops at once.")

    def agreed() -> bool:
        if not asked and multihost_utils.reached_preemption_sync_point(next(_calls)):
            asked.append(signal.SIGTERM)
        return bool(asked)

    if jax.process_count() > 1:
        yield agreed
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    except _AtOnce:
        if asked[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise StoppedError("asked to stop; what was saved before is kept.") from None
    except StoppedError as error:
        error.code = STOPPED if asked and asked[0] == signal.SIGINT else RESUME
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
