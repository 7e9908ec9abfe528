"""What waits for the server."""

import argparse
from typing import Any

from agent.commands.output import Out, answer
from agent.commands.settings import load
from agent.config import AgentConfig
from protocol.errors import TransferError


def show(options: argparse.Namespace) -> int:
    """Print how full the outbox is."""
    from agent.control import ask

    config = load(options).config
    try:
        found = ask(config.control_socket, "outbox")
    except TransferError:
        found = read_outbox(config)

    def show(out: Out) -> None:
        out(f"{found['rows']} rows, {found['bytes'] / 2**20:.2f} MiB, {found['unacknowledged']} sent and not acknowledged by the server")
        for stream, rows in sorted(found["by_stream"].items()):
            out(f"  {stream:10} {rows}")
        for kind, rows in sorted(found["dropped"].items()):
            out(f"  given up ({kind}): {rows}")

    answer(options, found, show)
    return 0


def read_outbox(config: AgentConfig) -> dict[str, Any]:
    """What its file says while no agent runs. Raises: DeviceError when it cannot be read."""
    from dataclasses import asdict

    from agent.store import count_rows

    epoch, counts = count_rows(config.store_path)
    return {"epoch": epoch, **asdict(counts)}
