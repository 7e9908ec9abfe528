"""A real HTTPS server with two TUF repositories in memory: what the update check and the downloads of a device talk to."""

import hashlib
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from simulators.authority import Authority
from simulators.device import Release
from simulators.repository import RepositorySimulator, target

from protocol.clock import to_unix_ms
from protocol.trust.metadata import (
    DirectorFields,
    DirectorTargetFields,
    ImageLineFields,
    ImageTargetFields,
    line_pattern,
    line_role,
    write_fields,
)


class UpdateApi:
    """Serves what `publish` and `assign` said. `requests` is (path, certificate name of the caller)."""

    def __init__(self, folder: Path, authority: Authority, *, device: str = "cam-1", now: datetime | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.now = datetime.now(UTC) if now is None else now
        self.image, self.director = RepositorySimulator(now=self.now), RepositorySimulator(now=self.now)
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        #: Answers every request with this status when set.
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.answers_time = True
        self._device = device
        certificate, key = authority.issue(folder, "server", hosts=("127.0.0.1",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=authority.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.order()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def order(self, **changes: Any) -> None:
        """What the director's targets say about themselves."""
        values: dict[str, Any] = {
            "device": self._device,
            "tenant": "t0",
            "assignment": "as-1",
            "attempt": 1,
            "campaign": "ca-1",
            "issued_at": to_unix_ms(self.now),
        }
        self.director.targets.unrecognized_fields = write_fields(DirectorFields(**(values | changes)))
        self.director.publish()

    def publish(self, release: Release, **changes: Any) -> None:
        """Put the release into the image repository, and its files where they are fetched."""
        role_name = line_role(release.line)
        if role_name not in self.image.delegated:
            role = self.image.delegate(role_name, line_pattern(release.line))
            role.unrecognized_fields = write_fields(ImageLineFields(line=release.line, floor=0))
        values: dict[str, Any] = {
            "line": release.line,
            "release": release.version,
            "counter": release.counter,
            "variant": "onnx",
            "device_types": ("sim",),
            "runtime": "onnx",
        }
        fields = write_fields(ImageTargetFields(**(values | changes)))
        for path, data in _paths(release).items():
            self.image.delegated[role_name].targets[path] = target(path, data, fields)
            self.blobs[hashlib.sha256(data).hexdigest()] = data
        self.image.publish()

    def assign(self, release: Release | None, *, how: DirectorTargetFields | None = None, **changes: Any) -> None:
        """Let the director name the release, or nothing; `how` says how its model may be had."""
        files = {} if release is None else _paths(release)
        custom = {path: write_fields(how) for path in files if how is not None and path.endswith(".model.onnx")}
        self.director.targets.targets = {path: target(path, data, custom.get(path)) for path, data in files.items()}
        self.order(**changes)

    def add_blob(self, data: bytes) -> str:
        """Serve the bytes; returns their digest."""
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return f"sha256:{name}"

    def expire(self) -> None:
        """Let the director's timestamp be long past."""
        self.director.timestamp.expires = self.now - timedelta(days=1)
        self.director.publish_timestamp()

    def answer(self, path: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        parts = urlsplit(path)
        if self.refusal is not None:
            return self.refusal[0], b"", self.refusal[1]
        if parts.path == "/device/v1/director/time" and self.answers_time:
            nonce = parse_qs(parts.query)["nonce"][0]
            return 200, self.director.signed_time(self._device, nonce, to_unix_ms(self.now)), {}
        for prefix, repository in (("/device/v1/director/", self.director), ("/image/v1/metadata/", self.image)):
            if parts.path.startswith(prefix):
                return _metadata(repository, parts.path.removeprefix(prefix), headers)
        name = parts.path.removeprefix("/blobs/sha256/")
        data = self.blobs.get(name)
        return (404, b"", {}) if data is None else _blob(data, f'"{name}"', headers)


def _paths(release: Release) -> dict[str, bytes]:
    return {f"model/{release.line}/{release.version}/onnx.{name}": data for name, data in release.files.items()}


def _blob(data: bytes, etag: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
    wanted = headers.get("Range", "") if headers.get("If-Range", etag) == etag else ""
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
    if start >= len(data):
        return 416, b"", {}
    content_range = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
    return (206 if start else 200), data[start:], {"ETag": etag} | content_range


def _metadata(repository: RepositorySimulator, name: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
    data = repository.files.get(name)
    if data is None:
        return 404, b"", {}
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    return (304, b"", {"ETag": etag}) if headers.get("If-None-Match") == etag else (200, data, {"ETag": etag})


def _handler(api: UpdateApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            peer = self.connection.getpeercert() or {}
            names = [value for rdn in peer.get("subject", ()) for key, value in rdn if key == "commonName"]
            api.requests.append((self.path, names[0] if names else ""))
            status, body, headers = api.answer(self.path, self.headers)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    return Handler
