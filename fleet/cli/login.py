"""mooring login, mooring logout: a person's name and password against an API token that is kept in the user's own folder."""

import sys

import typer

from fleet.cli import credentials, output
from fleet.cli.client import Api
from fleet.cli.session import tls_verification
from protocol.errors import InvalidError

MAX_PASSWORD = 200


def login(
    server: str = typer.Option(credentials.DEFAULT_SERVER, "--server", envvar=credentials.SERVER_VARIABLE, help="Base URL of the server."),
    user: str = typer.Option("", "--user", help="User name; asked when not given."),
    password_stdin: bool = typer.Option(False, "--password-stdin", help="Read the password from standard input."),
    days: float = typer.Option(7.0, "--days", help="How long the login holds."),
) -> None:
    """Log in and keep an API token for the commands that follow."""
    name = user or str(typer.prompt("User name", err=True))
    password = read_password(from_stdin=password_stdin, prompt="Password")
    with Api(server, verify=tls_verification()) as api:
        body = {"name": name, "password": password, "days": days, "token_name": "mooring login"}
        answer = api.send("POST", "/login", body)
    path = credentials.save(credentials.Credentials(server.rstrip("/"), answer["token"]))
    output.say(f"Logged in at {server} as {name}, until {output.moment(answer['expires_at'])} UTC. Kept in {path}.")


def logout(
    server: str = typer.Option(credentials.DEFAULT_SERVER, "--server", envvar=credentials.SERVER_VARIABLE, help="Base URL of the server."),
) -> None:
    """Revoke the kept token and forget it."""
    known = credentials.load(server)
    with Api(known.server, known.token, verify=tls_verification()) as api:
        api.send("POST", "/logout")
    credentials.forget(known.server)
    output.say(f"Logged out at {known.server}.")


def read_password(*, from_stdin: bool, prompt: str) -> str:
    """A secret from standard input or a hidden prompt; never from the command line. Raises: InvalidError when it is empty."""
    text = sys.stdin.readline(MAX_PASSWORD + 2).rstrip("\n") if from_stdin else str(typer.prompt(prompt, hide_input=True, err=True))
    if not text:
        raise InvalidError("The password is empty.")
    return text
