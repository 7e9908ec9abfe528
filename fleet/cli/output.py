"""What the command line says: data to stdout, talk to stderr; tables for people, JSON for programs; color only on a terminal."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from protocol.errors import InvalidError

#: Options that many commands share.
JsonOption = typer.Option(False, "--json", help="Print JSON, with the keys of the API.")
YesOption = typer.Option(False, "--yes", "-y", help="Do not ask; needs --reason.")
ReasonOption = typer.Option("", "--reason", help="Why; kept in the audit log.")
ServerOption = typer.Option(None, "--server", help="Base URL of the server; else MOORING_SERVER, else the last login.")


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 10_000
    return Console(
        stderr=stderr, no_color=bool(os.environ.get("NO_COLOR")) or not stream.isatty(), highlight=False, width=width, soft_wrap=True
    )


def say(text: str) -> None:
    """Talk to the person, on stderr."""
    _console(stderr=True).print(text, markup=False)


def data(text: str) -> None:
    """One line of data, on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def document(value: Any) -> None:
    """JSON, on stdout."""
    data(json.dumps(value, indent=2, ensure_ascii=False))


def line_of_json(value: Any) -> None:
    """One JSON document on one line: NDJSON."""
    data(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def table(columns: Sequence[tuple[str, Callable[[Any], Any]]], rows: Sequence[Any], *, empty: str) -> None:
    """A table on stdout: name and how to get the cell; `empty` is said on stderr when there is nothing."""
    if not rows:
        say(empty)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, _ in columns:
        made.add_column(name, no_wrap=True)
    for row in rows:
        made.add_row(*(text_of(cell(row)) for _, cell in columns))
    _console(stderr=False).print(made)


def facts(pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line, on stdout."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        data(f"{name:<{width}}  {text_of(value)}")


def text_of(value: Any) -> str:
    """A value for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text_of(item) for item in value) or "-"
    return str(value)


def moment(text: str | None) -> str:
    """An instant of the API in short: "2026-03-01 12:00:05"."""
    if not text:
        return "-"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def confirm(what: str, *, yes: bool, reason: str) -> None:
    """Nothing when the person agrees to what was said. Raises: InvalidError when --yes comes without --reason; typer.Abort."""
    if yes:
        if not reason:
            raise InvalidError("--yes needs --reason.", hint="The reason is kept in the audit log.")
        return
    say(what)
    if not sys.stdin.isatty():
        raise InvalidError("Nobody is there to ask.", hint="Use --yes --reason TEXT in programs.")
    typer.confirm("Go on?", abort=True, err=True)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; call what it gives with the bytes that were done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
