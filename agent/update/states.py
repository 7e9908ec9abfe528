"""States, outcomes and every arrow of the update machine (one literal table); pure. Values are stored and sent, never renamed."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class UpdateState(StrEnum):
    """Where one update of one line stands. The row with this value is durable before the state's step acts."""

    #: The assignment was accepted: trust, counters, compatibility and blocklist allow it.
    IDLE = "idle"
    #: Its files come into the download folder.
    DOWNLOADING = "downloading"
    #: The manifest fits, the disk has room; touches nothing.
    VERIFYING = "verifying"
    #: The inactive slot is written, hashed, synced, and tested in a child process.
    INSTALLING = "installing"
    #: Until the window is open and consent is given.
    WAITING = "waiting"
    #: The pointer and the inference process go over to the new slot.
    ACTIVATING = "activating"
    #: The new model works under watch.
    PROBING = "probing"
    #: The new slot becomes the one that a restart comes back to.
    COMMITTING = "committing"
    #: Back to the slot that was committed when the update began.
    ROLLING_BACK = "rolling_back"
    #: The new release is active and committed; a candidate is installed beside the active one.
    SUCCEEDED = "succeeded"
    #: Nothing was activated; the old release never stopped.
    FAILED = "failed"
    #: The old release runs again.
    ROLLED_BACK = "rolled_back"
    #: The way back failed too; whatever slot passes its tests runs.
    INCONSISTENT = "inconsistent"


class Outcome(StrEnum):
    """How a step ended."""

    #: The effect is there.
    OK = "ok"
    #: It is installed beside what runs, and that is all that is to be done.
    ASIDE = "aside"
    #: The effect could not be had; reason and text are in the row.
    ERROR = "error"
    #: Withdrawn by the server or a person.
    ABORTED = "aborted"
    #: The loop bound was reached.
    EXHAUSTED = "exhausted"


_S, _O = UpdateState, Outcome

#: Every arrow. A pair that is not here does not exist.
TRANSITIONS: Mapping[UpdateState, Mapping[Outcome, UpdateState]] = MappingProxyType(
    {
        _S.IDLE: {_O.OK: _S.DOWNLOADING},
        _S.DOWNLOADING: {_O.OK: _S.VERIFYING, _O.ERROR: _S.FAILED, _O.ABORTED: _S.FAILED, _O.EXHAUSTED: _S.FAILED},
        _S.VERIFYING: {_O.OK: _S.INSTALLING, _O.ERROR: _S.FAILED, _O.ABORTED: _S.FAILED, _O.EXHAUSTED: _S.FAILED},
        _S.INSTALLING: {_O.OK: _S.WAITING, _O.ASIDE: _S.SUCCEEDED, _O.ERROR: _S.FAILED, _O.ABORTED: _S.FAILED, _O.EXHAUSTED: _S.FAILED},
        _S.WAITING: {_O.OK: _S.ACTIVATING, _O.ERROR: _S.FAILED, _O.ABORTED: _S.FAILED, _O.EXHAUSTED: _S.FAILED},
        _S.ACTIVATING: {_O.OK: _S.PROBING, _O.ERROR: _S.ROLLING_BACK, _O.ABORTED: _S.ROLLING_BACK, _O.EXHAUSTED: _S.ROLLING_BACK},
        _S.PROBING: {_O.OK: _S.COMMITTING, _O.ERROR: _S.ROLLING_BACK, _O.ABORTED: _S.ROLLING_BACK, _O.EXHAUSTED: _S.ROLLING_BACK},
        _S.COMMITTING: {_O.OK: _S.SUCCEEDED, _O.ERROR: _S.ROLLING_BACK, _O.EXHAUSTED: _S.ROLLING_BACK},
        _S.ROLLING_BACK: {_O.OK: _S.ROLLED_BACK, _O.ERROR: _S.INCONSISTENT, _O.EXHAUSTED: _S.INCONSISTENT},
    }
)

#: States in which nothing more happens.
FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.ROLLED_BACK, _S.INCONSISTENT})


def next_state(state: UpdateState, outcome: Outcome) -> UpdateState:
    """The state that the arrow leads to. Raises: LookupError when there is no such arrow."""
    try:
        return TRANSITIONS[state][outcome]
    except KeyError:
        raise LookupError(f"No arrow leaves {state.value!r} for outcome {outcome.value!r}.") from None


def can_abort(state: UpdateState) -> bool:
    """Whether an abort still changes the way; from `committing` on it is ignored and reported."""
    return Outcome.ABORTED in TRANSITIONS.get(state, {})
