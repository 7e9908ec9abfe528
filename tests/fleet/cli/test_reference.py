"""The page about the commands is made from the commands."""

from pathlib import Path

from fleet.cli.reference import markdown

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say_today():
    assert PAGE.read_text() == markdown(), "old: python -m fleet.cli.reference > docs/cli.md"


def test_every_command_is_named_with_its_options():
    text = markdown()
    for command in (
        "mooring serve",
        "mooring device invite",
        "mooring release sign LINE VERSION",
        "mooring audit verify",
        "mooring keys status",
    ):
        assert f"`{command}`" in text, command
    assert "`--demo-keys`" in text
    assert "`--yes, -y`" in text
