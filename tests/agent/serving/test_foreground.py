"""What `mooring-agent serve` tells who started it."""

from pathlib import Path

from agent.commands.running import served
from agent.serving.figures import Totals
from agent.serving.messages import Beat

ADDRESS, SLOTS = "127.0.0.1:8000", Path("/var/lib/mooring/agent/slots")


def totals(line: str, release: str, text: str = "") -> Totals:
    return Totals(line, release, text, "", 0, 0, 0, ())


def test_each_line_is_told_with_its_address_or_with_why_not():
    beat = Beat((totals("person", "1.0"), totals("car", "", "The line car has no active release.")), 0.0, ADDRESS)
    assert served(beat, SLOTS) == ["car: The line car has no active release.", "person: release 1.0 is served on 127.0.0.1:8000"]


def test_a_device_without_a_line_is_told_where_lines_were_looked_for():
    [text] = served(Beat((), 0.0, ADDRESS), SLOTS)
    assert text.startswith(f"Nothing to serve on {ADDRESS}: no line in {SLOTS} has an active release")
