"""mooring webhook and mooring mail: who is told of alarms and rules."""

from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="Webhooks: where alerts are posted as signed CloudEvents.")
mail = typer.Typer(no_args_is_help=True, help="Mail: to whom alerts are sent.")
TopicOption = typer.Option([], "--topic", help="alarm, rule or server; again for more of them; all without one.")


@app.command("list")
def list_webhooks(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List webhooks."""
    with open_api(server) as api:
        rows = list(api.pages("/webhooks"))
    if as_json:
        output.document(rows)
        return
    columns = (("WEBHOOK", lambda row: row["name"]), ("URL", lambda row: row["url"]), ("TOPICS", lambda row: row["topics"] or "all"))
    output.table(columns, rows, empty="No webhooks.")


@app.command()
def create(
    name: str,
    url: str,
    topic: list[str] = TopicOption,
    allow_private: bool = typer.Option(False, "--allow-private", help="The address may be in a private network, and without TLS."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Add a webhook; the secret that signs its messages is shown once."""
    body = {"name": name, "url": url, "topics": topic, "allow_private": allow_private, "reason": reason}
    with open_api(server) as api:
        made = api.send("POST", "/webhooks", body)
    if as_json:
        output.document(made)
        return
    output.say("Shown once; the receiver checks signatures with it:")
    output.data(made["secret"])


@app.command()
def show(name: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show a webhook with its latest deliveries."""
    _show("/webhooks", name, as_json=as_json, server=server)


@app.command()
def delete(name: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Delete a webhook."""
    _delete("/webhooks", name, yes=yes, reason=reason, server=server)


@app.command("test")
def try_webhook(name: str, server: str | None = ServerOption) -> None:
    """Send a message that says that it is a test."""
    _try("/webhooks", name, server)


@mail.command("list")
def list_mail(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List to whom alerts are mailed."""
    with open_api(server) as api:
        rows = list(api.pages("/mail-recipients"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("NAME", lambda row: row["name"]),
        ("ADDRESSES", lambda row: row["addresses"]),
        ("TOPICS", lambda row: row["topics"] or "all"),
    )
    output.table(columns, rows, empty="Nobody.")


@mail.command("create")
def create_mail(
    name: str,
    address: list[str] = typer.Argument(..., help="Mail addresses."),
    topic: list[str] = TopicOption,
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Mail alerts to these addresses; the server needs the settings mail.host and mail.sender."""
    with open_api(server) as api:
        api.send("POST", "/mail-recipients", {"name": name, "addresses": address, "topics": topic, "reason": reason})
    output.say(f"{name} gets mail. Try it: mooring mail test {name}")


@mail.command("show")
def show_mail(name: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one of them with its latest deliveries."""
    _show("/mail-recipients", name, as_json=as_json, server=server)


@mail.command("delete")
def delete_mail(name: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Mail them no more."""
    _delete("/mail-recipients", name, yes=yes, reason=reason, server=server)


@mail.command("test")
def try_mail(name: str, server: str | None = ServerOption) -> None:
    """Send a mail that says that it is a test."""
    _try("/mail-recipients", name, server)


def _show(path: str, name: str, *, as_json: bool, server: str | None) -> None:
    with open_api(server) as api:
        found: dict[str, Any] = api.get(f"{path}/{name}")
    if as_json:
        output.document(found)
        return
    output.facts({key: value for key, value in found.items() if key != "deliveries"})
    columns: tuple[tuple[str, Any], ...] = (
        ("WHEN", lambda row: output.moment(row["created_at"])),
        ("ALERT", lambda row: row["title"]),
        *((("ADDRESS", lambda row: row["address"]),) if any(one["address"] for one in found["deliveries"]) else ()),
        ("STATE", lambda row: row["state"]),
        ("ATTEMPTS", lambda row: row["attempts"]),
        ("ERROR", lambda row: row["error"]),
    )
    output.table(columns, found["deliveries"], empty="Nothing was sent yet.")


def _delete(path: str, name: str, *, yes: bool, reason: str, server: str | None) -> None:
    with open_api(server) as api:
        _, etag = api.get_with_etag(f"{path}/{name}")
        output.confirm(f"{name} is told no more.", yes=yes, reason=reason)
        api.send("DELETE", f"{path}/{name}", {"reason": reason}, etag=etag)
    output.say(f"{name} is gone.")


def _try(path: str, name: str, server: str | None) -> None:
    with open_api(server) as api:
        api.send("POST", f"{path}/{name}/test", {})
    output.say(f"A test is on its way; how it went: mooring {'mail' if 'mail' in path else 'webhook'} show {name}")
