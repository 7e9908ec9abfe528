"""What is wrong with this device, and what to do about it."""

import argparse

from agent.commands.output import Out, answer
from agent.commands.settings import load


def show(options: argparse.Namespace) -> int:
    """Print what was found; returns 1 when something keeps the agent from its work."""
    from agent.doctor import examine

    found = examine(load(options).config)

    def show(out: Out) -> None:
        for check in found:
            out(f"{check.verdict.value:5} {check.name:12} {check.text}")
            if check.advice:
                out(f"      {'':12} -> {check.advice}")

    answer(options, [check.as_dict() for check in found], show)
    return 1 if any(check.is_failure for check in found) else 0
