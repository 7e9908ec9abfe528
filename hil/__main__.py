"""`python -m hil --board NAME`: run the suite against a board of boards.toml; exits 0 only when every check held."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from examples.demo.tools import ToolMissingError, find_mosquitto
from examples.demo.world import World
from hil.board import Board, BoardEntry, BoardError, load_entry
from hil.process import ProcessBoard
from hil.ssh import SshBoard
from hil.suite import Suite, table
from protocol.errors import MooringError

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit status: 0 all held, 1 something did not, 2 the suite cannot run."""
    options = _parser().parse_args(arguments)
    try:
        entry = load_entry(HERE / "boards.toml", options.board)
        mosquitto = find_mosquitto(HERE.parent / ".tools")
        with ExitStack() as stack:
            # a short path: Unix sockets have room for 107 characters
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hil-", ignore_cleanup_errors=True)))
            world = stack.enter_context(World(root / "w", environment={"MOORING_BROKER__MOSQUITTO": str(mosquitto)}))
            world.start_server()
            world.admit_people()
            board = open_board(entry, root / "b")
            stack.callback(board.close)
            outcomes = Suite(board, world, entry.device_type, root).run(options.check)
    except (MooringError, BoardError, ToolMissingError, RuntimeError) as error:
        print(f"hil: {error}", file=sys.stderr)
        return 2
    print(json.dumps([asdict(one) for one in outcomes], indent=1) if options.json else table(outcomes))
    for one in outcomes:
        if not one.held:
            print(f"\n{one.check}: {one.seen}", file=sys.stderr)
    return 0 if outcomes and all(one.held for one in outcomes) else 1


def open_board(entry: BoardEntry, folder: Path) -> Board:
    """The board of an entry; `folder` is for the files of a local one."""
    return SshBoard(entry) if entry.kind == "ssh" else ProcessBoard(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hil", description="Hardware in the loop.")
    parser.add_argument("--board", default="local", help="a name of hil/boards.toml")
    parser.add_argument("--check", action="append", default=[], help="only this one and what it needs: boot, update, power-cut, throughput")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
