"""Brings one alert to a webhook: one signed POST to an address that was judged, no redirect, bounded in time and size."""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from urllib.parse import SplitResult, urlsplit

from fleet.adapters import addresses, cloudevents
from fleet.adapters.addresses import Resolve
from fleet.monitoring.alerts.announcing import link_to
from fleet.monitoring.alerts.model import Alert, Recipient
from protocol.errors import TransferError

#: Seconds of system time for connecting to one address, and for the whole delivery.
CONNECT_S, TOTAL_S = 10.0, 30.0
#: What is read of an answer; nothing in it is used but its status.
MAX_ANSWER = 4096


def deliver(
    recipient: Recipient,
    alert: Alert,
    *,
    now: datetime,
    console_url: str = "",
    resolve_name: Resolve = addresses.resolve,
    trust: ssl.SSLContext | None = None,
    total_s: float = TOTAL_S,
) -> int:
    """Send the alert, with a link into the console; returns the status, 200 to 299. `now`: what the receiver compares with its clock.

    Raises: TransferError (refused, unreachable, too slow, another status, a redirect); ForbiddenError for a private address.
    Neither names the secret nor the query of the address.
    """
    parts = urlsplit(recipient.address)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    found = addresses.permitted(host, port, allows_private=recipient.allows_private, resolve_name=resolve_name)
    body = cloudevents.body_of(alert, recipient.tenant, link=link_to(alert, console_url))
    headers = cloudevents.headers_of(recipient.secret, message_id=alert.id, timestamp=int(now.timestamp()), body=body)
    place = f"{parts.scheme}://{parts.netloc}{parts.path}"
    try:
        with _connected(found, port, total_s) as line:
            try:
                if parts.scheme == "https":
                    line.secure(host, trust or ssl.create_default_context())
                status = _post(line.stream, parts, headers, body)
            except (OSError, http.client.HTTPException) as error:
                why = f"no answer within {total_s:g} s" if line.is_cut else _words(error)
                raise TransferError(f"{place}: {why}.", code="webhook-failed") from error
    except OSError as error:
        raise TransferError(f"{place} cannot be reached: {_words(error)}.", code="webhook-unreachable") from error
    if 200 <= status < 300:
        return status
    text = "answered with a redirect, which is not followed" if 300 <= status < 400 else "did not take the message"
    raise TransferError(f"{place} {text}: status {status}.", code="webhook-status")


def _post(stream: socket.socket, parts: SplitResult, headers: Mapping[str, str], body: bytes) -> int:
    connection = http.client.HTTPConnection(parts.netloc)
    connection.sock = stream
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("POST", path, body=body, headers=dict(headers))
    with connection.getresponse() as answer:
        answer.read(MAX_ANSWER)
        return answer.status


class _Line:
    """One connection that can be cut off from another thread while it is being read, before and after it is secured."""

    def __init__(self, raw: socket.socket) -> None:
        self.stream = raw
        self.is_cut = False

    def secure(self, host: str, trust: ssl.SSLContext) -> None:
        """TLS; the certificate must be of the name that was asked for, whatever the address."""
        secured = trust.wrap_socket(self.stream, server_hostname=host, do_handshake_on_connect=False)
        self.stream = secured
        secured.do_handshake()

    def cut(self) -> None:
        self.is_cut = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.stream, socket.SHUT_RDWR)  # not the TLS object's own, which another thread is in


@contextlib.contextmanager
def _connected(found: list[str], port: int, total_s: float) -> Iterator[_Line]:
    """A connection to the first address that answers, cut off when the time is up: a server that drips keeps no worker."""
    line = _Line(_connect(found, port, min(CONNECT_S, total_s)))
    alarm = threading.Timer(total_s, line.cut)
    alarm.daemon = True
    alarm.start()
    try:
        yield line
    finally:
        alarm.cancel()
        alarm.join()
        line.stream.close()


def _connect(found: list[str], port: int, timeout_s: float) -> socket.socket:
    failures: list[OSError] = []
    for address in found:
        try:
            made = socket.create_connection((address, port), timeout=timeout_s)
        except OSError as error:
            failures.append(error)
            continue
        made.settimeout(None)
        return made
    raise failures[-1]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
