"""A real mosquitto without TLS on loopback: the broker of a site whose sensors a gateway reads."""

import socket
import subprocess
from pathlib import Path
from typing import Self

from waiting import wait_until


class PlainBroker:
    """Listens on `url`; with `user` and `password` it refuses everybody else. May be stopped and started again on the same port."""

    def __init__(self, program: Path, folder: Path, port: int, *, user: str = "", password: str = "") -> None:
        self._program, self._folder, self.port = program, folder, port
        folder.mkdir(exist_ok=True)
        lines = [f"listener {port} 127.0.0.1", "log_dest none", f"allow_anonymous {'false' if user else 'true'}"]
        if user:
            passwords = folder / "passwords"
            maker = program.with_name("mosquitto_passwd")
            maker = maker if maker.exists() else Path("/usr/bin/mosquitto_passwd")
            subprocess.run([maker, "-b", "-c", passwords, user, password], check=True, stderr=subprocess.DEVNULL)
            passwords.chmod(0o644)
            lines.append(f"password_file {passwords}")
        (folder / "mosquitto.conf").write_text("\n".join([*lines, "user root", ""]))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without credentials."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it and wait until it listens."""
        self._process = subprocess.Popen([self._program, "-c", self._folder / "mosquitto.conf"], stderr=subprocess.DEVNULL)
        wait_until(self._listens, what="mosquitto to listen")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "mosquitto ended at once"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=60).close()
        except OSError:
            return False
        return True
