"""Threads of the control process that go on until it ends: what ends one unexpectedly is logged, and it starts again."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("mooring.service")

#: Seconds of system time before a thread that failed starts again.
PAUSE_S = 5.0


class Threads:
    """All end after `stop` is set; whoever waits must be woken by then."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._threads = stop, list[threading.Thread]()

    def start(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """Run it on a thread of its own; it returns once the event it is given is set."""
        thread = threading.Thread(target=self._keep_running, args=(name, run), name=name)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        """Wait for the end of all."""
        for thread in self._threads:
            thread.join()

    def _keep_running(self, name: str, run: Callable[[threading.Event], None]) -> None:
        """The outermost loop of a thread; what it starts again goes on from what the store remembers."""
        while not self._stop.is_set():
            try:
                run(self._stop)
            except Exception:
                log.exception("service.thread-failed name=%s", name)
                self._stop.wait(PAUSE_S)
            else:
                return
