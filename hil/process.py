"""The local board: the agent as a process of this machine. Its power cut is SIGKILL to the whole process group."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.control import ask
from hil.board import SCRUB, BoardError, Installation
from protocol.errors import MooringError

TIMEOUT_S = 120.0
STOP_S = 15.0


class ProcessBoard:
    """One agent below a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._config, self._state, self._run = folder / "agent.toml", folder / "state", folder / "run"
        self._log = folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None

    def install(self, installation: Installation) -> None:
        """Write the configuration, copy the media, enroll. Raises: BoardError with the agent's words."""
        self._config.write_text(installation.config_text(state_dir=str(self._state), run_dir=str(self._run)))
        for file in installation.media:
            shutil.copy(file, self.media_path(file.name))
        secret = {"MOORING_AGENT_TOKEN": installation.token}
        self._call(["-m", "agent.cli", "enroll", "--config", str(self._config), "--device", installation.device], secret)

    def boot(self) -> None:
        """Start the agent in a process group of its own."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "agent.cli", "run", "--config", str(self._config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def status(self) -> dict[str, Any] | None:
        """What the agent says on its control socket."""
        if not self.is_up():
            return None
        try:
            return dict(ask(self._run / "control.sock", "status"))
        except MooringError:
            return None

    def is_up(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def power_cut(self) -> None:
        """Kill the agent and everybody it started, at once."""
        if self._process is None or self._process.poll() is not None:
            raise BoardError(f"The agent does not run: {self.log()}")
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def damaged(self, line: str) -> list[str]:
        """What a look at every byte finds."""
        return list(json.loads(self._call(["-c", SCRUB, str(self._state / "slots"), line])))

    def log(self) -> str:
        """The last lines of the agent's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:]) if self._log.exists() else "(no log)"

    def media_path(self, name: str) -> str:
        """Beside the agent's files."""
        return str(self._folder / name)

    def close(self) -> None:
        """Stop the agent; kill it when it has not ended within 15 s."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.power_cut()

    def _call(self, arguments: list[str], secret: dict[str, str] | None = None) -> str:
        environment = {**os.environ, **(secret or {})}
        result = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if result.returncode != 0:
            raise BoardError(f"{' '.join(arguments[:3])} ended with {result.returncode}: {result.stderr.strip()[-500:]}")
        return result.stdout
