"""The outermost loop of a part of the server: what ends unasked is told and started again."""

import logging
import random
import threading
from collections.abc import Callable

from protocol.errors import MooringError, UnavailableError

log = logging.getLogger("mooring.supervision")

#: Longest pause before a part is started again, in seconds.
RESTART_MAX_S = 15.0


def supervise(name: str, work: Callable[[], None], stop: threading.Event, *, failed: Callable[[str, str], None] | None = None) -> None:
    """The outermost loop of a part: whatever ended it is logged, then it starts again after a pause that grows.

    `failed` is told the part's name and what people may read of the error.
    """
    failures, trouble = 0, ""
    while not stop.is_set():
        try:
            work()
            failures, trouble = 0, ""
        except UnavailableError as error:
            failures += 1
            trouble = "It waits for something that does not answer; the log of the server says for what."
            log.warning("part_waits part=%s error=%s", name, error)
        except Exception as error:
            failures += 1
            # the text of an error that is not ours may hold anything
            trouble = (
                error.message if isinstance(error, MooringError) else f"It failed ({type(error).__name__}); the server's log says how."
            )
            log.exception("part_failed part=%s", name)
        if failures:
            if failed is not None:
                failed(name, trouble)
            stop.wait(random.uniform(0.1, min(RESTART_MAX_S, 0.5 * 2**failures)))  # noqa: S311 - jitter, no secret
