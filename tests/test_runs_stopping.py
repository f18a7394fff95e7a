"""SIGTERM and Ctrl-C: a run is asked to end, and ends where it can be gone on with."""

import contextlib
import os
import signal
import threading

import pytest

from kdjax.runs import StoppedError, stopped_by_signals


def asked(*numbers):
    """A block that is sent signals, and then does as `fit` does where it is asked to stop."""
    with stopped_by_signals() as stop:
        assert not stop()
        for number in numbers:
            os.kill(os.getpid(), number)
        assert stop()
        raise StoppedError("own: stopped after step 3 of 8, as asked.")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_asks_once_and_the_code_says_which_it_was(number, code, capsys):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StoppedError, match="step 3 of 8") as seen:
        asked(number)
    assert seen.value.code == code
    assert "Asked to stop: it ends after this step" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_asked_again_it_stops_at_once():
    with pytest.raises(KeyboardInterrupt):
        asked(signal.SIGINT, signal.SIGINT)
    with pytest.raises(StoppedError, match="what was saved before is kept") as seen:
        asked(signal.SIGTERM, signal.SIGTERM)
    assert seen.value.code == 75


def test_nobody_at_work_takes_a_stop_for_a_failure_of_its_own():
    def at_work():
        with stopped_by_signals(), contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        at_work()


def test_a_stop_is_a_stop_where_nobody_reads_what_is_said(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone, stopped_by_signals() as stop:
        monkeypatch.setattr("sys.stderr", gone)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            gone.close()


def test_another_thread_is_told_of_no_signal():
    seen = []

    def work():
        with stopped_by_signals() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
