"""The arrows of the update machine, one by one, as the design draws them."""

import pytest

from agent.update.states import FINAL, TRANSITIONS, Outcome, UpdateState, can_abort, next_state

#: Drawn a second time on purpose: a bent arrow differs from this table.
ARROWS = """
idle          ok downloading
downloading   ok verifying     error failed        aborted failed        exhausted failed
verifying     ok installing    error failed        aborted failed        exhausted failed
installing    ok waiting       aside succeeded     error failed        aborted failed        exhausted failed
waiting       ok activating    error failed        aborted failed        exhausted failed
activating    ok probing       error rolling_back  aborted rolling_back  exhausted rolling_back
probing       ok committing    error rolling_back  aborted rolling_back  exhausted rolling_back
committing    ok succeeded     error rolling_back                        exhausted rolling_back
rolling_back  ok rolled_back   error inconsistent                        exhausted inconsistent
"""


def _drawn() -> dict[tuple[str, str], str]:
    rows = [line.split() for line in ARROWS.strip().splitlines()]
    return {(row[0], row[i]): row[i + 1] for row in rows for i in range(1, len(row), 2)}


def test_every_arrow_is_as_drawn_and_no_other_exists():
    found = {(state.value, outcome.value): to.value for state, row in TRANSITIONS.items() for outcome, to in row.items()}
    assert found == _drawn()


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("state", UpdateState)
def test_a_missing_arrow_raises(state, outcome):
    drawn = _drawn().get((state.value, outcome.value))
    if drawn is None:
        with pytest.raises(LookupError, match=state.value):
            next_state(state, outcome)
    else:
        assert next_state(state, outcome).value == drawn


def test_final_states_have_no_arrow_and_all_others_have():
    assert {state for state in UpdateState if state not in TRANSITIONS} == FINAL


def test_an_abort_changes_nothing_from_committing_on():
    assert {state for state in UpdateState if can_abort(state)} == {
        UpdateState.DOWNLOADING,
        UpdateState.VERIFYING,
        UpdateState.INSTALLING,
        UpdateState.WAITING,
        UpdateState.ACTIVATING,
        UpdateState.PROBING,
    }


def test_the_values_that_are_stored_and_sent_are_never_renamed():
    assert [state.value for state in UpdateState] == [
        "idle",
        "downloading",
        "verifying",
        "installing",
        "waiting",
        "activating",
        "probing",
        "committing",
        "rolling_back",
        "succeeded",
        "failed",
        "rolled_back",
        "inconsistent",
    ]
