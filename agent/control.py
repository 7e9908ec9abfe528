"""The control socket: how `mooring-agent status` and others on this machine talk to the running agent.

One JSON object per line, answered by one. Mode 0660, and the peer's credentials are checked: root, the agent's own user, or a
member of the socket's group. Requests are short; a peer that dawdles is cut off.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from agent.listening import short_name
from protocol.errors import ConflictError, DeviceError, InvalidError, MooringError, NotFoundError, TransferError

log = logging.getLogger("mooring.control")

MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 4 << 20
#: Seconds of system time that a peer may take.
PEER_TIMEOUT_S = 5.0
#: Seconds that who asks waits: a busy device may be slow, and a peer before this one may dawdle.
ASK_TIMEOUT_S = 30.0
#: socket.h of Linux; Python names only SO_PEERCRED.
_SO_PEERGROUPS = 59
_MAX_GROUPS = 256

#: Errors that keep their family on the way through the socket; the first that fits.
_KINDS: tuple[type[MooringError], ...] = (NotFoundError, ConflictError, InvalidError)
#: Called with the request's `args` by name; checks them itself.
Command = Callable[..., Any]


class ControlServer:
    """Answers the commands on the socket, on a thread of its own."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path, self._commands = path, commands
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control")
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen. Raises: DeviceError naming the path when that is not possible, or another agent listens there."""
        if _answers(self._path):
            raise DeviceError(
                f"Another agent listens on {self._path}.", code="already-running", hint="Stop it, or give this one a run_dir."
            )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            listener = self._open()
        except OSError as error:
            raise DeviceError(
                f"The control socket {self._path} cannot be made: {error.strerror or error}.", code="control-socket"
            ) from None
        listener.settimeout(0.5)
        self._socket = listener
        self._thread.start()

    def _open(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old_mask = os.umask(0o117)  # the socket is born 0660, never wider
        try:
            with short_name(self._path) as name:
                listener.bind(name)
            listener.listen(8)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(old_mask)
        return listener

    def stop(self) -> None:
        """Listen no more and remove the socket; idempotent."""
        self._stop.set()
        if self._socket is not None:
            self._thread.join()
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        listener = self._socket
        while listener is not None and not self._stop.is_set():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with peer:
                peer.settimeout(PEER_TIMEOUT_S)
                with contextlib.suppress(OSError):  # a peer that went away or dawdled
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        is_allowed = may_speak(peer, group=self._path.stat().st_gid)
        with peer.makefile("rb") as lines:
            while request := lines.readline(MAX_REQUEST_BYTES + 1):
                if not is_allowed:
                    log.warning("control.refused uid=%s", _peer_ids(peer)[0])
                    peer.sendall(_line({"ok": False, "error": "Wanted: root, the agent's user, or a member of the socket's group."}))
                    return
                if not request.endswith(b"\n"):
                    peer.sendall(_line({"ok": False, "error": f"A request has at most {MAX_REQUEST_BYTES} bytes and ends its line."}))
                    return
                peer.sendall(_line(self._run(request)))

    def _run(self, request: bytes) -> dict[str, Any]:
        try:
            document = json.loads(request)
            command, args = self._commands[document["command"]], document.get("args", {})
            signature(command).bind(**args)
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"ok": False, "error": f'Wanted: {{"command": one of {", ".join(self._commands)}, "args": {{…}}}}.'}
        try:
            return {"ok": True, "result": command(**args)}
        except (DeviceError, ConflictError, InvalidError) as error:
            kind = next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), "")
            return {"ok": False, "error": str(error), "kind": kind}


def ask(path: Path, command: str, **args: str | bool) -> Any:
    """What the running agent answers.

    Raises: TransferError when no agent listens or it refuses; NotFoundError, ConflictError, InvalidError or DeviceError when it says no.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(ASK_TIMEOUT_S)
            with short_name(path) as name:
                peer.connect(name)
            peer.sendall(_line({"command": command, **({"args": args} if args else {})}))
            with peer.makefile("rb") as lines:
                data = lines.readline(MAX_ANSWER_BYTES + 1)
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        raise TransferError(f"The agent does not answer on {path}: {error}.", code="agent-down") from None
    if not answer["ok"]:
        kind = next((kind for kind in _KINDS if kind.__name__ == answer.get("kind")), None)
        raise kind(answer["error"]) if kind is not None else DeviceError(answer["error"], code="control-refused")
    return answer["result"]


def may_speak(peer: socket.socket, *, group: int) -> bool:
    """Whether the process at the other end may give commands."""
    uid, gid = _peer_ids(peer)
    return uid in {0, os.geteuid()} or group in {gid, *_peer_groups(peer)}


def _peer_ids(peer: socket.socket) -> tuple[int, int]:
    _pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid, gid


def _peer_groups(peer: socket.socket) -> tuple[int, ...]:
    try:
        data = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"{len(data) // 4}I", data)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            with short_name(path) as name:
                probe.connect(name)
        except OSError:
            return False
    return True


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, default=str).encode() + b"\n"
