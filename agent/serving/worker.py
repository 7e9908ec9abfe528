"""The serving process: `python -m agent.serving.worker --fd N`, started and supervised by `process`; or in the foreground, by `run`.

It follows the slots by itself: the pointer of a line says which release is active, so that an activation or a rollback is followed
whoever made it. On the link it is told once what to do (one line of JSON), says every second how it is, and ends when the other end does.
"""

import argparse
import json
import os
import socket
import ssl
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.config import ServingConfig
from agent.leftovers import Leftovers
from agent.listening import ListenAddress, parse_listen
from agent.serving.follow import Follower, find_folders
from agent.serving.messages import MAX_LINE_BYTES, Beat, Task
from agent.serving.models import Shelf
from agent.serving.server import Guard, Limits, Server
from protocol.clock import SystemClock
from protocol.errors import ConfigError, DeviceError, MooringError
from protocol.files import read_bounded

#: Seconds of system time between two looks at the slots, and between two beats.
LOOK_S, BEAT_S = 0.2, 1.0
#: Nice value: the device's own pipelines go first.
NICE = 10
#: The kernel kills this process for memory before inference and control (0 to 1000).
OOM_SCORE = 300
#: Exit status when a thread died of an error that nobody foresaw (EX_SOFTWARE of sysexits.h).
EXIT_SOFTWARE = 70
MAX_TOKEN_BYTES, MIN_TOKEN_BYTES = 1024, 16
#: Bodies on their way at once, in largest bodies.
_HELD = 4


def run(task: Task, *, stop: threading.Event, on_beat: Callable[[Beat], None]) -> None:
    """Serve until `stop` is set. Raises: ConfigError, DeviceError when that cannot begin."""
    serving = task.serving
    address = parse_listen(serving.listen)
    guard, tls = Guard(wants_local_host=address.is_local and not address.path, token=read_token(serving.token_file)), tls_of(serving)
    shelf = Shelf(copies=serving.parallel, runtime=task.runtime, records_dir=task.records_dir)
    limits = Limits(
        lanes=serving.parallel,
        queue=serving.queue,
        connections=serving.connections,
        body_bytes=int(serving.max_body_mb * 2**20),
        held_bytes=_HELD * int(serving.max_body_mb * 2**20),
    )
    follower = Follower(find_folders(task), lines=serving.lines)
    with open_listener(address) as listener:
        server = Server(listener, shelf, limits=limits, guard=guard, version=task.version, tls=tls)
        server.on_failure = _end_process
        server.start()
        try:
            _attend(follower, shelf, server, stop=stop, on_beat=on_beat, address=listening_on(listener))
        finally:
            server.stop()
            shelf.close()
            if address.path:
                with suppress(OSError):
                    Path(address.path).unlink()


def _attend(
    follower: Follower, shelf: Shelf, server: Server, *, stop: threading.Event, on_beat: Callable[[Beat], None], address: str
) -> None:
    """Follow the slots on this thread, beat on another: loading a model takes as long as it takes."""
    ended, now = threading.Event(), SystemClock().monotonic
    leftovers = Leftovers(now)

    def beat() -> None:
        while not ended.is_set():
            on_beat(Beat(tuple(server.totals()), server.busy_s(), address))
            ended.wait(BEAT_S)

    beater = threading.Thread(target=beat, name="serve-beat", daemon=True)
    beater.start()
    follower.follow(shelf, now())
    while not stop.wait(LOOK_S):
        if follower.follow(shelf, now()):
            leftovers.changed()
        leftovers.tend()
    ended.set()
    beater.join()


def open_listener(address: ListenAddress) -> socket.socket:
    """A bound socket. Raises: DeviceError naming the address."""
    try:
        if address.path:
            return _open_unix(Path(address.path))
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        where = address.path or f"{address.host}:{address.port}"
        raise DeviceError(
            f"Nothing can be served on {where}: {error.strerror or error}.",
            code="serving-address",
            hint="Choose another address with the setting serving.listen, or end the program that has it.",
        ) from None


def _open_unix(path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise DeviceError(f"Another program listens on {path}.", code="serving-address")
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o117)  # born 0660: user and group of the agent
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(old_mask)
    return listener


def listening_on(listener: socket.socket) -> str:
    """The address as it is shown; with the real port where 0 was asked for."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def read_token(path: Path | None) -> bytes:
    """The token in the file, empty without one. Raises: ConfigError."""
    if path is None:
        return b""
    try:
        token = read_bounded(path, MAX_TOKEN_BYTES).strip()
    except (OSError, MooringError) as error:
        raise ConfigError(f"serving.token_file {path} cannot be read: {error}.") from None
    if len(token) < MIN_TOKEN_BYTES or not token.isascii() or b" " in token:
        raise ConfigError(
            f"serving.token_file {path} holds {len(token)} bytes; wanted {MIN_TOKEN_BYTES} or more of plain text without spaces."
        )
    return token


def tls_of(serving: ServingConfig) -> ssl.SSLContext | None:
    """TLS with the certificate that is set; None without one. Raises: ConfigError."""
    if serving.certificate is None or serving.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(serving.certificate, serving.key)
    except OSError as error:
        raise ConfigError(f"serving.certificate {serving.certificate} and serving.key {serving.key} cannot be used: {error}.") from None
    return context


def _end_process(error: BaseException) -> None:
    traceback.print_exception(error)
    os._exit(EXIT_SOFTWARE)  # a thread that is gone answers nobody: whoever started this process starts it again


def main() -> int:
    """The child's entry."""
    parser = argparse.ArgumentParser(prog="agent.serving.worker")
    parser.add_argument("--fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().fd)
    reader = link.makefile("rb")
    task = Task.from_line(reader.readline(MAX_LINE_BYTES))
    stop = threading.Event()

    def listen() -> None:
        with suppress(OSError):
            while reader.readline(MAX_LINE_BYTES):
                pass
        stop.set()

    threading.Thread(target=listen, name="serve-link", daemon=True).start()
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))

    def say(document: dict[str, Any]) -> None:
        try:
            link.sendall(json.dumps(document).encode() + b"\n")
        except OSError:
            stop.set()

    try:
        run(task, stop=stop, on_beat=lambda beat: say(asdict(beat)))
    except (ConfigError, DeviceError) as error:
        say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
