"""Messages as they are stored, for live views: pushed inside the process that ingests, polled from the database in any other.

Nothing here is needed for anything but a live view: a slow reader loses the oldest messages, and its losses are counted.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from fleet.db import Database
from fleet.monitoring import store
from fleet.monitoring.model import EventRow, LiveMessage, TelemetryRow
from protocol.ids import DeviceId, TenantId

#: Messages kept for one reader.
QUEUE_LENGTH = 500
#: Rows of one look into the database.
POLL_ROWS = 500


@dataclass
class Subscription:
    """What one reader wants and has not read yet."""

    tenant: TenantId
    #: None: of all devices.
    device: DeviceId | None = None
    #: Messages this reader was too slow for.
    dropped: int = 0
    _queue: deque[LiveMessage] = field(default_factory=deque)
    _ready: threading.Condition = field(default_factory=threading.Condition)

    def take(self, *, timeout_s: float) -> list[LiveMessage]:
        """Everything that came since the last call, oldest first; empty when nothing came in `timeout_s` (system time)."""
        with self._ready:
            if not self._queue:
                self._ready.wait(timeout_s)
            taken = list(self._queue)
            self._queue.clear()
        return taken

    def _offer(self, messages: Iterable[LiveMessage]) -> None:
        with self._ready:
            for message in messages:
                if message.tenant != self.tenant or (self.device is not None and message.device != self.device):
                    continue
                if len(self._queue) >= QUEUE_LENGTH:
                    self._queue.popleft()
                    self.dropped += 1
                self._queue.append(message)
            if self._queue:
                self._ready.notify_all()


class LiveFeed:
    """From the ingest of this process to its live views."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        #: Whether this process ingests; when it does not, readers poll (`poll_received`).
        self.is_fed = False

    @property
    def has_readers(self) -> bool:
        """Whether anybody looks."""
        return bool(self._subscriptions)

    def publish(self, messages: Iterable[LiveMessage]) -> None:
        """Hand the messages to every reader that wants them; never waits for one."""
        with self._lock:
            readers = list(self._subscriptions)
        if readers:
            batch = list(messages)
            for reader in readers:
                reader._offer(batch)  # noqa: SLF001 - the two are one

    @contextmanager
    def subscribe(self, tenant: TenantId, device: DeviceId | None = None) -> Iterator[Subscription]:
        """A reader until the block ends."""
        subscription = Subscription(tenant, device)
        with self._lock:
            self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)


def poll_received(
    database: Database, tenant: TenantId, *, after: datetime, device: DeviceId | None = None
) -> tuple[list[LiveMessage], datetime]:
    """What any process stored after the moment, oldest first, and the moment to ask from next. Raises: UnavailableError."""
    with database.reading() as tx:
        rows = store.list_received(tx, tenant, after=after, limit=POLL_ROWS)
    latest = rows[-1].received_at if rows else after
    return [_message(tenant, row) for row in rows if device is None or row.device == device], latest


def _message(tenant: TenantId, row: EventRow | TelemetryRow) -> LiveMessage:
    topic = row.stream if isinstance(row, EventRow) else f"tel/{row.name}"
    return LiveMessage(tenant, row.device, topic, row.ts, row.body)
