"""mooring delta: make, apply and look at deltas between two model files; needs no server."""

import dataclasses
from pathlib import Path

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption
from protocol.delta.container import DEFAULT_MEMORY_KIB, MAX_FILE_BYTES

app = typer.Typer(no_args_is_help=True, help="Deltas between two model files; no server is needed.")

_Base = typer.Argument(..., exists=True, dir_okay=False, help="The file that the device has.")
_Out = typer.Option(..., "--out", "-o", dir_okay=False, help="Where the result goes.")


@app.command()
def create(
    base: Path = _Base,
    new: Path = typer.Argument(..., exists=True, dir_okay=False, help="The file that it shall have."),
    out: Path = _Out,
    as_json: bool = JsonOption,
) -> None:
    """Make the smallest delta that the device's decoder turns back into NEW, bit by bit."""
    from fleet.registry.delta_encoder import encode

    made = encode(base, new, out)
    if as_json:
        output.document(dataclasses.asdict(made))
        return
    output.say(f"{out}: {made.length} bytes, {made.length / max(1, new.stat().st_size):.2%} of {new.name}, method {made.method}.")


@app.command("apply")
def apply_command(
    base: Path = _Base,
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="The delta."),
    out: Path = _Out,
    memory_kib: int = typer.Option(DEFAULT_MEMORY_KIB, "--memory-kib", min=1, help="Memory that decoding may take, KiB."),
) -> None:
    """Rebuild the new file from BASE and the delta; its digest is checked before it appears."""
    from protocol.delta.decoder import apply

    apply(file, base, out, max_new_bytes=MAX_FILE_BYTES, memory_kib=memory_kib)
    output.say(f"{out}: {out.stat().st_size} bytes, digest as the delta says.")


@app.command("inspect")
def inspect_command(
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="The delta."),
    as_json: bool = JsonOption,
) -> None:
    """Show what a delta is for, how it was made, and where its bytes go."""
    from fleet.registry.delta_inspecting import inspect

    shown = inspect(file)
    if as_json:
        output.document(shown)
        return
    rows = list(_flat(shown))
    output.table((("FIELD", lambda row: row[0]), ("VALUE", lambda row: row[1])), rows, empty="Nothing.")


def _flat(shown: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in shown.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return rows
