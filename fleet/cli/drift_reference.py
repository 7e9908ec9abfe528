"""mooring drift reference: learn what is normal for a device from a recording."""

from pathlib import Path

import typer

from fleet.cli import output
from fleet.cli.output import JsonOption, ReasonOption, ServerOption
from fleet.cli.session import open_api

app = typer.Typer(no_args_is_help=True, help="What is normal for a device, learned from a recording.")

#: What is said of a reference from a recording that nobody signed.
UNSIGNED = ", from an unsigned recording"


@app.command("import")
def import_reference(
    device: str = typer.Argument(..., help="The device that the recording speaks for."),
    recording: Path = typer.Argument(..., exists=True, dir_okay=False, help="What `mooring-agent drift record` wrote."),
    pipeline: str = typer.Option(..., "--pipeline", help="Which of its pipelines."),
    model: str = typer.Option("", "--model", help="First 16 bytes of the model file's digest; else the one of which there is most."),
    recorded_by: str = typer.Option("", "--from", metavar="OTHER", help="The device that recorded, when it is not DEVICE."),
    unsigned: bool = typer.Option(False, "--unsigned", help="Nobody signed it: you vouch for it, as the reason says; shown as unsigned."),
    indoor: bool = typer.Option(False, "--indoor", help="Light there does not follow the day: blocks that order devices may be shorter."),
    reason: str = ReasonOption,
    as_json: bool = JsonOption,
    server: str | None = ServerOption,
) -> None:
    """Learn a device's reference from a recording of at least 14 complete days that a device signed, and use it; audited, provisional."""
    fields = {"device": device, "pipeline": pipeline, "reason": reason, "model": model, "is_indoor": str(indoor).lower()}
    fields |= {"recorded_by": recorded_by, "unsigned": str(unsigned).lower()}
    with open_api(server) as api:
        made = api.upload("/drift/references", fields, {"recording": recording})
    if as_json:
        output.document(made)
        return
    left_out = "".join(f", {count} {why}" for why, count in sorted(made["left_out"].items()))
    whence = UNSIGNED if made["source"] == "recording" else ""
    output.say(f"Learned from {made['days']} complete days, {made['windows']} sub-windows{left_out}. It is {made['grade']}{whence}.")
    output.data(made["reference"])
