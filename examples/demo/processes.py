"""Children of the demo: started with a log file each, stopped by id, in the reverse order, also when the demo fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STOP_TIMEOUT_S = 15.0


@dataclass
class Children:
    """The processes that the demo started."""

    logs: Path
    environment: Mapping[str, str]
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start `python -m module arguments…` with its output in logs/<name>.log and, in its environment, these variables too."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops its children in order
            )
        self._running[name] = child
        return child

    def run(
        self, name: str, module: str, *arguments: str, secret_environment: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> str:
        """Run `python -m module arguments…` to its end and return what it wrote to stdout. Raises: RuntimeError with its last words."""
        environment = {**os.environ, **self.environment, **(secret_environment or {})}
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
        )
        with (self.logs / f"{name}.log").open("a") as log:
            log.write(result.stderr)
        if result.returncode != 0:
            raise RuntimeError(f"{module} {' '.join(arguments[:2])} ended with {result.returncode}: {result.stderr.strip()[-800:]}")
        return result.stdout

    def check(self) -> None:
        """Raises: RuntimeError naming a child that ended by itself, with the end of its log."""
        for name, child in self._running.items():
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with {child.returncode}:\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 25) -> str:
        """The last lines of a child's log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    @property
    def running(self) -> frozenset[str]:
        """Names of the children that were started and not ended from here."""
        return frozenset(self._running)

    def pid(self, name: str) -> int:
        """The process id of a running child."""
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """Kill the child, and only it, at once; its own children have to notice by themselves."""
        child = self._running.pop(name)
        child.kill()
        child.wait()

    def stop(self, name: str) -> None:
        """Ask the child to stop; kill it when it has not within 15 s."""
        _end(self._running.pop(name))

    def stop_all(self) -> None:
        """Ask each child to stop, the last started first; kill what has not within 15 s."""
        for child in reversed(self._running.values()):
            _end(child)
        self._running.clear()


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
