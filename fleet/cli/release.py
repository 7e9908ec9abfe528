"""mooring release: compose, ask for approval, sign, publish."""

import base64
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.ceremony import ask_for, root_digest
from fleet.cli.output import JsonOption, ReasonOption, ServerOption, YesOption
from fleet.cli.session import open_api
from protocol.errors import ConflictError, InvalidError

app = typer.Typer(no_args_is_help=True, help="Releases: what may ship.")
ModelOption = typer.Option(..., "--model", help="MODEL[:VARIANT][@TYPE,TYPE], e.g. digits-onnx.3@linux-arm64; again for more.")


@app.command()
def create(
    line: str,
    version: str,
    model: list[str] = ModelOption,
    note: str = typer.Option("", help="What is new."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Compose a release of a model line from model versions, one per runtime and device type."""
    body = {"line": line, "version": version, "models": [parse_model(item) for item in model], "note": note}
    with open_api(server) as api:
        made = api.send("POST", "/releases", body)
    if as_json:
        output.document(made)
        return
    output.say(f"Release {line} {version} is a draft (counter {made['counter']}). Next: mooring release propose {line} {version}")


@app.command()
def propose(line: str, version: str, reason: str = ReasonOption, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Ask for approval; somebody else decides."""
    with open_api(server) as api:
        made = api.send("POST", f"/releases/{line}/{version}/propose", {"reason": reason})
    if as_json:
        output.document(made)
        return
    output.say(f"Approval {made['approval']} waits. Somebody else: mooring approval decide {made['approval']} --approve --reason …")
    output.data(made["approval"])


@app.command()
def sign(
    line: str,
    version: str,
    key: str = typer.Option(
        ..., "--key", metavar="FILE|URI", help="The line's private key: a PEM file, pkcs11:…, awskms:…; it stays where it is."
    ),
    public: Path | None = typer.Option(
        None, "--public", exists=True, dir_okay=False, help="Its public half (.pub); for key services only."
    ),
    passphrase_file: Path | None = typer.Option(None, "--passphrase-file", exists=True, dir_okay=False, help="Else asked when needed."),
    bootstrap: str = typer.Option("", "--bootstrap", metavar="FILE|DIGEST", help="First root; to sign after the line's other keys."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Sign an approved release with the line's key, here, after checking that it is what was approved."""
    from fleet.registry import signing, tokens
    from fleet.registry.requests import check_published
    from protocol.trust.metadata import line_role

    with open_api(server) as api:
        release = api.get(f"/releases/{line}/{version}")
        request = _open_request(api.get("/signing-requests", line=line, version=version)["items"], line, version)
        if request["content_digest"] != release["content_digest"]:
            raise ConflictError(f"The request is for {request['content_digest']}; the release has {release['content_digest']}.")
        signer = tokens.open_signer(key, ask=ask_for(passphrase_file), public=public)
        previous = base64.b64decode(request["previous"])
        is_checked = bool(bootstrap and previous) and signer.public_key.keyid.encode() not in previous
        if is_checked:
            data = base64.b64decode(api.get("/published-roles")["published"])
            check_published(data, bootstrap=root_digest(bootstrap), role=line_role(line), previous=previous)
        signed = signing.sign_line_role(
            base64.b64decode(request["payload"]),
            previous=previous,
            is_previous_checked=is_checked,
            line=request["line"],
            approved=request["content_digest"],
            signer=signer,
        )
        made = api.send("POST", f"/signing-requests/{request['request']}", {"signed": base64.b64encode(signed).decode()})
    if as_json:
        output.document(made)
        return
    if made["state"] != "signed":
        output.say(f"Your signature is kept. Release {line} {version} waits for another of the line's keys.")
        return
    output.say(f"Release {line} {version} is signed. Next: mooring release publish {line} {version}")


@app.command("renew-line")
def renew_line(
    line: str,
    key: str = typer.Option(
        ..., "--key", metavar="FILE|URI", help="The line's private key: a PEM file, pkcs11:…, awskms:…; it stays where it is."
    ),
    public: Path | None = typer.Option(
        None, "--public", exists=True, dir_okay=False, help="Its public half (.pub); for key services only."
    ),
    passphrase_file: Path | None = typer.Option(None, "--passphrase-file", exists=True, dir_okay=False, help="Else asked when needed."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Sign a line again as it is, with a later expiry: no release renewed it for most of a year. `mooring signer` does it by itself."""
    from fleet.registry import renewals, tokens

    with open_api(server) as api:
        found = [item for item in api.get("/line-renewals", line=line)["items"] if item["line"] == line]
        if not found:
            raise ConflictError(
                f"Line {line} has nothing to renew here.", hint=f"See: mooring keys status; or mooring keys renew --role model.{line}"
            )
        signer = tokens.open_signer(key, ask=ask_for(passphrase_file), public=public)
        payload, previous = (base64.b64decode(found[0][name]) for name in ("payload", "previous"))
        signed = renewals.sign_renewal(payload, previous=previous, line=found[0]["line"], signer=signer)
        made = api.send("POST", f"/line-renewals/{line}", {"signed": base64.b64encode(signed).decode()})
    if as_json:
        output.document(made)
        return
    output.say(f"Line {line} holds until {output.moment(made['expires_at'])}.")


@app.command()
def publish(
    line: str,
    version: str,
    yes: bool = YesOption,
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Put a signed release into the image repository; campaigns may bring it to devices from then on."""
    with open_api(server) as api:
        release = api.get(f"/releases/{line}/{version}")
        output.confirm(
            f"Publishes {line} {version}, {release['content_digest']}; no device gets it before a campaign.", yes=yes, reason=reason
        )
        made = api.send("POST", f"/releases/{line}/{version}/publish", {"reason": reason})
    if as_json:
        output.document(made)
        return
    output.say(f"Release {line} {version} is {made['state']}.")


@app.command()
def withdraw(line: str, version: str, yes: bool = YesOption, reason: str = ReasonOption, server: str | None = ServerOption) -> None:
    """Let no new campaign take the release; devices that have it keep it."""
    with open_api(server) as api:
        output.confirm(f"No new campaign will take {line} {version}.", yes=yes, reason=reason)
        api.send("POST", f"/releases/{line}/{version}/withdraw", {"reason": reason or "withdrawn"})
    output.say(f"Release {line} {version} is withdrawn.")


@app.command()
def show(line: str, version: str, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Show one release."""
    with open_api(server) as api:
        found = api.get(f"/releases/{line}/{version}")
    if as_json:
        output.document(found)
        return
    names = ("line", "version", "state", "counter", "content_digest", "created_by", "approval", "note")
    output.facts({name: found[name] for name in names} | {name: output.moment(found[name]) for name in ("created_at", "published_at")})
    if found["is_below_floor"]:
        output.say("Below the floor of its line: no device installs it any more. Take a release with a higher counter.")
    for variant in found["variants"]:
        output.data(f"\nvariant {variant['variant']}: {variant['model_id']} for {', '.join(variant['device_types'])}")
        for file in variant["files"]:
            output.data(f"  {file['name']}  {file['length']}  {file['sha256']}")


@app.command("deltas")
def list_deltas(
    line: str,
    version: str,
    again: bool = typer.Option(False, "--again", help="First have tried again, in the background, what failed or was withdrawn."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """List what brings the release's files to devices in fewer bytes, and how many devices have the base of each."""
    with open_api(server) as api:
        if again:
            tried = api.send("POST", f"/releases/{line}/{version}/deltas", {"reason": reason})["again"]
            output.say(f"{tried} deltas are tried again.")
        rows = api.get(f"/releases/{line}/{version}/deltas")["items"]
    if as_json:
        output.document(rows)
        return
    columns = (
        ("VARIANT", lambda row: row["variant"]),
        ("FILE", lambda row: row["file"]),
        ("FROM", lambda row: row["base_release"] or "(nothing)"),
        ("DEVICES", lambda row: row["devices"] if row["base_release"] else "any"),
        ("STATE", lambda row: row["state"]),
        ("METHOD", lambda row: row["method_name"] or ""),
        ("BYTES", lambda row: row["length"] or ""),
        ("OF", lambda row: row["file_length"]),
        ("RATIO", lambda row: f"{row['ratio']}x" if row["ratio"] else ""),
        ("CPU", lambda row: f"{row['cpu_s']:.2f} s"),
        ("REASON", lambda row: row["reason"]),
    )
    output.table(columns, rows, empty="None yet. They are made in the background once the release is published.")


@app.command("list")
def list_releases(
    line: str | None = typer.Option(None, help="Only this line."), as_json: bool = JsonOption, server: str | None = ServerOption
) -> None:
    """List releases, the newest first."""
    with open_api(server) as api:
        rows = list(api.pages("/releases", line=line))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("LINE", lambda row: row["line"]),
        ("VERSION", lambda row: row["version"]),
        ("COUNTER", lambda row: row["counter"]),
        ("STATE", lambda row: row["state"] + (", below the floor" if row["is_below_floor"] else "")),
        ("VARIANTS", lambda row: [variant["variant"] for variant in row["variants"]]),
        ("BY", lambda row: row["created_by"]),
        ("MADE", lambda row: output.moment(row["created_at"])),
    )
    output.table(columns, rows, empty="No releases. Compose one: mooring release create LINE VERSION --model MODEL")


def parse_model(text: str) -> dict[str, Any]:
    """What --model says. Raises: InvalidError when it is not MODEL[:VARIANT][@TYPE,TYPE]."""
    named, _, types = text.partition("@")
    model_id, _, variant = named.partition(":")
    if not model_id:
        raise InvalidError(f"--model {text!r} names no model.", hint="Wanted: MODEL[:VARIANT][@TYPE,TYPE].")
    return {"model_id": model_id, "variant": variant, "device_types": [name for name in types.split(",") if name]}


def _open_request(requests: list[Any], line: str, version: str) -> dict[str, Any]:
    for request in requests:
        if request["line"] == line and request["version"] == version:
            return dict(request)
    raise ConflictError(f"Release {line} {version} does not wait for a signature.", hint=f"See: mooring release show {line} {version}")
