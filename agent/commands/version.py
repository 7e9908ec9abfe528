"""The version of the installed distribution."""

import argparse

from agent.commands.output import answer


def version() -> str:
    """The version of the installed distribution; "0+source" when run from a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("mooring")
    except metadata.PackageNotFoundError:
        return "0+source"


def show(options: argparse.Namespace) -> int:
    """Print the version."""
    answer(options, {"version": version()}, lambda out: out(f"mooring-agent {version()}"))
    return 0
