"""What the console advises covers what devices report."""

from agent.conditions import KINDS
from fleet.web.advice import ADVICE


def test_the_console_has_advice_for_every_condition_that_devices_declare():
    assert set(KINDS) == set(ADVICE)
    assert all(text.endswith(".") for text in ADVICE.values())
