"""The HTTP server: a few threads that take turns.

One listens; the one that has read a whole request answers it itself while the next listens on, so that no request waits for another
thread to wake up.

As many requests are inferred at once as there are lanes; a bounded number waits, the next is answered 503. Everything is bounded:
connections, heads, bodies, memory of all bodies together, and the time a client may take.
"""

import functools
import hmac
import logging
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from agent.serving import api
from agent.serving.connection import Connection, Patience, PlainWire, TlsWire
from agent.serving.figures import Totals
from agent.serving.http import Head, RefusedError, answer_head, number, problem, shown
from agent.serving.models import ClosedError, ServedModel, Shelf
from agent.serving.tensors import build_answer
from protocol.clock import SystemClock
from runtime.base import InferFailed

log = logging.getLogger("mooring.serving")

_SCRATCH_BYTES = 64 * 1024
#: Connections beyond the limit that are told so at once; more are closed without a word.
_REFUSED_AT_ONCE = 16
_LISTEN_BACKLOG = 128
_MAX_EVENTS = 64
#: Seconds of an inference below which nobody notices that it holds up the listening thread.
QUICK_S = 0.002
_SOON = (("Retry-After", "1"),)
_LOCAL_NAMES = frozenset(("localhost", "localhost."))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows itself and its clients."""

    #: Requests inferred at once.
    lanes: int = 1
    #: Whole requests that wait for a lane.
    queue: int = 16
    connections: int = 64
    #: Bytes of one body, packed and unpacked, and of all bodies at once.
    body_bytes: int = 16 << 20
    held_bytes: int = 64 << 20
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may ask."""

    #: Refuse a Host that is not this machine's own name: a page in a browser must not reach us under a name of its own (DNS rebinding).
    wants_local_host: bool = True
    token: bytes = b""

    def check(self, head: Head) -> None:
        """Returns when the request may be answered. Raises: RefusedError 401, 403."""
        if b"origin" in head.headers:
            raise RefusedError(403, "Requests of web pages (Origin) are not answered.", ends=True)
        if self.wants_local_host and not is_local(head.headers.get(b"host", b"localhost")):
            host = shown(head.headers[b"host"][:80])
            raise RefusedError(403, f"Host {host} is not this machine; wanted localhost or 127.0.0.1.", ends=True)
        if self.token:
            kind, _, given = head.headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
                raise RefusedError(401, "Wanted: Authorization: Bearer TOKEN.", ends=True, headers=(("WWW-Authenticate", "Bearer"),))


@dataclass(frozen=True, slots=True)
class _Job:
    """A whole request for an inference."""

    connection: Connection
    call: api.Call
    since_s: float


