"""What somebody at the site does about updates: says yes or no to a release, or brings one on a stick."""

import argparse
from pathlib import Path
from typing import Any

from agent.commands.output import Out, answer
from agent.commands.settings import load
from agent.commands.version import version
from agent.config import AgentConfig
from protocol.errors import TransferError

#: Seconds that a command waits for an agent that is starting.
AGENT_START_S = 20.0


def consent(options: argparse.Namespace) -> int:
    """Give the running agent the answer. Raises: TransferError when none runs; MooringError when it refuses."""
    from agent.control import ask

    found = ask(load(options).config.control_socket, "consent", line=options.line, given=options.yes)
    said = "goes on" if found["given"] else "is given up"
    answer(options, found, lambda out: out(f"{found['line']}: {found['release']} {said}."))
    return 0


def import_stick(options: argparse.Namespace) -> int:
    """Take the stick over, through the agent when one runs; returns 1 when nothing was taken."""
    import time

    from agent.control import ask
    from agent.importing import sole_use

    config = load(options).config
    folder = options.folder.expanduser().absolute()
    with sole_use(config.state_dir) as is_alone:
        found = _import_stopped(config, folder) if is_alone else None
    looks_until = time.monotonic() + AGENT_START_S
    while found is None:
        try:
            found = ask(config.control_socket, "import", folder=str(folder)) | {"running": True}
        except TransferError:  # it has just been started, or ends
            if time.monotonic() > looks_until:
                raise
            time.sleep(0.2)
    deadline = time.monotonic() + options.wait
    while found["running"] and (found["phase"] == "reading" or (found["phase"] == "updating" and time.monotonic() < deadline)):
        time.sleep(0.2)
        found = ask(config.control_socket, "import-status") | {"running": True}
    answer(options, found, lambda out: show_import(found, out))
    return 1 if found["phase"] in ("failed", "none") else 0


def _import_stopped(config: AgentConfig, folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from agent.database.file import prepare_in_child
    from agent.reporting import probe_in_child
    from agent.service import Service
    from protocol.clock import from_environment

    prepare_in_child(config.store_path)
    service = Service(config, clock=from_environment(), version=version(), probe=lambda: probe_in_child(config))
    return asdict(service.import_stopped(folder)) | {"running": False}


def show_import(found: dict[str, Any], out: Out) -> None:
    """How the import stands, and what to do next."""
    names = ", ".join(f"{release} of {line}" for line, release in found["releases"]) or "nothing"
    match found["phase"]:
        case "failed":
            out(f"Nothing was taken: {found['code']}: {found['text']}")
            return
        case "none":
            out("The agent was started again meanwhile and has forgotten this import. Leave the stick in and import it once more.")
            return
        case "done":
            out(f"The stick assigned {names}; its updates are over: mooring-agent status.")
        case _:
            how = "goes on now" if found["running"] else "begins when the agent starts"
            out(f"The stick assigns {names}; all is copied and verified, installing {how}. The stick may be pulled.")
    if found["text"]:
        out(found["text"])
    if found["phase"] != "done":
        out("For the report of how it went: leave the stick in until the update is over, or import it once more then.")
    elif found["is_reported"]:
        out("The report is on the stick. Back at the server: mooring bundle import-reports DIR")
