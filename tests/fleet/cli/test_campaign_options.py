"""What `mooring campaign create` says about comparing, before anybody is asked."""

import pytest

from fleet.cli.campaign import comparison_of
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
