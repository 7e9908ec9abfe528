"""Addresses to listen on, as settings and flags give them, and names of Unix sockets that the system takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

#: Bytes of a Unix socket's name, its end included (unix(7)).
_SUN_PATH = 108


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens: a host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return bool(self.path) or ip_address(self.host).is_loopback


def parse_listen(text: str) -> ListenAddress:
    """The parts of "address:port", "[address]:port" or "unix:/path". Raises: ValueError."""
    wrong = f"{text!r} is no address to listen on; wanted 127.0.0.1:8000, [::1]:8000 or unix:/path"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > 100:  # sun_path holds 108 bytes
            raise ValueError(wrong)
        return ListenAddress(path=path)
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(wrong) from None
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError(wrong)
    return ListenAddress(host=host, port=int(port))


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the Unix socket that the system takes, however deep its folder lies; good inside the block.

    Raises: OSError when the folder is not there.
    """
    if len(os.fsencode(path)) < _SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
