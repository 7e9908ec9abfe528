"""mooring model: bring model files in and look at them."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ServerOption
from fleet.cli.session import open_api
from fleet.registry.drafts import load_draft
from fleet.registry.evaluation import pack_folder
from protocol.decoding import encode, without_none

app = typer.Typer(no_args_is_help=True, help="Models: what was trained, before it becomes a release.")


@app.command("import")
def import_model(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="ONNX or TFLite file."),
    manifest: Path = typer.Option(..., "--manifest", exists=True, dir_okay=False, help="What its author says of it: TOML or JSON."),
    name: str = typer.Option("", "--name", help="Name of the model; else the manifest's file name."),
    golden: Path | None = typer.Option(None, "--golden", exists=True, dir_okay=False, help="Golden vectors; else the server makes them."),
    evaluation: Path | None = typer.Option(
        None, "--evaluation", exists=True, help="Data that drift is judged by: .npz, or a folder of pictures with labels.csv."
    ),
    note: str = typer.Option("", help="For the model card."),
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Import a model file as the next version of a model. The server inspects it and refuses what does not fit the manifest."""
    draft = without_none(encode(load_draft(manifest)))
    fields = {"name": name or manifest.stem, "manifest": json.dumps(draft), "note": note}
    with _packed(evaluation) as data:
        files = {"file": file, **({"golden": golden} if golden else {}), **({"evaluation": data} if data else {})}
        total = sum(path.stat().st_size for path in files.values())
        with open_api(server) as api, output.progress_bar(f"Uploading {file.name}", total) as progress:
            made = api.upload("/models", fields, files, progress=progress)
    if as_json:
        output.document(made)
        return
    output.say(f"Imported as {made['id']}: {made['format']}, {made['file']['length']} bytes.")
    output.say(_evaluated(made["evaluation"]))
    output.data(made["id"])


@contextmanager
def _packed(evaluation: Path | None) -> Iterator[Path | None]:
    """The evaluation data as one file: a folder is packed into one that goes afterwards."""
    if evaluation is None or evaluation.is_file():
        yield evaluation
        return
    with tempfile.TemporaryDirectory(prefix="mooring-evaluation-") as scratch:
        target = Path(scratch) / "evaluation.zip"
        with target.open("wb") as out:
            pack_folder(evaluation, out)
        yield target


def _evaluated(found: dict[str, Any] | None) -> str:
    if found is None:
        return "Without evaluation data: releases of it are not watched for drift (--evaluation)."
    accuracy = "" if found["accuracy"] is None else f", {found['accuracy']:.1%} right"
    return f"Evaluated on {found['rows']} frames or windows{accuracy}; {len(found['features'])} features are watched for drift."


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
