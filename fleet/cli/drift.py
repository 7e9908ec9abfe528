"""mooring drift: what devices saw, and what is normal for them."""

import typer

from fleet.cli import drift_reference

app = typer.Typer(no_args_is_help=True, help="Drift: what devices saw, and what is normal for them.")
app.add_typer(drift_reference.app, name="reference")
