"""mooring config: what devices are set to from afar; edit, look at what would change, release, sign, go back."""

import base64
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.ceremony import ask_for, root_digest
from fleet.cli.client import Api
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from protocol.errors import ConfigError, ConflictError, InvalidError
from protocol.files import read_bounded

app = typer.Typer(no_args_is_help=True, help="Configuration of devices: fleet, groups, single devices.")
GroupOption = typer.Option(None, "--group", help="The group's section; else the fleet's.")
DeviceOption = typer.Option(None, "--device", help="The section of this one device.")
#: A section beyond this is not one that somebody wrote, bytes.
MAX_SECTION_BYTES = 256 << 10


@app.command()
def keys(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List every key that may be set, with the kind of its value."""
    with open_api(server) as api:
        rows = api.get("/configurations/keys")["items"]
    if as_json:
        output.document(rows)
        return
    output.table((("KEY", lambda row: row["key"]), ("VALUE", lambda row: row["kind"])), rows, empty="No keys.")


@app.command()
def show(
    group: str | None = GroupOption, device: str | None = DeviceOption, as_json: bool = JsonOption, server: str | None = ServerOption
) -> None:
    """Show one section as people left it; devices get it with the next release."""
    with open_api(server) as api:
        found = api.get(_section_path(group, device))
    if as_json:
        output.document(found)
        return
    output.facts({"changed by": found["changed_by"], "changed": output.moment(found["changed_at"]), "revision": found["revision"]})
    output.document(found["settings"])


@app.command("set")
def set_values(
    values: list[str] = typer.Argument(..., metavar="KEY=VALUE…", help="E.g. telemetry.perf_s=30, pipelines.*.max_fps=5, log_level=null."),
    group: str | None = GroupOption,
    device: str | None = DeviceOption,
    unset: list[str] = typer.Option([], "--unset", help="Say nothing about this key any more; again for more."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Set single values of a section; null puts the device's own value back where something is inherited."""
    body = {"values": dict(parse_value(item) for item in values), "unset": unset, "reason": reason}
    with open_api(server) as api:
        path = _section_path(group, device)
        _, etag = api.get_with_etag(path)
        saved = api.send("PATCH", path, body, etag=etag)
    _say_saved(saved, as_json=as_json)


@app.command()
def unset(
    names: list[str] = typer.Argument(..., metavar="KEY…"),
    group: str | None = GroupOption,
    device: str | None = DeviceOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Say nothing about these keys any more: what is inherited holds again."""
    with open_api(server) as api:
        path = _section_path(group, device)
        _, etag = api.get_with_etag(path)
        saved = api.send("PATCH", path, {"unset": names, "reason": reason}, etag=etag)
    _say_saved(saved, as_json=as_json)


@app.command()
def edit(
    group: str | None = GroupOption,
    device: str | None = DeviceOption,
    file: Path | None = typer.Option(None, "--file", exists=True, dir_okay=False, help="Take this JSON; else $EDITOR opens."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Edit a whole section as JSON, in $EDITOR or from a file."""
    with open_api(server) as api:
        path = _section_path(group, device)
        found, etag = api.get_with_etag(path)
        text = read_bounded(file, MAX_SECTION_BYTES).decode() if file else _edited(json.dumps(found["settings"], indent=2) + "\n")
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise InvalidError(f"This is no JSON: {error}. Nothing was changed.") from error
        if settings == found["settings"]:
            output.say("Nothing changed.")
            return
        saved = api.send("PUT", path, {"settings": settings, "reason": reason}, etag=etag)
    _say_saved(saved, as_json=as_json)


@app.command()
def diff(group: str = typer.Argument(...), as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show what changed in a group's sections since its last release."""
    with open_api(server) as api:
        rows = api.get("/configurations/diff", group=group)["items"]
    if as_json:
        output.document(rows)
        return
    columns = (("SECTION", lambda row: row["section"]), *_CHANGE_COLUMNS)
    output.table(columns, rows, empty=f"Nothing differs from what is published for {group}.")


@app.command("dry-run")
def dry_run(
    group: str = typer.Argument(...),
    device: str | None = typer.Option(None, "--device", help="Only this one."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Show per device what the next release would change and which pipelines would start again; changes nothing."""
    with open_api(server) as api:
        found = list(api.pages("/configurations/dry-run", group=group, device=device))
    if as_json:
        output.document(found)
        return
    rows = [{"device": one["device"], **change} for one in found for change in one["changes"]]
    columns = (("DEVICE", lambda row: row["device"]), *_CHANGE_COLUMNS, ("FROM", lambda row: row["origin"]))
    output.table(columns, rows, empty="No device would change.")
    for one in found:
        if one["restarts"]:
            output.say(f"{one['device']}: starts again: {', '.join(one['restarts'])}")
        if one["unused"]:
            output.say(f"{one['device']}: has no pipeline {', '.join(one['unused'])}")
        if not one["is_known"]:
            output.say(f"{one['device']}: never said what its own values are; only what is wished is shown")


@app.command()
def release(
    group: list[str] = typer.Option([], "--group", help="Only this group; again for more. Else all that differ."),
    yes: bool = YesOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Compose what differs from what is published and ask for approval; somebody else decides, then it is signed."""
    with open_api(server) as api:
        output.confirm(
            f"Asks for approval to set {', '.join(group) or 'every group that differs'} to the sections as they are.",
            yes=yes,
            reason=reason,
        )
        made = api.send("POST", "/configurations/releases", {"groups": group, "reason": reason})
    if as_json:
        output.document(made)
        return
    output.say(f"Configuration {made['rev']} for {', '.join(made['groups'])}: approval {made['approval']} waits.")
    output.say(f"Somebody else: mooring approval decide {made['approval']} --approve --reason …, then mooring config sign {made['rev']}")
    output.data(str(made["rev"]))


@app.command()
def sign(
    rev: int,
    key: str = typer.Option(..., "--key", metavar="FILE|URI", help="The policy key: a PEM file, pkcs11:…, awskms:…; it stays where it is."),
    public: Path | None = typer.Option(
        None, "--public", exists=True, dir_okay=False, help="Its public half (.pub); for key services only."
    ),
    passphrase_file: Path | None = typer.Option(None, "--passphrase-file", exists=True, dir_okay=False, help="Else asked when needed."),
    bootstrap: str = typer.Option("", "--bootstrap", metavar="FILE|DIGEST", help="First root; to sign after the role's other keys."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Sign an approved configuration with the policy key, here, after checking that it is what was approved; devices then get it."""
    from fleet.registry import tokens
    from fleet.registry.policies import sign_policy_role
    from fleet.registry.requests import check_published
    from protocol.trust.metadata import POLICY_ROLE

    with open_api(server) as api:
        found = api.get(f"/configurations/releases/{rev}")
        request = _request_of(api, rev)
        if request["content_digest"] != found["content_digest"]:
            raise ConflictError(f"The request is for {request['content_digest']}; configuration {rev} has {found['content_digest']}.")
        signer = tokens.open_signer(key, ask=ask_for(passphrase_file), public=public)
        previous = base64.b64decode(request["previous"])
        is_checked = bool(bootstrap and previous) and signer.public_key.keyid.encode() not in previous
        if is_checked:
            data = base64.b64decode(api.get("/published-roles")["published"])
            check_published(data, bootstrap=root_digest(bootstrap), role=POLICY_ROLE, previous=previous)
        signed = sign_policy_role(
            base64.b64decode(request["payload"]),
            previous=previous,
            is_previous_checked=is_checked,
            approved=request["content_digest"],
            signer=signer,
        )
        body = {"signed": base64.b64encode(signed).decode()}
        made = api.send("POST", f"/configurations/signing-requests/{rev}", body)
    if as_json:
        output.document(made)
        return
    if made["state"] == "approved":
        output.say(f"Configuration {rev} is signed in part; more of the policy keys must sign it: mooring config sign {rev} --key …")
        return
    output.say(f"Configuration {rev} is {made['state']}: devices of {', '.join(made['groups'])} get it with their next poll.")


@app.command()
def history(
    group: str | None = typer.Option(None, "--group", help="Only this group."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """List releases, the newest first: who, when, why."""
    with open_api(server) as api:
        rows = list(api.pages("/configurations/releases", group=group))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("REV", lambda row: row["rev"]),
        ("STATE", lambda row: row["state"]),
        ("GROUPS", lambda row: row["groups"]),
        ("BY", lambda row: row["created_by"]),
        ("MADE", lambda row: output.moment(row["created_at"])),
        ("WHY", lambda row: row["reason"]),
    )
    output.table(columns, rows, empty="No configuration was released. Start with: mooring config set KEY=VALUE")


@app.command()
def withdraw(rev: int, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Take back a configuration that is not published yet."""
    with open_api(server) as api:
        output.confirm(f"Configuration {rev} will not be published.", yes=yes, reason=reason)
        api.send("POST", f"/configurations/releases/{rev}/withdraw", {"reason": reason})
    output.say(f"Configuration {rev} is withdrawn.")


@app.command()
def rollback(
    rev: int, yes: bool = YesOption, reason: str = ReasonOption, as_json: bool = JsonOption, server: str | None = ServerOption
) -> None:
    """Make the sections as they were in an older configuration and ask for approval of that as a new one."""
    with open_api(server) as api:
        found = api.get(f"/configurations/releases/{rev}")
        output.confirm(
            f"The sections of fleet, {', '.join(found['groups'])} and their devices become those of {rev}.", yes=yes, reason=reason
        )
        changed = api.send("POST", f"/configurations/releases/{rev}/restore", {"reason": reason})["items"]
        made = api.send("POST", "/configurations/releases", {"groups": found["groups"], "reason": reason or f"back to {rev}"})
    if as_json:
        output.document({"changed": changed, "release": made})
        return
    output.say(f"Configuration {made['rev']} has the content of {rev}: approval {made['approval']} waits.")
    output.data(str(made["rev"]))


@app.command()
def status(device: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show what a device shall have and what it says that it has, with where each value comes from."""
    with open_api(server) as api:
        found = api.get(f"/devices/{device}/configuration")
    if as_json:
        output.document(found)
        return
    told = found["reported"] or {}
    output.facts(
        {
            "group": found["group"],
            "desired": found["desired_rev"],
            "in force": told.get("rev") or None,
            "state": told.get("state") or "the device never said",
        }
    )
    if back := told.get("returned"):
        output.data(f"went back from {back['rev']} (attempt {back['attempt']}): {back['reason']}: {back['text']}")
    for key, origin in sorted(told.get("origins", {}).items()):
        output.data(f"  {key}  from {origin}")
    for key, why in sorted(told.get("ignored", {}).items()):
        output.data(f"  {key}  left out: {why}")


@app.command()
def progress(group: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show how far a group's devices are with their configuration, and which went back and why."""
    with open_api(server) as api:
        found = api.get("/configurations/progress", group=group)
    if as_json:
        output.document(found)
        return
    output.facts({"desired": found["desired_rev"], **found["counts"]})
    columns = (("WENT BACK", lambda row: row["device"]), ("REASON", lambda row: row["reason"]), ("", lambda row: row["text"]))
    output.table(columns, found["returned"], empty="None went back.")


@app.command("offer-again")
def offer_again(device: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Let a device try again the configuration that it went back from."""
    with open_api(server) as api:
        output.confirm(f"{device} tries its configuration again.", yes=yes, reason=reason)
        made = api.send("POST", f"/devices/{device}/configuration/offer-again", {"reason": reason})
    output.say(f"{device} is offered its configuration again, attempt {made['attempt']}.")


_CHANGE_COLUMNS = (
    ("KEY", lambda row: row["key"]),
    ("BEFORE", lambda row: _shown(row["before"])),
    ("AFTER", lambda row: _shown(row["after"])),
)


def parse_value(text: str) -> tuple[str, Any]:
    """What KEY=VALUE says: JSON where it is JSON, else text. Raises: InvalidError when there is no "="."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InvalidError(f"{text!r} says no value.", hint="Wanted: KEY=VALUE, e.g. telemetry.perf_s=30.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _section_path(group: str | None, device: str | None) -> str:
    if group and device:
        raise InvalidError("--group and --device name two sections; wanted one.")
    if device:
        return f"/configurations/sections/device/{device}"
    return f"/configurations/sections/group/{group}" if group else "/configurations/sections/fleet"


def _request_of(api: Api, rev: int) -> dict[str, Any]:
    for request in api.get("/configurations/signing-requests")["items"]:
        if request["rev"] == rev:
            return dict(request)
    raise ConflictError(f"Configuration {rev} does not wait for a signature.", hint="See: mooring config history")


def _say_saved(saved: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.document(saved)
        return
    where = f"{saved['scope']} {saved['name']}".strip()
    output.say(f"The section of {where} is at revision {saved['revision']}. Devices get it with: mooring config release")


def _edited(text: str) -> str:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not command:
        raise ConfigError("No editor is named.", hint="Set EDITOR, or give --file.")
    with tempfile.TemporaryDirectory(prefix="mooring-config-") as folder:
        path = Path(folder) / "section.json"
        path.write_text(text)
        if subprocess.run([*shlex.split(command), str(path)], check=False).returncode != 0:
            raise InvalidError("The editor ended with an error; nothing was changed.")
        return read_bounded(path, MAX_SECTION_BYTES).decode()


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
