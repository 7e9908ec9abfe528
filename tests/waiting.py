"""Waiting for a condition with a deadline: what tests use in place of sleeping."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: Longer than anything here takes on a machine that does many other things: a test that waits in vain has failed anyway.
PATIENCE_S = 120.0


def wait_until(predicate: Callable[[], T], *, timeout_s: float = PATIENCE_S, what: str = "the condition") -> T:
    """The first true value of the predicate. Raises: AssertionError naming `what` when none came within `timeout_s`."""
    pause, deadline = threading.Event(), time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {timeout_s:g} s for {what}; last value: {value!r}")
        pause.wait(0.02)
