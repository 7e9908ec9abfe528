"""A repository in memory served over HTTP on loopback: metadata under /metadata/, targets under /targets/."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from simulators.repository import BASE_URL, RepositorySimulator
from tuf.api.exceptions import DownloadHTTPError


@dataclass
class TufServer:
    """What is served; tests edit it while it runs."""

    repository: RepositorySimulator
    url: str = ""
    #: Bytes by what follows /targets/ in the URL.
    targets: dict[str, bytes] = field(default_factory=dict)
    #: Paths as asked for.
    requests: list[str] = field(default_factory=list)

    @property
    def metadata_url(self) -> str:
        return f"{self.url}/metadata/"

    @property
    def targets_url(self) -> str:
        return f"{self.url}/targets"

    def answer(self, path: str) -> bytes:
        """Raises: DownloadHTTPError, KeyError when there is no such file."""
        self.requests.append(path)
        _, kind, name = path.split("/", 2)
        if kind == "metadata":
            return b"".join(self.repository.fetch(BASE_URL + name))
        return self.targets[unquote(name)]


@contextmanager
def serve(repository: RepositorySimulator) -> Iterator[TufServer]:
    """The repository, reachable until the block ends."""
    world = TufServer(repository)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                body = world.answer(self.path)
            except (DownloadHTTPError, KeyError):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        world.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield world
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
