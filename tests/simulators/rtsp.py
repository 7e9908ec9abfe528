"""A camera's RTSP server as a process of its own: killed, started again, frozen and thawed as a test needs it."""

import signal
import subprocess
from pathlib import Path
from typing import Self

PYTHON = Path("/usr/bin/python3")
FFMPEG = Path("/usr/bin/ffmpeg")
_SERVER = Path(__file__).with_name("rtsp_server.py")


def is_server_here() -> bool:
    """Whether Debian's Python can run the server."""
    look = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); "
    look += "assert all(Gst.ElementFactory.find(name) for name in ('qtdemux', 'rtph264pay'))"
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", look], capture_output=True, check=False).returncode == 0


def write_h264(path: Path, *, color: str = "red", size: str = "320x240", seconds: int = 600) -> Path:
    """An H.264 video in MP4 of one color, 25 frames per second, a key frame each second."""
    source = f"color=c={color}:s={size}:r=25:d={seconds}"
    encoder = ["-c:v", "libx264", "-profile:v", "main", "-preset", "ultrafast", "-g", "25", "-bf", "0", "-pix_fmt", "yuv420p"]
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source, *encoder, path], check=True)
    return path


class RtspServer:
    """Serves the video on loopback while it runs."""

    def __init__(self, video: Path, port: int) -> None:
        self._video = video
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where."""
        return f"rtsp://127.0.0.1:{self._port}/video"

    def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = subprocess.Popen([PYTHON, _SERVER, self._video, str(self._port)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the RTSP server does not start"

    def kill(self) -> None:
        """As when its power is cut."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        """It takes connections and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
