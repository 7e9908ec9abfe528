"""What systemd is told: ready, alive, in words, stopping. One datagram each; without NOTIFY_SOCKET nothing happens."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks the protocol of sd_notify(3). Watchdog and its pace go by system time."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        name = env.get("NOTIFY_SOCKET", "")
        #: A leading "@" means the abstract namespace, whose names begin with a zero byte.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        watchdog_us = env.get("WATCHDOG_USEC", "")
        is_ours = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._period_s = int(watchdog_us) / 2_000_000 if watchdog_us.isdigit() and is_ours else None
        self._last_alive = 0.0
        self._last_status = ""

    def ready(self) -> None:
        """The control loop and the outbox run."""
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """Called by the control loop: feeds the watchdog at half its time, and tells a changed status in words."""
        lines = []
        now = time.monotonic()
        if self._period_s is not None and now - self._last_alive >= self._period_s:
            self._last_alive = now
            lines.append("WATCHDOG=1")
        if status != self._last_status:
            self._last_status = status
            lines.append(f"STATUS={status}")
        if lines:
            self._send("\n".join(lines))

    def stopping(self) -> None:
        """The end was asked for."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # a supervisor that does not listen must not stop what it supervises
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto(text.encode(), self._address)
