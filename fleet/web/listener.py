"""HTTP listeners: one uvicorn server each, in a thread, stopped in order; over TLS a device's certificate reaches the handlers.

The TLS layer asks for a client certificate and verifies one that is shown; whether one is required is the handlers' decision, because
enrollment has none yet. What was verified stands in `request.scope["state"]["peer"]`, which no header can set.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol.errors import ConfigError

log = logging.getLogger("mooring.listener")

MAX_CONNECTIONS = 4000
KEEP_ALIVE_S = 30
#: Requests in progress may take so long after `stop`; live views are cut.
GRACE_S = 5
#: A client that does not finish its TLS handshake or send a whole request head in this time is cut off.
HEAD_TIMEOUT_S = 20.0
#: Request line and headers together.
MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The client certificate that the TLS layer verified against our authority."""

    common_name: str
    #: Decimal.
    serial: str


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """Server certificate and key; with `client_ca` clients may show a certificate of that authority."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later. Raises: ConfigError naming the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.certificate}, {self.key} or {self.client_ca} cannot be used for TLS: {error}.") from error
        return context


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 that remembers the peer's certificate and does not wait forever for a request's head."""

    _peer: PeerCertificate | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows asyncio here
        super().connection_made(transport)
        self._peer = peer_of(transport.get_extra_info("ssl_object"))
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["peer"] = self._peer
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is not None:  # the head is not complete; what came with it of a body does not count
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._cancel_head_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def peer_of(tls: ssl.SSLObject | None) -> PeerCertificate | None:
    """The verified certificate of the other side, or None when it showed none."""
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    if not der:
        return None
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return PeerCertificate(str(names[0].value) if len(names) == 1 else "", str(certificate.serial_number))


class Listener:
    """One listening socket and the server behind it."""

    def __init__(self, *, name: str, host: str, port: int, tls: ListenerTls | None = None) -> None:
        """Bind; `port` then says which. Raises: ConfigError when the address is taken or the TLS files cannot be used."""
        self._context = tls.context() if tls is not None else None
        self.name = name
        self._socket = _bind(name, host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: FastAPI) -> None:
        """Serve the application, in a thread of its own."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=PeerProtocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                ssl_context_factory=None if self._context is None else _always(self._context),
            )
        )
        self._thread = threading.Thread(target=self._run, args=(self._server,), name=f"listener-{self.name}", daemon=True)
        self._thread.start()
        log.info("listener_started name=%s host=%s port=%d", self.name, self.host, self.port)

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, *, timeout_s: float = GRACE_S + 5.0) -> None:
        """Take no new connection, let requests end, cut what is left."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._socket.close()

    def _run(self, server: uvicorn.Server) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            server.run(sockets=[self._socket])


def _always(context: ssl.SSLContext) -> Any:
    return lambda _config, _default: context


def _bind(name: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"The {name} listener cannot use {host}:{port}: {error.strerror}.",
            code="port-taken",
            hint="Stop the program that holds the port, or choose another port; 0 takes any free one.",
        ) from error
