"""A mail server on loopback: STARTTLS, TLS or neither, PLAIN login; keeps the mails that it took."""

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage

from fleet.broker import ClientFiles


@dataclass
class SmtpServer:
    port: int = 0
    #: None: no TLS is offered.
    files: ClientFiles | None = None
    is_tls: bool = False
    #: user:password that is taken; empty: no login is asked for.
    login: str = ""
    #: Recipients that are refused.
    refuses: tuple[str, ...] = ()
    #: Status of the answer to the mail itself.
    verdict: int = 250
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    was_encrypted: list[bool] = field(default_factory=list)


class _Session(socketserver.StreamRequestHandler):
    server: "_Listener"

    def setup(self) -> None:
        if self.server.simulated.is_tls:
            self.request = self._secured()
        super().setup()

    def _secured(self) -> ssl.SSLSocket:
        files = self.server.simulated.files
        assert files is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        return context.wrap_socket(self.request, server_side=True)

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    def handle(self) -> None:
        simulated, encrypted, to = self.server.simulated, self.server.simulated.is_tls, []
        self._say("220 localhost ready")
        while line := self.rfile.readline(2000).decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    offered = [*(["STARTTLS"] if simulated.files and not encrypted else []), *(["AUTH PLAIN"] if simulated.login else [])]
                    names = ["localhost", *offered]
                    self._say(*(f"250{'-' if number < len(names) - 1 else ' '}{name}" for number, name in enumerate(names)))
                case "STARTTLS":
                    self._say("220 go")
                    self.request = self.connection = self._secured()
                    self.rfile.close()
                    self.wfile.close()
                    self.rfile = self.request.makefile("rb", -1)
                    self.wfile = socketserver._SocketWriter(self.request)
                    encrypted = True
                case "AUTH":
                    given = base64.b64decode(rest.split()[1]).decode().split("\0")
                    self._say("235 welcome" if ":".join(given[1:]) == simulated.login else "535 no")
                case "MAIL" | "RSET" | "NOOP":
                    self._say("250 ok")
                case "RCPT":
                    address = rest.partition("<")[2].partition(">")[0]
                    is_refused = address in simulated.refuses
                    to += [] if is_refused else [address]
                    self._say("550 nobody" if is_refused else "250 ok")
                case "DATA":
                    self._say("354 go")
                    body = b""
                    while (part := self.rfile.readline(2000)) not in {b".\r\n", b""}:
                        body += part.removeprefix(b".")  # RFC 5321 4.5.2
                    if simulated.verdict == 250:
                        simulated.mails.append(message_from_bytes(body, policy=policy.default))
                        simulated.recipients.append(to)
                        simulated.was_encrypted.append(encrypted)
                    self._say(f"{simulated.verdict} said")
                case "QUIT":
                    self._say("221 bye")
                    return

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.request.close()


class _Listener(socketserver.ThreadingTCPServer):
    simulated: SmtpServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers hang up when they do not trust the certificate."""


@contextmanager
def smtp_server(**how) -> Iterator[SmtpServer]:
    """A running mail server. `how`: fields of SmtpServer."""
    server = SmtpServer(**how)
    listener = _Listener(("127.0.0.1", 0), _Session)
    listener.simulated, server.port = server, listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
