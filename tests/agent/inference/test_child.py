"""One inference process: how it is ended, and on whom that is blamed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.inference.child import Child
from agent.inference.messages import Ready
from agent.inference.watch import Watch


@contextmanager
def running() -> Iterator[Child]:
    """A process that has said that it listens."""
    ready = threading.Event()

    def heard(_: Child, message: object) -> None:
        if isinstance(message, Ready):
            ready.set()

    one = Child(beat_s=0.5, watch=Watch(start_s=60.0, hang_s=5.0, now=0.0), on_message=heard)
    try:
        assert ready.wait(60.0)
        yield one
    finally:
        one.kill()
        one.ending(None)
        one.marks.close()


def test_one_that_is_killed_writes_its_stacks_and_dies_of_that(capfd: pytest.CaptureFixture[str]):
    """Nobody waits for it longer than that takes: frames are coming."""
    with running() as child:
        child.kill()
        assert child.process.returncode == -signal.SIGABRT
        assert "Thread 0x" in capfd.readouterr().err


def test_one_that_cannot_write_anything_is_killed_all_the_same():
    with running() as child:
        os.kill(child.pid, signal.SIGSTOP)
        child.kill()
        assert child.ending(None).text == "it was killed by SIGKILL"


def test_what_we_killed_is_no_crash():
    with running() as child:
        child.kill()
        ending = child.ending(None)
    assert (ending.is_fault, ending.is_crash) == (False, False)


def test_one_that_aborts_by_itself_crashed():
    with running() as child:
        os.kill(child.pid, signal.SIGABRT)
        assert child.closed.wait(60.0)
        ending = child.ending(None)
    assert (ending.is_fault, ending.is_crash) == (True, True)


def test_a_hang_is_a_hang_however_it_ended():
    with running() as child:
        child.kill()
        ending = child.ending("has said nothing for 5.0 s")
    assert (ending.is_fault, ending.is_crash, ending.is_hang) == (True, False, True)
