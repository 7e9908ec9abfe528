"""mooring db: the schema of the server's database."""

from pathlib import Path

import typer

from fleet.cli import output
from fleet.cli.serve import ConfigOption, DataOption, settings_of

app = typer.Typer(no_args_is_help=True, help="The server's database.")


@app.command()
def migrate(data: Path | None = DataOption, config: Path | None = ConfigOption) -> None:
    """Bring the schema to the newest revision; `serve` does the same when it starts."""
    from fleet.db import Database, migrate

    settings = settings_of(data, config)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.effective_database_url)
    revision = migrate(database)
    database.dispose()
    output.say(f"{database.url} is at schema {revision}.")
