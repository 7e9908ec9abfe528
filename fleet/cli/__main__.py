"""python -m fleet.cli: the same as the command `mooring`."""

from fleet.cli import main

main()
