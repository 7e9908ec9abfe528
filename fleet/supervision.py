"""The outermost loop of a part of the server: what ends unasked is told and started again."""

import logging
import random
import threading
from collections.abc import Callable

from protocol.errors import UnavailableError

log = logging.getLogger("mooring.supervision")

#: Longest pause before a part is started again, in seconds.
RESTART_MAX_S = 15.0


def supervise(name: str, work: Callable[[], None], stop: threading.Event) -> None:
    """The outermost loop of a part: whatever ended it is logged, then it starts again after a pause that grows."""
    failures = 0
    while not stop.is_set():
        try:
            work()
            failures = 0
        except UnavailableError as error:
            failures += 1
            log.warning("part_waits part=%s error=%s", name, error)
        except Exception:
            failures += 1
            log.exception("part_failed part=%s", name)
        if failures:
            stop.wait(random.uniform(0.1, min(RESTART_MAX_S, 0.5 * 2**failures)))  # noqa: S311 - jitter, no secret
