"""mooring device: list, show, invite, set pipelines, labels and secrets, revoke."""

import json
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.login import read_password
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from protocol.errors import InvalidError
from protocol.files import read_bounded

#: A file of settings beyond this is no such file, bytes.
MAX_FILE_BYTES = 1 << 20

app = typer.Typer(no_args_is_help=True, help="Devices: which there are, how they are, what they run.")


@app.command("list")
def list_devices(
    group: str | None = typer.Option(None, help="Only this group."),
    device_type: str | None = typer.Option(None, "--device-type", help="Only this device type."),
    site: str | None = typer.Option(None, help="Only this site."),
    presence: str | None = typer.Option(None, help="online, offline or sleeping."),
    health: str | None = typer.Option(None, help="healthy, degraded, failed or unknown."),
    text: str | None = typer.Option(None, help="Only names that contain this."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """List devices."""
    with open_api(server) as api:
        rows = list(api.pages("/devices", group=group, device_type=device_type, site=site, presence=presence, health=health, text=text))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("DEVICE", lambda row: row["device"]),
        ("PRESENCE", lambda row: row["presence"] if row["state"] == "enrolled" else row["state"]),
        ("HEALTH", lambda row: row["health"]),
        ("RUNS", lambda row: [f"{line['line']} {line['installed'] or 'nothing'}" for line in row["lines"]]),
        ("GROUP", lambda row: row["group"]),
        ("SITE", lambda row: row["site"]),
        ("TYPE", lambda row: row["device_type"]),
        ("LAST SEEN", lambda row: output.moment(row["last_seen"])),
    )
    output.table(columns, rows, empty="No devices. Invite one: mooring device invite --device-type TYPE")


@app.command()
def show(device: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one device: state, conditions, slots and how they came to be, pipelines."""
    with open_api(server) as api:
        found = api.get(f"/devices/{device}")
    if as_json:
        output.document(found)
        return
    _show(found)


@app.command()
def invite(
    group: str = typer.Option("default", help="Group the device joins."),
    device_type: str = typer.Option(..., "--device-type", help="What the device is, e.g. linux-arm64."),
    device: str | None = typer.Option(None, help="Only this id; needed when a known device enrolls again."),
    hours: float | None = typer.Option(None, help="How long the invitation holds; the server's default when not given."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Make a one-time invitation; its token is shown once."""
    body = {"group": group, "device_type": device_type, "device": device, "hours": hours, "reason": reason}
    with open_api(server) as api:
        made = api.send("POST", "/invites", {key: value for key, value in body.items() if value is not None})
    if as_json:
        output.document(made)
        return
    output.say(f"One device of type {device_type} may join group {group} until {output.moment(made['expires_at'])} UTC. On the device:")
    output.data(made["command"])


@app.command()
def pipelines(
    device: str,
    set_file: Path | None = typer.Option(None, "--set", help="JSON file with the list of pipelines; '-' is not taken."),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Show a device's pipelines, or replace them."""
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/devices/{device}")
        if set_file is not None:
            wanted = _read_json(set_file)
            output.confirm(f"Replaces {len(found['pipelines'])} pipelines of {device} by {len(wanted)}.", yes=yes, reason=reason)
            found = api.send("PUT", f"/devices/{device}/pipelines", {"pipelines": wanted, "reason": reason}, etag=etag)
    if as_json:
        output.document(found["pipelines"])
        return
    columns = (
        ("PIPELINE", lambda row: row["name"]),
        ("LINE", lambda row: row["line"]),
        ("SOURCE", lambda row: row["source"]["kind"]),
        ("KEEPS", lambda row: row["keep"]),
        ("ASKED", lambda row: row.get("asked")),
        ("IN USE", lambda row: row.get("effective")),
    )
    output.table(columns, found["pipelines"], empty="No pipelines. Set them: mooring device pipelines DEVICE --set FILE.json")


@app.command()
def label(
    device: str,
    labels: list[str] = typer.Argument(..., help="NAME=VALUE; NAME= takes a label away."),
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Set or take away labels."""
    with open_api(server) as api:
        found, etag = api.get_with_etag(f"/devices/{device}")
        wanted = dict(found["labels"])
        for item in labels:
            name, separator, value = item.partition("=")
            if not separator:
                raise InvalidError(f"{item!r} is no label.", hint="Wanted: NAME=VALUE.")
            wanted[name] = value
        body = {"labels": {name: value for name, value in wanted.items() if value}, "reason": reason}
        found = api.send("PUT", f"/devices/{device}/labels", body, etag=etag)
    output.facts(found["labels"])


@app.command()
def secret(
    device: str,
    name: str,
    value_stdin: bool = typer.Option(False, "--stdin", help="Read the secret from standard input."),
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Send a secret to a device, sealed to its own key; the server keeps only the sealed form."""
    value = read_password(from_stdin=value_stdin, prompt="Secret")
    with open_api(server) as api:
        api.send("PUT", f"/devices/{device}/secrets/{name}", {"value": value, "reason": reason})
    output.say(f"Secret {name} is sealed to {device}.")


@app.command("offer-again")
def offer_again(
    device: str,
    line: str = typer.Option(..., "--line", help="Model line whose release the device refused or failed."),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    server: str | None = ServerOption,
) -> None:
    """Let a device try a release again that it blocked; the block is lifted by a higher attempt."""
    output.confirm(f"{device} tries what {line} is assigned once more.", yes=yes, reason=reason)
    with open_api(server) as api:
        made = api.send("POST", f"/devices/{device}/offer-again", {"line": line, "reason": reason})
    output.say(f"{made['device']} is offered {made['line']} {made['release']} again, attempt {made['attempt']}.")


@app.command()
def consent(
    device: str,
    line: str = typer.Option(..., "--line", help="Model line whose release waits for consent."),
    given: bool = typer.Option(..., "--yes/--no", help="Whether the device may activate it."),
    reason: str = typer.Option(..., "--reason", help="Why; kept in the audit log."),
    server: str | None = ServerOption,
) -> None:
    """Answer for a site that asks before a release is activated; holds for this assignment alone."""
    with open_api(server) as api:
        made = api.send("POST", f"/devices/{device}/consent", {"line": line, "given": given, "reason": reason})
    output.say(f"{made['device']} {'may' if made['given'] else 'must not'} activate {made['line']} {made['release']}.")


@app.command()
def revoke(device: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Refuse the device's certificate from now on."""
    with open_api(server) as api:
        _, etag = api.get_with_etag(f"/devices/{device}")
        output.confirm(f"{device} will be refused from now on; it keeps inferring, cut off from this server.", yes=yes, reason=reason)
        api.send("POST", f"/devices/{device}/revoke", {"reason": reason}, etag=etag)
    output.say(f"{device} is revoked.")


#: How the points of an update's way are told apart without color.
_PATH_MARKS = {"done": "", "now": ">", "bad": "!", "ahead": "."}


def _show(found: dict[str, Any]) -> None:
    is_member = found["state"] == "enrolled"
    output.facts(
        {
            "device": found["device"],
            "presence": found["presence"] if is_member else found["state"],
            "health": found["health"],
            "last seen": output.moment(found["last_seen"]),
            "type": found["device_type"],
            "group": found["group"],
            "site": found["site"],
            "agent": found["agent_version"],
            "certificate": f"until {output.moment(found['certificate_ends_at'])}" if is_member else "refused",
            "labels": [f"{name}={value}" for name, value in sorted(found["labels"].items())],
        }
    )
    for one in found["conditions"]:
        output.data(f"\n{one['severity']}: {one['code']}: {one['text']}")
    for line in found["lines"]:
        _show_line(line, [slot for slot in found["slots"] if slot["line"] == line["line"]])
    for one in found["pipelines"]:
        output.data(f"\npipeline {one['name']}: {one['source']['kind']} -> {one['line']}, backend {one.get('effective') or 'not reported'}")


def _show_line(line: dict[str, Any], slots: list[dict[str, Any]]) -> None:
    output.data(
        f"\nline {line['line']}: {line['state']}, installed {line['installed'] or 'nothing'}, wanted {line['desired'] or 'nothing'}"
    )
    if line["path"]:
        output.data("  " + "  ".join(f"{_PATH_MARKS[point['kind']]}{point['state']}" for point in line["path"]))
    if line["waits_for"]:
        output.data(f"  waits for {line['waits_for']}{' until ' + output.moment(line['until']) if line['until'] else ''}")
    if line["reason"] or line["text"]:
        output.data(f"  {line['reason'] + ': ' if line['reason'] else ''}{line['text']}")
    if line["transfer"]:
        output.data(f"  transfer: {line['transfer']}")
    for slot in slots:
        output.data(f"  slot {slot['slot']}: {slot['release']} ({_slot_words(slot)})")
    for item in line["blocked"]:
        output.data(f"  refuses {item['release']}: {item['reason']}: {item['text']}")
    for step in line["history"]:
        why = f" ({step['reason']}: {step['text']})" if step["reason"] else ""
        output.data(f"  {output.moment(step['at'])}  {step['release']}  {step['state']}{why}")


def _slot_words(slot: dict[str, Any]) -> str:
    """A slot that is neither active nor committed is not used: it was left behind, or waits to be activated."""
    if slot["active"]:
        return "active, committed" if slot["committed"] else "active, on probation"
    return "inactive, committed" if slot["committed"] else "inactive"


def _read_json(path: Path) -> list[Any]:
    try:
        document = json.loads(read_bounded(path, MAX_FILE_BYTES))
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidError(f"{path} is not JSON: {error}.") from error
    wanted = document.get("pipelines") if isinstance(document, dict) else document
    if not isinstance(wanted, list):
        raise InvalidError(f"{path} holds no list of pipelines.", hint='Wanted: [{"name": …, "line": …, "source": {…}}].')
    return wanted
