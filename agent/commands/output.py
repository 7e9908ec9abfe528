"""How a command answers: JSON, or lines for people, on standard output."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

Out = Callable[[str], object]


def answer(options: argparse.Namespace, document: Any, show: Callable[[Out], object]) -> None:
    """Print the document as JSON when `--json` asks for it, else what `show` makes of it."""
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    else:
        show(lambda line: sys.stdout.write(line + "\n"))
