"""What the suite asks of a board, and what the boards of `boards.toml` are."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from protocol.errors import ConfigError, NotFoundError
from protocol.files import read_bounded

MAX_FILE_BYTES = 1 << 20
KINDS = {"process", "ssh"}
#: Run by the board's own Python: which files of the line's active and committed slot are damaged; "none" when there is no active slot.
SCRUB = """
import json, sys
from pathlib import Path
from agent.slots import Slots
slots, line = Slots(Path(sys.argv[1])), sys.argv[2]
kept = [slots.active(line), slots.committed(line)]
damaged = [f"{slot.name}/{file}" for slot in kept if slot for file in slots.scrub(line, slot.name)]
print(json.dumps(damaged if kept[0] else ["none"]))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """What comes onto a board before it boots. The ports are of the server's loopback, and of the board's too."""

    device: str
    device_type: str
    #: One-time enrollment token; a secret.
    token: str
    device_port: int
    broker_port: int
    #: More of the agent's settings, TOML.
    settings: str
    #: Files for the pipelines; on the board they lie where `media_path` says.
    media: tuple[Path, ...]

    def config_text(self, *, state_dir: str, run_dir: str) -> str:
        """The agent's settings file on a board with these folders."""
        return "\n".join(
            (
                f'state_dir = "{state_dir}"',
                f'run_dir = "{run_dir}"',
                f'device_type = "{self.device_type}"',
                self.settings,
                f'[server]\nurl = "https://127.0.0.1:{self.device_port}"',
                f'[broker]\nurl = "mqtts://127.0.0.1:{self.broker_port}"\nreconnect_max_s = 1.0\n',
            )
        )


class Board(Protocol):
    """One board. All methods raise BoardError when the board does not do what was asked."""

    def install(self, installation: Installation) -> None:
        """Put configuration and media in place and enroll."""
        ...

    def boot(self) -> None:
        """Switch it on and start the agent; returns without waiting for the agent."""
        ...

    def status(self) -> dict[str, Any] | None:
        """What the running agent says of itself; None when it does not answer."""
        ...

    def is_up(self) -> bool:
        """Whether the agent runs."""
        ...

    def power_cut(self) -> None:
        """Take its power at once, as hard as this board can."""
        ...

    def damaged(self, line: str) -> list[str]:
        """Files of the active and committed slot that are not as they were written; empty: whole. Also when the agent is down."""
        ...

    def log(self) -> str:
        """The end of the agent's log."""
        ...

    def media_path(self, name: str) -> str:
        """Where a media file lies on the board."""
        ...

    def close(self) -> None:
        """End what was started, and leave nothing behind."""
        ...


class BoardError(RuntimeError):
    """The board did not do what was asked; the text says what and with which words."""


@dataclass(frozen=True, slots=True)
class BoardEntry:
    """One table of boards.toml."""

    name: str
    kind: str
    device_type: str
    #: user@host, for kind "ssh".
    address: str = ""
    #: The board's Python with the agent's package, for kind "ssh".
    python: str = "python3"
    #: A command on this machine that cuts the board's power; empty: the agent's processes are killed.
    power_cut: tuple[str, ...] = ()


def load_entry(path: Path, name: str) -> BoardEntry:
    """The entry of that name. Raises: NotFoundError naming the boards there are; ConfigError naming what is wrong with it."""
    try:
        document = tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    table = document.get(name)
    if not isinstance(table, dict):
        raise NotFoundError(f"{path.name} has no board {name!r}; it has {', '.join(sorted(document)) or 'none'}.")
    try:
        entry = BoardEntry(name=name, **{**table, "power_cut": tuple(table.get("power_cut", ()))})
    except TypeError as error:
        raise ConfigError(f"Board {name!r} in {path.name}: {error}.", hint="See the example in the file.") from error
    if entry.kind not in KINDS or (entry.kind == "ssh" and not entry.address):
        raise ConfigError(f"Board {name!r} has kind {entry.kind!r}; wanted {' or '.join(sorted(KINDS))}, and an address for ssh.")
    return entry
