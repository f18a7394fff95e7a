"""Scripts that train by themselves end between two calls of the device, once they are asked to; what is finished is saved.

An exception out of a signal's handler would end them sooner, and now and then not at all: Python drops one that is raised
while it collects garbage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kdjax.runs import StoppedError, stopped_by_signals

asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)
"""Whether the script that runs has been asked to stop."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block where it trains with `until_asked`, by a StoppedError with the exit's code."""
    with stopped_by_signals() as stop:
        token = asked.set(stop)
        try:
            yield
        finally:
            asked.reset(token)


def until_asked(watch: Callable[[int, Any], None] = lambda done, metrics: None) -> Callable[[int, Any], None]:
    """The `watch` of an epoch, which ends where the script is asked to stop."""

    def watching(done: int, metrics: Any) -> None:
        if asked.get()():
            raise StoppedError("asked to stop; what was finished is kept.")
        watch(done, metrics)

    return watching
