"""`mooring-agent`: run, serve, enroll, status, consent, snapshot, import, doctor, outbox, drift, identity, config, probe and more.

Data goes to standard output, talk to standard error. Exit: 0 ok · 1 failed · 2 usage · 3 not found · 4 auth · 5 conflict ·
6 unreachable (retry) · 130 interrupted. Commands ask the running agent through its control socket, or read its files when it is
down. What each does stands in `agent/commands/`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.commands import doctor, drift, enrollment, outbox, running, runtimes, settings, snapshot, status, updates, version
from agent.settings.loading import TOKEN_ENVIRONMENT_NAME
from protocol.errors import (
    AccessError,
    ConfigError,
    ConflictError,
    InvalidError,
    MooringError,
    NotFoundError,
    TransferError,
)

#: Error family to exit status; the first that fits.
_EXITS: tuple[tuple[type[MooringError], int], ...] = (
    (ConfigError, 2),
    (InvalidError, 2),
    (NotFoundError, 3),
    (AccessError, 4),
    (ConflictError, 5),
    (TransferError, 6),
)
INTERRUPTED = 130
#: Days that a recording may be asked of at most: a hundred years, which is all that is kept.
_MOST_DAYS = 36_500


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except MooringError as error:
        sys.stderr.write(f"mooring-agent: {error}\n")
        return next((status for family, status in _EXITS if isinstance(error, family)), 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Commands:
    """Commands of a parser, or of a group of them; all take the options of `common`."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
        self._group, self._common = parser.add_subparsers(required=True, metavar="COMMAND"), common

    def add(self, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = self._group.add_parser(name, parents=[self._common], help=text, description=text)
        found.set_defaults(command=command)
        return found

    def group(self, name: str, text: str) -> "_Commands":
        return _Commands(self._group.add_parser(name, help=text), self._common)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mooring-agent", description="Runs signed models on this device and keeps them current.")
    commands = _Commands(parser, _common())
    commands.add("run", running.run, "run the agent in the foreground")
    _add_enroll(commands)
    commands.add("status", status.show, "what runs, what is wrong, what waits")
    _add_snapshot(commands)
    _add_consent(commands)
    _add_import(commands)
    _add_serve(commands)
    commands.add("doctor", doctor.show, "check camera, runtimes, clock, disk, broker and server, and say what to do")
    commands.add("outbox", outbox.show, "what waits for the server")
    _add_drift(commands.group("drift", "what is watched in front of the models"))
    commands.add("identity", enrollment.show_identity, "who this device is")
    _add_config(commands.group("config", "the settings"))
    commands.add("probe", runtimes.probe, "try every inference runtime, and every wanted provider, in a child process")
    _add_autotune(commands)
    commands.add("version", version.show, "print the version")
    return parser


def _common() -> argparse.ArgumentParser:
    """The options of every command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings that win over those in /etc/mooring")
    common.add_argument("--state-dir", metavar="DIR", help="where the agent keeps its state, e.g. ~/mooring-agent without root")
    common.add_argument("--run-dir", metavar="DIR", help="where the control socket is; with --state-dir: the folder run in it")
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, e.g. update.poll_s=60")
    common.add_argument("--json", action="store_true", help="print JSON")
    return common


def _add_enroll(commands: _Commands) -> None:
    enroll = commands.add("enroll", enrollment.enroll_device, "get an identity from a server with a one-time token")
    enroll.add_argument("--server", metavar="URL", help="https://host[:port] of the device API")
    enroll.add_argument("--token", help="the token; prefer --token-file, others on this machine can see command lines")
    enroll.add_argument("--token-file", type=Path, metavar="FILE", help=f"a file with the token; or set {TOKEN_ENVIRONMENT_NAME}")
    enroll.add_argument("--device", metavar="ID", help="wished device id")
    enroll.add_argument("--device-type", metavar="TYPE", help="what artifacts this machine can run; default: the kind of this machine")
    enroll.add_argument("--force", action="store_true", help="replace an identity that is there")


def _add_snapshot(commands: _Commands) -> None:
    picture = commands.add(
        "snapshot", snapshot.save, "a picture of a pipeline's next frame, annotated; only where its setting `preview` allows it"
    )
    picture.add_argument("pipeline", metavar="PIPELINE")
    picture.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to put the JPEG; - is standard output")


def _add_consent(commands: _Commands) -> None:
    consent = commands.add("consent", updates.consent, "say yes or no to the release that a line is getting (setting update.consent)")
    consent.add_argument("line", metavar="LINE")
    answer = consent.add_mutually_exclusive_group(required=True)
    answer.add_argument("--yes", action="store_true", help="activate it as soon as its window is open")
    answer.add_argument("--no", action="store_true", help="give it up; the version before stays")


def _add_import(commands: _Commands) -> None:
    stick = commands.add("import", updates.import_stick, "update from a stick made by `mooring bundle create`, on a site without a network")
    stick.add_argument("folder", type=Path, metavar="DIR", help="the folder on the stick")
    stick.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for the update to end, so that its report is on the stick"
    )


def _add_serve(commands: _Commands) -> None:
    serve = commands.add(
        "serve", running.serve, "answer other programs with the models of this device (Open Inference Protocol), without a camera"
    )
    serve.add_argument("line", nargs="*", metavar="LINE", help="model lines to serve; default: the setting serving.lines, else all")
    serve.add_argument(
        "--listen", metavar="ADDRESS", help=f"address:port or unix:/path; default: serving.listen, else {running.DEFAULT_LISTEN}"
    )
    serve.add_argument(
        "--model-dir", type=Path, metavar="DIR", help="a folder with a manifest.json, or with such folders, in place of the slots"
    )


def _add_drift(commands: _Commands) -> None:
    commands.add("show", drift.show, "per pipeline: how far its reference is, and what the evidence says")
    record = commands.add("record", drift.record, "copy the kept sub-windows into a signed file, from which a server can learn a reference")
    record.add_argument("--days", type=_days, default=28, metavar="N", help="the latest so many days, 1 or more; default: 28")
    record.add_argument("--pipeline", metavar="NAME", help="of this pipeline only")
    record.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to put them")


def _days(text: str) -> int:
    """A number of days. Raises: ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text[:6]) <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; wanted a whole number from 1 to {_MOST_DAYS}")
    return int(text)


def _add_config(commands: _Commands) -> None:
    commands.add("show", settings.show, "print the settings, secrets masked").add_argument(
        "--origin", action="store_true", help="say where each comes from"
    )
    commands.add("check", settings.check, "check the settings; exit 2 names what is wrong")


def _add_autotune(commands: _Commands) -> None:
    tune = commands.add("autotune", runtimes.autotune, "measure on how many threads and which provider the models of this device run best")
    tune.add_argument("--pipeline", metavar="NAME", help="the model of this pipeline only")
    tune.add_argument("--line", metavar="LINE", help="the model of this line only")
    tune.add_argument("--seconds", type=float, metavar="S", help="wall clock and processor time at most, per model; default: the setting")


if __name__ == "__main__":
    sys.exit(main())
