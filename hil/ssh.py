"""A board over OpenSSH: commands by lists, the server's ports brought to the board by reverse tunnels, so that nothing listens outside.

Not yet run on hardware. The power cut is the command of boards.toml (a relay, a switched socket); without one the agent is killed.
"""

import json
import shlex
import subprocess
import threading
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from hil.board import SCRUB, BoardEntry, BoardError, Installation

#: Never ask; give up soon; notice a board that lost its power.
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")
TIMEOUT_S = 180.0
#: Seconds a board may take from power to a shell.
BOOT_S = 180.0
#: Below the home of the board's user.
FOLDER = PurePosixPath("mooring-hil")


class SshBoard:
    """A machine with the agent's package, reached by key login."""

    def __init__(self, entry: BoardEntry) -> None:
        self._entry = entry
        self._tunnel: subprocess.Popen[bytes] | None = None
        self._ports: tuple[int, ...] = ()
        self._home = ""
        self._pause = threading.Event()

    def install(self, installation: Installation) -> None:
        """Make a new folder, copy configuration and media, enroll through the tunnel. Raises: BoardError."""
        self._ports = (installation.device_port, installation.broker_port)
        self._home = self._shell(["pwd"]).strip()
        self._shell(["rm", "-rf", str(FOLDER)])
        self._shell(["mkdir", "-p", str(FOLDER)])
        text = installation.config_text(state_dir=self._path("state"), run_dir=self._path("run"))
        self._shell(["tee", self._path("agent.toml")], stdin=text)
        for file in installation.media:
            self._local(["scp", *OPTIONS, "-q", str(file), f"{self._entry.address}:{self.media_path(file.name)}"])
        self._open_tunnel()
        # the token goes through standard input: others on the board can see command lines
        self._shell(["sh", "-c", f"umask 077; cat > {shlex.quote(self._path('token'))}"], stdin=installation.token)
        self._agent("enroll", "--device", installation.device, "--token-file", self._path("token"))
        self._shell(["rm", "-f", self._path("token")])

    def boot(self) -> None:
        """Wait for a shell, open the tunnels, start the agent in a session of its own."""
        self._await_shell()
        self._open_tunnel()
        run = shlex.join([self._entry.python, "-m", "agent.cli", "run", "--config", self._path("agent.toml")])
        log, pid = shlex.quote(self._path("agent.log")), shlex.quote(self._path("pid"))
        self._shell(["sh", "-c", f"setsid {run} >>{log} 2>&1 </dev/null & echo $! >{pid}"])

    def status(self) -> dict[str, Any] | None:
        """What `mooring-agent status --json` says on the board."""
        try:
            found = json.loads(self._agent("status", "--json"))
        except (BoardError, ValueError):
            return None
        return dict(found) if found.get("running") else None

    def is_up(self) -> bool:
        """Whether the agent's process lives."""
        try:
            self._shell(["sh", "-c", f"kill -0 $(cat {shlex.quote(self._path('pid'))})"])
        except BoardError:
            return False
        return True

    def power_cut(self) -> None:
        """Run the power command; without one kill the agent's process group."""
        if self._entry.power_cut:
            self._local(list(self._entry.power_cut))
        else:
            self._shell(["sh", "-c", f"kill -9 -- -$(cat {shlex.quote(self._path('pid'))})"])
        self._close_tunnel()

    def damaged(self, line: str) -> list[str]:
        """What the board's own Python finds when it hashes every byte again."""
        self._await_shell()
        return list(json.loads(self._shell([self._entry.python, "-c", SCRUB, self._path("state/slots"), line])))

    def log(self) -> str:
        """The last lines of the agent's log."""
        try:
            return self._shell(["tail", "-n", "20", self._path("agent.log")])
        except BoardError as error:
            return f"(no log: {error})"

    def media_path(self, name: str) -> str:
        """In the suite's folder on the board."""
        return self._path(name)

    def close(self) -> None:
        """Stop the agent, remove the folder, close the tunnel."""
        try:
            self._shell(["sh", "-c", f"kill -- -$(cat {shlex.quote(self._path('pid'))}) || true; sleep 2; rm -rf {FOLDER}"])
        finally:
            self._close_tunnel()

    # --- ssh ---

    def _path(self, name: str) -> str:
        return f"{self._home}/{FOLDER}/{name}"

    def _agent(self, command: str, *arguments: str) -> str:
        return self._shell([self._entry.python, "-m", "agent.cli", command, "--config", self._path("agent.toml"), *arguments])

    def _shell(self, command: Sequence[str], *, stdin: str = "") -> str:
        """Run a command on the board; ssh joins its arguments with spaces, so they are quoted here."""
        return self._local(["ssh", *OPTIONS, self._entry.address, shlex.join(command)], stdin=stdin)

    def _local(self, command: list[str], *, stdin: str = "") -> str:
        try:
            result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BoardError(f"{command[0]} to {self._entry.address}: {error}") from error
        if result.returncode != 0:
            raise BoardError(f"{command[0]} to {self._entry.address} ended with {result.returncode}: {result.stderr.strip()[-500:]}")
        return result.stdout

    def _await_shell(self) -> None:
        rounds = int(BOOT_S / 5)
        for last in range(rounds):
            try:
                self._shell(["true"])
            except BoardError:
                if last == rounds - 1:
                    raise
                self._pause.wait(5.0)
            else:
                return

    def _open_tunnel(self) -> None:
        if self._tunnel is not None and self._tunnel.poll() is None:
            return
        ways = [part for port in self._ports for part in ("-R", f"127.0.0.1:{port}:127.0.0.1:{port}")]
        command = ["ssh", *OPTIONS, "-N", "-o", "ExitOnForwardFailure=yes", *ways, self._entry.address]
        self._tunnel = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _close_tunnel(self) -> None:
        if self._tunnel is not None:
            self._tunnel.terminate()
            self._tunnel.wait()
            self._tunnel = None
