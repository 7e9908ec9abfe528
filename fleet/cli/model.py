"""mooring model: bring model files in and look at them."""

import json
from pathlib import Path

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ServerOption
from fleet.cli.session import open_api
from runtime.manifest import load_draft

app = typer.Typer(no_args_is_help=True, help="Models: what was trained, before it becomes a release.")


@app.command("import")
def import_model(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="ONNX or TFLite file."),
    manifest: Path = typer.Option(..., "--manifest", exists=True, dir_okay=False, help="What its author says of it: TOML or JSON."),
    name: str = typer.Option("", "--name", help="Name of the model; else the manifest's file name."),
    golden: Path | None = typer.Option(None, "--golden", exists=True, dir_okay=False, help="Golden vectors; else the server makes them."),
    note: str = typer.Option("", help="For the model card."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Import a model file as the next version of a model. The server inspects it and refuses what does not fit the manifest."""
    draft = load_draft(manifest).model_dump(mode="json", exclude_none=True)
    fields = {"name": name or manifest.stem, "manifest": json.dumps(draft), "note": note}
    files = {"file": file, **({"golden": golden} if golden else {})}
    total = sum(path.stat().st_size for path in files.values())
    with open_api(server) as api, output.progress_bar(f"Uploading {file.name}", total) as progress:
        made = api.upload("/models", fields, files, progress=progress)
    if as_json:
        output.document(made)
        return
    output.say(f"Imported as {made['id']}: {made['format']}, {made['file']['length']} bytes.")
    output.data(made["id"])


@app.command("list")
def list_models(as_json: bool = JsonOption, server: str | None = ServerOption) -> None:
    """List model versions, the newest first."""
    with open_api(server) as api:
        rows = list(api.pages("/models"))
    if as_json:
        output.document(rows)
        return
    columns = (
        ("MODEL", lambda row: row["id"]),
        ("FORMAT", lambda row: row["format"]),
        ("BYTES", lambda row: row["file"]["length"]),
        ("DEVICE TYPES", lambda row: row["device_types"]),
        ("BY", lambda row: row["created_by"]),
        ("MADE", lambda row: output.moment(row["created_at"])),
    )
    output.table(columns, rows, empty="No models. Import one: mooring model import FILE --manifest MANIFEST")
