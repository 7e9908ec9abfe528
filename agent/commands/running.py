"""What runs in the foreground until it is told to end: the agent, or nothing but its server for other programs."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.settings import load
from agent.commands.version import version
from agent.settings.loading import changed_serving

if TYPE_CHECKING:
    from agent.serving.messages import Beat

#: Where `serve` listens when nobody says otherwise.
DEFAULT_LISTEN = "127.0.0.1:8000"


def run(options: argparse.Namespace) -> int:
    """Run the agent until SIGTERM or SIGINT. Raises: DeviceError."""
    import signal

    from agent.database.file import prepare_in_child
    from agent.reporting import probe_in_child
    from agent.service import Service
    from protocol.clock import from_environment

    config = load(options).config
    _log_to_stderr(config.log_level)
    clock, ended = from_environment(), False
    service: Service | None = None

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if service is not None:
            service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    prepare_in_child(config.store_path)
    while not ended:  # once more when an identity appeared: all is wired anew with it
        service = Service(config, clock=clock, version=version(), probe=lambda: probe_in_child(config))
        service.run()
    return 0


def serve(options: argparse.Namespace) -> int:
    """Serve in the foreground, without pipelines, updates or server."""
    import signal
    import threading

    from agent.serving.messages import Task
    from agent.serving.worker import run

    config = load(options).config
    wished = {"listen": options.listen or config.serving.listen or DEFAULT_LISTEN, "lines": tuple(options.line) or config.serving.lines}
    serving = changed_serving(config.serving, wished)
    folder = options.model_dir.expanduser().absolute() if options.model_dir else None
    task = Task(serving=serving, runtime=config.runtime, slots_dir=config.slots_dir, model_dir=folder, version=version())
    stop, told = threading.Event(), set[str]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def tell(beat: "Beat") -> None:
        now = served(beat, config.slots_dir)
        sys.stderr.write("".join(f"{line}\n" for line in now if line not in told))
        told.clear()
        told.update(now)

    run(task, stop=stop, on_beat=tell)
    return 0


def served(beat: "Beat", slots_dir: Path) -> list[str]:
    """What is served, a text for each line; where there is none, where lines were looked for. Pure."""
    if not beat.lines:
        return [f"Nothing to serve on {beat.address}: no line in {slots_dir} has an active release; see --model-dir."]
    texts = {one.line: one.text or f"release {one.release} is served on {beat.address}" for one in beat.lines}
    return [f"{line}: {text}" for line, text in sorted(texts.items())]


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request
