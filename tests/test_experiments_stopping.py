"""Scripts that train by themselves: asked to stop, they end between two calls of the device, wherever the signal came."""

import gc
import os
import signal

import pytest

from experiments._stopping import stoppable, until_asked
from kdjax.runs import StoppedError


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_training_at_the_next_call_also_one_that_comes_while_garbage_is_collected(number, code):
    seen = []

    def collected(phase, info):  # an exception that is raised here is dropped
        if phase == "start" and not seen:
            seen.append(os.kill(os.getpid(), number))

    watch = until_asked(lambda done, metrics: seen.append(done))

    def trained():
        with stoppable():
            watch(1, {})
            seen.clear()
            gc.callbacks.append(collected)
            try:
                gc.collect()
            finally:
                gc.callbacks.remove(collected)
            assert seen == [None]
            watch(2, {})

    with pytest.raises(StoppedError, match="what was finished is kept") as stopped:
        trained()
    assert seen == [None]
    assert stopped.value.code == code
    watch(3, {})  # outside of the block nobody is asked
    assert seen == [None, 3]
