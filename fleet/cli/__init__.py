"""`mooring`: the server's commands and the people's. Data goes to stdout, talk to stderr; how it ended is the exit code.

0 ok · 1 failed · 2 usage · 3 not found · 4 log in, or ask for the permission · 5 conflict · 6 unreachable, try again · 7 a gate failed ·
130 interrupted
"""

import sys
from collections.abc import Sequence
from typing import Any

import typer

from fleet.cli import (
    alarm,
    api,
    approval,
    audit,
    authority,
    broker,
    bundle,
    campaign,
    config,
    database,
    delta,
    device,
    drift,
    group,
    keys,
    model,
    output,
    release,
    rule,
    serve,
    site,
    token,
    user,
    webhook,
)
from fleet.cli.doctor import doctor
from fleet.cli.login import login, logout
from fleet.cli.watch import watch
from protocol.errors import (
    AccessError,
    ConfigError,
    ConflictError,
    MooringError,
    NotFoundError,
    TransferError,
)

app = typer.Typer(
    name="mooring",
    help="The whole loop for edge machine learning: server, devices, models, releases, campaigns.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve.serve)
app.command()(serve.signer)
app.command()(login)
app.command()(logout)
app.command()(watch)
app.command()(doctor)
for name, part in (
    ("device", device),
    ("group", group),
    ("site", site),
    ("config", config),
    ("model", model),
    ("release", release),
    ("approval", approval),
    ("campaign", campaign),
    ("audit", audit),
    ("user", user),
    ("token", token),
    ("broker", broker),
    ("bundle", bundle),
    ("alarm", alarm),
    ("drift", drift),
    ("rule", rule),
    ("webhook", webhook),
    ("keys", keys),
    ("authority", authority),
    ("delta", delta),
    ("db", database),
    ("api", api),
):
    app.add_typer(part.app, name=name)
app.add_typer(webhook.mail, name="mail")

OK, FAILED, USAGE, NOT_FOUND, ACCESS, CONFLICT, UNREACHABLE, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 7, 130
#: What the command line parser raises: the base of typer.BadParameter, which typer took from click and does not name.
_USAGE_ERRORS: type[Exception] = typer.BadParameter.__mro__[2]
#: From the most special family to the most general.
_EXITS: tuple[tuple[type[MooringError], int], ...] = (
    (NotFoundError, NOT_FOUND),
    (AccessError, ACCESS),
    (ConflictError, CONFLICT),
    (TransferError, UNREACHABLE),
    (ConfigError, USAGE),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, after the error was told on stderr."""
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except MooringError as error:
        output.say(f"mooring: {error}")
        return exit_code(error)
    except (typer.Abort, KeyboardInterrupt):
        output.say("mooring: interrupted; nothing more was done.")
        return INTERRUPTED
    except _USAGE_ERRORS as error:
        shown: Any = error
        shown.show()
        return int(shown.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has enough; nothing is left to be flushed to it
        return OK
    except OSError as error:
        output.say(f"mooring: {error.filename or 'input'}: {error.strerror or error}")
        return FAILED
    return result if isinstance(result, int) else OK


def exit_code(error: MooringError) -> int:
    """What the process ends with for this error."""
    if error.code == "gate-failed":
        return GATE_FAILED
    return next((code for family, code in _EXITS if isinstance(error, family)), FAILED)
