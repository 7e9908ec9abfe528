"""mooring bundle: updates for a site without a network on a stick, and the signed reports that its devices wrote back."""

import base64
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.client import Api
from fleet.cli.output import JsonOption, ReasonOption, ServerOption
from fleet.cli.session import open_api
from protocol.bundle import BLOBS, INDEX, MAX_DEVICES, MAX_REPORTS_BYTES, REPORTS, blob_name, read_report_file
from protocol.errors import AccessError, ConflictError, InvalidError, NotFoundError
from protocol.files import fsync_folder, write_atomically
from protocol.folders import UntrustedFolder
from protocol.ids import DeviceId, Digest, check_name

app = typer.Typer(no_args_is_help=True, help="Sites without a network: a stick out, signed reports back.")
#: Seconds that signing for a group may take: some 30 ms a device.
SIGNING_TIMEOUT_S = 600.0
FolderArgument = typer.Argument(help="Folder on the stick.")


@app.command()
def create(
    folder: Path = FolderArgument,
    group: str = typer.Option(..., help="Whose devices it is for."),
    valid_days: int = typer.Option(90, "--valid-days", help="How long the devices take it, days."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Write all that the group's devices need to update without a network into a new folder."""
    if folder.exists():
        raise ConflictError(f"{folder} exists already.", hint="Name a new folder on the stick, e.g. /media/stick/mooring.")
    with open_api(server) as api:
        body = {"group": group, "valid_days": valid_days, "reason": reason}
        made = api.send("POST", "/bundles", body, timeout_s=SIGNING_TIMEOUT_S)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
        try:
            _fill(api, temporary, made)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_folder(folder.parent)
    total = sum(blob["length"] for blob in made["blobs"])
    told = {name: made[name] for name in ("group", "devices", "idle", "valid_until")} | {"folder": str(folder), "blob_bytes": total}
    if as_json:
        output.document(told)
        return
    output.say(
        f"{folder} brings {len(made['devices']) - len(made['idle'])} of {len(made['devices'])} devices of group {group} up to date "
        f"({total / 2**20:.1f} MiB) until {output.moment(made['valid_until'])}."
    )
    if made["idle"]:
        output.say(f"It brings nothing to {', '.join(made['idle'][:20])}: no campaign assigned them a release that fits.")
    output.say(f"On each device: mooring-agent import {folder}   Then bring the stick back: mooring bundle import-reports {folder}")


@app.command("import-reports")
def import_reports(folder: Path = FolderArgument, as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """Take the reports that devices wrote onto the stick into the server's record; again changes nothing. Ends with 1 when one is bad."""
    with UntrustedFolder(folder) as stick, open_api(server) as api:
        rows = [row for name in stick.list_names(REPORTS, most=MAX_DEVICES) for row in _bring(api, stick, name)]
    if as_json:
        output.document(rows)
    else:
        columns: tuple[tuple[str, Any], ...] = (
            ("FILE", lambda row: row["file"]),
            ("REPORT", lambda row: row["counter"] or ""),
            ("RESULT", lambda row: row["result"]),
            ("TEXT", lambda row: row["text"]),
        )
        output.table(
            columns, rows, empty=f"There are no reports in {folder}. Devices write them once the update ended, or when asked again."
        )
    if any(row["result"] == "refused" for row in rows):
        raise typer.Exit(1)


def _fill(api: Api, folder: Path, made: dict[str, Any]) -> None:
    """The folder with everything in it, durable; the index last."""
    (folder / BLOBS).mkdir(parents=True)
    (folder / REPORTS).mkdir()
    for path in sorted(made["files"], key=lambda path: path == INDEX):
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InvalidError(f"The server answered a file {path[:200]!r} outside of the folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, base64.b64decode(made["files"][path], validate=True))
    for blob in made["blobs"]:
        digest = Digest(blob["sha256"])
        output.say(f"{digest} {blob['length'] / 2**20:.2f} MiB")
        api.download(f"/bundles/blobs/{blob_name(digest)}", folder / BLOBS / blob_name(digest), length=blob["length"], expected=digest)
    for inner in (*{path.parent for path in folder.rglob("*")}, folder):
        fsync_folder(inner)


def _bring(api: Api, stick: UntrustedFolder, name: str) -> list[dict[str, Any]]:
    """What became of each report of one file; a file that is none is a row of its own."""
    try:
        device = DeviceId(check_name(name.removesuffix(".json"), what="Device"))
        found = read_report_file(stick.read(REPORTS, name, limit=MAX_REPORTS_BYTES))
    except (InvalidError, NotFoundError, OSError) as error:
        return [_row(name, None, "refused", str(error))]
    if found.device != device:
        return [_row(name, None, "refused", f"The file says that it is of {found.device}.")]
    rows = []
    for envelope in found.reports:
        try:
            body = {"device": device, "envelope": envelope.model_dump(mode="json")}
            rows.append(_row(name, api.send("POST", "/bundles/reports", body)["report_counter"], "taken", ""))
        except (AccessError, NotFoundError, InvalidError) as error:
            if error.code in {"unauthenticated", "forbidden"}:
                raise
            rows.append(_row(name, None, "refused", str(error)))
        except ConflictError as error:
            rows.append(_row(name, None, "known", str(error)))
    return rows


def _row(name: str, counter: int | None, result: str, text: str) -> dict[str, Any]:
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return {"file": shown[: os.pathconf("/", "PC_NAME_MAX")], "counter": counter, "result": result, "text": text}
