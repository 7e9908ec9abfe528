"""docs/cli.md: every command with its options, made from the commands themselves. `python -m fleet.cli.reference > docs/cli.md`."""

import sys
from collections.abc import Iterator
from typing import Any

import typer

from fleet.cli import app

HEAD = """# `mooring`: the command line

Made from the commands themselves by `python -m fleet.cli.reference`; a test fails when this page is old.

- Data goes to stdout, talk to stderr; `--json` prints the API's own keys; no color off a terminal or with `NO_COLOR`.
- Changes that matter say what they touch and ask; `--yes` skips the question and then needs `--reason`.
- Secrets come from standard input or a prompt, never from the command line.
- `mooring login` keeps an API token in `$XDG_CONFIG_HOME/mooring/login.json` (0600). `MOORING_SERVER` and `MOORING_TOKEN` win over it;
  `MOORING_CLI_CA` names the authority of a private certificate.
- It ends with 0 ok · 1 failed · 2 usage · 3 not found · 4 log in, or ask for the permission · 5 conflict · 6 unreachable, try again ·
  7 a gate failed · 130 interrupted.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_commands(typer.main.get_command(app), ("mooring",))]).rstrip() + "\n"


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield from _command(command, path)
        return
    if len(path) > 1:
        yield f"## {' '.join(path)}\n"
        yield f"{_sentence(command.help)}\n"
    for name in children:
        yield from _commands(children[name], (*path, name))


def _command(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    words = [*path, *(one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments)]
    yield f"{'##' if len(path) == 2 else '###'} `{' '.join(words)}`\n"
    yield f"{_sentence(command.help)}\n"
    rows = [(f"`{one.name.upper()}`", one.help or "") for one in arguments if one.help]
    rows += [(f"`{', '.join(one.opts)}`", (one.help or "") + _notes(one)) for one in options]
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| {left} | {right.replace('|', '&#124;')} |" for left, right in rows)
        yield ""


def _notes(option: Any) -> str:
    if option.required:
        return " Required."
    is_plain = isinstance(option.default, str | int | float) and not isinstance(option.default, bool) and option.default != ""
    return f" Default: {option.default}." if is_plain else ""


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.stdout.write(markdown())
