"""An application on a real listener, and a client for it."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fastapi import FastAPI

from fleet.web.listener import Listener, ListenerTls


@contextmanager
def serving(app: FastAPI, *, tls: ListenerTls | None = None, verify: ssl.SSLContext | bool = True) -> Iterator[httpx.Client]:
    """A client of the running application; `verify` holds the client's identity when there is TLS."""
    listener = Listener(name="test", host="127.0.0.1", port=0, tls=tls)
    listener.start(app)
    scheme = "http" if tls is None else "https"
    try:
        with httpx.Client(base_url=f"{scheme}://localhost:{listener.port}", verify=verify, trust_env=False, timeout=120) as client:
            yield client
    finally:
        listener.stop()
