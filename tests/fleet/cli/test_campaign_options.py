"""What `mooring campaign create` says about comparing, before anybody is asked, and what `show` says of it."""

import pytest

from fleet.cli.campaign import compared_columns, comparison_of
from protocol.errors import InvalidError

NOTHING = {"share": None, "cpu": None, "until": None}


def test_a_campaign_that_brings_a_release_to_run_says_nothing_of_comparing():
    assert comparison_of("active", **NOTHING) == {}


def test_what_is_given_goes_to_the_server_as_it_is():
    given = {**NOTHING, "cpu": 0.1, "until": "2026-12-24T18:00Z"}
    assert comparison_of("shadow", **given) == {"as": "shadow", "cpu": 0.1, "until": "2026-12-24T18:00Z"}
    assert comparison_of("ab", **{**NOTHING, "share": 0.5}) == {"as": "ab", "share": 0.5}


@pytest.mark.parametrize(
    ("run_as", "given"),
    [
        ("canary", {}),
        ("active", {"cpu": 0.1}),
        ("active", {"until": "2026-12-24T18:00Z"}),
        ("shadow", {"share": 0.5}),
        ("ab", {}),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_wanted(run_as, given):
    with pytest.raises(InvalidError) as caught:
        comparison_of(run_as, **{**NOTHING, **given})
    assert caught.value.hint


def test_of_a_candidate_in_turns_is_shown_what_each_of_the_two_answered():
    figures = {
        "candidate": {"frames": 200, "labels": {"person": 90, "empty": 110}},
        "champion": {"frames": 100, "labels": {}},
    }
    row = {"device": "cam-1", "pipeline": "door", "champion": "1.0", "state": "running", "latency_ratio": 0.91, "text": ""}
    shown = [(name, take(row | {"figures": figures})) for name, take in compared_columns("ab")]
    assert shown[4:] == [
        ("ANSWERED", 200),
        ("WITH", "empty 55%, person 45%"),
        ("OTHER", 100),
        ("WITH", ""),
        ("LATENCY", "0.91x"),
        ("TEXT", ""),
    ]
    assert "COMPARED" in dict(compared_columns("shadow"))