class Server:
    """Serves the shelf's models on a listening socket, which it takes over. `start`, `stop` and `totals` may be called from any thread."""

    def __init__(
        self, listener: socket.socket, shelf: Shelf, *, limits: Limits, guard: Guard, version: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._listener, self._shelf, self._limits, self._guard, self._version, self._tls = listener, shelf, limits, guard, version, tls
        self._patience = limits.patience
        listener.setblocking(False)
        self._now = SystemClock().monotonic
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        #: Held by the thread that listens.
        self._listening = threading.Lock()
        #: Guards what listening and inferring threads both change.
        self._state = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._waiting: deque[_Job] = deque()
        self._again: deque[Connection] = deque()
        self._busy: dict[int, float] = {}
        #: Seconds that an inference took lately, by line.
        self._typical_s: dict[str, float] = {}
        self._held = 0
        self._swept_s = self._now()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._is_stopping = False
        self._threads = [threading.Thread(target=self._run, name=f"serve-{index}", daemon=True) for index in range(limits.lanes + 1)]
        #: Told of what nobody foresaw, which ends the process; the outermost loop of each thread.
        self.on_failure: Callable[[BaseException], None] = _raise_on

    def start(self) -> None:
        """Answer from now on."""
        self._listener.listen(_LISTEN_BACKLOG)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is inferred, hang up on everybody, close the listener."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        for connection in list(self._connections.values()):
            connection.close()
        self._listener.close()
        self._epoll.close()
        os.close(self._wake)

    def totals(self) -> list[Totals]:
        """Figures of every line since the start."""
        found = []
        for line, entry in self._shelf.entries().items():
            counter, model = self._shelf.counters[line], entry.model
            with self._state:
                found.append(
                    Totals(
                        line,
                        model.release if model else "",
                        entry.text,
                        model.provider if model else "",
                        counter.answered,
                        counter.failed,
                        counter.refused,
                        tuple(counter.buckets),
                    )
                )
        return found

    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def waiting(self) -> int:
        """Whole requests that wait for a lane."""
        return len(self._waiting)

    def held_bytes(self) -> int:
        """Memory that all bodies take."""
        return self._held

    def busy_s(self) -> float:
        """Seconds that the longest running inference has taken so far; 0 when none runs."""
        now = self._now()
        with self._state:
            return max((now - since for since in self._busy.values()), default=0.0)

    # --- turns ---

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                with self._listening:
                    job = self._listen()
                while job is not None:
                    self._infer(job)
                    job = self._next_or_leave()
        except BaseException as error:  # noqa: BLE001 - the outermost loop of this thread
            self.on_failure(error)

    def _listen(self) -> _Job | None:
        """Handle the sockets until a request is ours to infer; None at the end."""
        while not self._is_stopping:
            if (job := self._enter()) is not None:
                if not self._is_quick(job):
                    return job
                self._infer(job)
                self._leave_lane()
                continue
            timeout_s = 0.0 if self._again else max(0.0, self._swept_s + self._patience.sweep_s - self._now())
            for fd, events in self._epoll.poll(timeout_s, _MAX_EVENTS):
                self._handle(fd, events)
            for _ in range(len(self._again)):
                self._read(self._again.popleft())
            if self._now() >= self._swept_s + self._patience.sweep_s:
                self._sweep()
        os.eventfd_write(self._wake, 1)  # for the next thread
        return None

    def _enter(self) -> _Job | None:
        """The next request, when a lane is free for it."""
        with self._state:
            if not self._waiting or len(self._busy) >= self._limits.lanes:
                return None
            self._busy[threading.get_ident()] = self._now()
            return self._waiting.popleft()

    def _is_quick(self, job: _Job) -> bool:
        """Whether the listening thread infers it in passing: for a model so quick, waking another thread costs more than waiting does."""
        return self._limits.lanes == 1 and self._typical_s.get(job.call.line, QUICK_S) < QUICK_S

    def _leave_lane(self) -> None:
        with self._state:
            del self._busy[threading.get_ident()]

    def _next_or_leave(self) -> _Job | None:
        """The next request for the lane that this thread is in; None when it left it."""
        with self._state:
            if self._waiting:
                self._busy[threading.get_ident()] = self._now()
                return self._waiting.popleft()
            del self._busy[threading.get_ident()]
            return None

    # --- sockets: the listening thread ---

    def _handle(self, fd: int, events: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
            return
        connection = self._connections.get(fd)
        if connection is None:
            if fd == self._wake:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            return
        if connection.is_busy:
            self._park(connection)
        elif connection.out:
            self._flush(connection)
        elif connection.is_lingering:
            self._drain(connection)
        elif events:
            self._read(connection)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:  # no file left: those that wait are taken when others hung up
                log.warning("serving.accept-failed text=%s", error)
                return
            if len(self._connections) >= self._limits.connections + _REFUSED_AT_ONCE:
                sock.close()
                continue
            if self._listener.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = PlainWire(sock) if self._tls is None else TlsWire(sock, self._tls)
            connection = Connection(wire, self._now() + self._patience.idle_s, self._patience)
            self._connections[wire.fileno()] = connection
            self._watch(connection)
            if sum(not one.is_lingering for one in self._connections.values()) > self._limits.connections:
                text = f"{self._limits.connections} connections are open; try again later."
                self._refuse(connection, RefusedError(503, text, ends=True, headers=_SOON))

    def _read(self, connection: Connection) -> None:
        if connection.is_closed or connection.is_busy or connection.ends:
            return
        try:
            if connection.head is None and not self._read_head(connection):
                return
            is_whole = connection.read_body()
            if is_whole is None:
                self._close(connection)
            elif is_whole:
                self._take(connection)
        except RefusedError as error:
            self._refuse(connection, error)
        except OSError:
            self._close(connection)

    def _read_head(self, connection: Connection) -> bool:
        """Whether the head is there and its body may come. Raises: RefusedError, OSError."""
        found = connection.read_head(self._scratch, self._now())
        if found is None:
            self._close(connection)
        if not found or connection.head is None:
            return False
        head = connection.head
        self._guard.check(head)
        if head.length > self._limits.body_bytes:
            raise RefusedError(413, f"The body has {head.length} bytes; at most {self._limits.body_bytes} are read.", ends=True)
        before = connection.held_bytes
        if self._held + max(0, head.length - before) > self._limits.held_bytes:
            raise RefusedError(503, "Too many large requests are on their way; try again later.", ends=True, headers=_SOON)
        connection.begin_body(number(head.headers, b"inference-header-content-length") or 0, self._now())
        self._hold(connection.held_bytes - before)
        return True

    def _hold(self, change: int) -> None:
        if change:
            with self._state:
                self._held += change

    def _take(self, connection: Connection) -> None:
        """A whole request: answered here, or put where inferring threads find it. Raises: RefusedError, OSError."""
        head = connection.head
        if head is None:
            raise RuntimeError("a request without a head")
        call = api.route(head)
        if call.verb != "infer":
            self._send(connection, api.look(call, self._shelf, version=self._version))
            return
        with self._state:
            is_full = len(self._waiting) >= self._limits.queue and len(self._busy) >= self._limits.lanes
            if is_full:
                if (counter := self._shelf.counters.get(call.line)) is not None:
                    counter.refused += 1
            else:
                connection.is_busy = True
                self._waiting.append(_Job(connection, call, self._now()))
        if is_full:
            raise RefusedError(503, f"{self._limits.queue} requests wait already; try again later.", headers=_SOON)

    def _park(self, connection: Connection) -> None:
        """It sends, or hung up, while its request is inferred: look again afterwards."""
        with self._state:
            if connection.is_busy and connection.mask:
                connection.mask = 0
                self._epoll.unregister(connection.wire.fileno())

    def _watch(self, connection: Connection) -> None:
        """Have epoll tell what the connection waits for; not while it is busy."""
        wanted, fd = select.EPOLLOUT if connection.out else select.EPOLLIN, connection.wire.fileno()
        if not connection.mask:
            self._epoll.register(fd, wanted)
        elif connection.mask != wanted:
            self._epoll.modify(fd, wanted)
        connection.mask = wanted

    def _flush(self, connection: Connection) -> None:
        try:
            if connection.flush():
                self._written(connection)
        except OSError:
            self._close(connection)

    def _drain(self, connection: Connection) -> None:
        try:
            if not connection.drain(self._scratch):
                self._close(connection)
        except OSError:
            self._close(connection)

    def _sweep(self) -> None:
        self._swept_s = self._now()
        for connection in list(self._connections.values()):
            if connection.is_busy or connection.deadline_s > self._swept_s:
                continue
            if connection.head is None and connection.has_early and not connection.is_lingering and not connection.out:
                self._refuse(connection, RefusedError(408, "The head of the request took too long.", ends=True))
            elif connection.head is not None and not connection.is_lingering and not connection.out:
                self._refuse(connection, RefusedError(408, "The body of the request took too long.", ends=True))
            else:
                self._close(connection)

    # --- inferring: the thread that is in a lane ---

    def _infer(self, job: _Job) -> None:
        connection, head = job.connection, job.connection.head
        if head is None:
            raise RuntimeError("a job without a head")
        line = job.call.line
        try:
            self._answer(job, head)
        except RefusedError as error:
            self._count_refusal(line, error)
            self._refuse(connection, error)
        except InferFailed as error:
            refusal = RefusedError(500, f"The model failed: {error}")
            self._count_refusal(line, refusal)
            self._refuse(connection, refusal)
        except OSError:
            self._close(connection)
        self._leave(connection)

    def _answer(self, job: _Job, head: Head) -> None:
        """Send the answer of the active model. Raises: RefusedError, InferFailed, OSError."""
        body = api.read_body(head, job.connection.body, max_bytes=self._limits.body_bytes)
        while True:
            model: ServedModel = api.find_model(job.call, self._shelf)
            request = api.read_request(head, body, model)
            try:
                begun_s = self._now()
                with model.inferred(request.inputs) as outputs:
                    took_s = self._now() - begun_s
                    self._typical_s[model.line] = took_s + 0.9 * (self._typical_s.get(model.line, took_s) - took_s)
                    answer = build_answer(request, outputs, model=model.line, version=model.release)
                    packed = api.pack(head, answer)
                    self._count_answer(model.line, job.since_s)
                    self._send(job.connection, packed)
                    return
            except ClosedError:
                continue  # it was replaced in between: its successor is on the shelf

    def _count_answer(self, line: str, since_s: float) -> None:
        with self._state:
            self._shelf.counters[line].add((self._now() - since_s) * 1000.0)

    def _count_refusal(self, line: str, error: RefusedError) -> None:
        counter = self._shelf.counters.get(line)
        if counter is not None:
            with self._state:
                if error.status == 503:
                    counter.refused += 1
                else:
                    counter.failed += 1

    def _leave(self, connection: Connection) -> None:
        """Give the connection back to the listening thread."""
        with self._state:
            connection.is_busy = False
            if connection.is_closed:
                return
            self._watch(connection)
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """A next request that is here already is read as if it had just come."""
        if connection.has_early and not connection.out and not connection.ends:
            self._again.append(connection)
            os.eventfd_write(self._wake, 1)

    # --- answers: whoever has the connection ---

    def _send(self, connection: Connection, answer: api.Answer) -> None:
        """Send it, the rest when there is room. Raises: OSError."""
        head = connection.head
        is_kept = head is not None and head.is_kept_alive and not connection.ends
        connection.ends = not is_kept
        length = sum(map(len, answer.parts))
        parts: tuple[memoryview | bytes, ...] = (
            answer_head(answer.status, length=length, is_kept_alive=is_kept, headers=answer.headers),
            *(() if head is not None and head.method == "HEAD" else answer.parts),
        )
        if connection.write(parts):
            self._written(connection)
            return
        connection.deadline_s = self._now() + self._patience.write_s
        if not connection.is_busy:
            self._watch(connection)

    def _written(self, connection: Connection) -> None:
        before = connection.held_bytes
        connection.forget_request(self._now())
        self._hold(connection.held_bytes - before)
        if connection.ends:
            connection.wire.shut_write()
            connection.is_lingering, connection.deadline_s = True, self._now() + self._patience.linger_s
        if not connection.is_busy:
            self._watch(connection)
            self._go_on(connection)

    def _refuse(self, connection: Connection, error: RefusedError) -> None:
        connection.ends = connection.ends or error.ends
        headers = (("Content-Type", "application/problem+json"), *error.headers)
        try:
            self._send(connection, api.Answer(error.status, headers, (problem(error.status, error.text),)))
        except OSError:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        with self._state:
            if connection.is_closed:
                return
            fd = connection.wire.fileno()
            self._held -= connection.held_bytes
            self._connections.pop(fd, None)
            if connection.mask:
                self._epoll.unregister(fd)
            connection.close()


@functools.lru_cache(maxsize=16)
def is_local(host: bytes) -> bool:
    """Whether the value of a Host header names this machine by itself: localhost or a loopback address, with any port."""
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] if ":" in name else name
    if name in _LOCAL_NAMES:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _raise_on(error: BaseException) -> Any:
    raise error
