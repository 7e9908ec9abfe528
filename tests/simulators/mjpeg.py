"""A real HTTP camera on loopback: multipart JPEG, with a password, that a test cuts, silences and resumes."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import cv2
import numpy as np

BOUNDARY = "frame"
#: User and password; with characters that a URL must escape.
SECRET = "viewer:p@ss:word"


def jpeg(color: tuple[int, int, int], *, size: tuple[int, int] = (64, 48)) -> bytes:
    """A plain picture, width x height."""
    is_made, data = cv2.imencode(".jpg", np.full((size[1], size[0], 3), color, np.uint8))
    assert is_made
    return data.tobytes()


class MjpegCamera:
    """Streams `picture` at `fps` to everybody who knows the password."""

    def __init__(self, picture: bytes, *, fps: float = 40.0) -> None:
        self.picture = picture
        self.interval_s = 1.0 / fps
        self.is_silent = threading.Event()
        self.is_cut = threading.Event()
        self.requests = 0
        self._closing = threading.Event()
        self._authorization = "Basic " + base64.b64encode(SECRET.encode()).decode()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.requests += 1
                if self.headers.get("Authorization") != camera._authorization:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                elif camera.is_cut.is_set():
                    self.send_error(503)
                else:
                    camera._stream(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a reader that hung up

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Without the password."""
        return f"http://127.0.0.1:{self._server.server_port}/video.mjpg"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        request.end_headers()
        while not self.is_cut.is_set() and not self._closing.wait(self.interval_s):
            if not self.is_silent.is_set():
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.picture)}\r\n\r\n"
                request.wfile.write(head.encode() + self.picture + b"\r\n")
