"""mooring api: the interface as documents."""

import typer

from fleet.cli import output

app = typer.Typer(no_args_is_help=True, help="The REST interface as a document.")


@app.callback()
def group() -> None:
    """The REST interface as a document."""


@app.command()
def openapi() -> None:
    """Print /api/v1 as OpenAPI 3.1, JSON."""
    from fleet.web.admin_api import document

    output.document(document())
