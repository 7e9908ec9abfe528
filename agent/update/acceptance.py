"""What to do with an offered release, given what runs, what is on its way and what is refused; pure (UPDATES 4.5, R1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.slots import SlotContent
from agent.update.assignment import LineOffer
from agent.update.journal import Update
from agent.update.store import BlockedRow
from protocol.reasons import blocked_by


class Decision(StrEnum):
    """What follows from an offer."""

    #: Begin an update, after the open one if there is one.
    TAKE = "take"
    #: The line already runs it, committed.
    CURRENT = "current"
    #: The open update is this one.
    GOING_ON = "going_on"
    #: This very offer already ended, for better or worse; only a higher attempt or another assignment begins anew.
    ENDED = "ended"
    #: It may not be installed; the reason is reported.
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Judgment:
    """A decision; for REFUSE with a stable code and words. `lifts_block`: the attempt is above the blocked one."""

    decision: Decision
    code: str = ""
    text: str = ""
    lifts_block: bool = False


def judge_offer(
    offer: LineOffer, *, committed: SlotContent | None, last: Update | None, blocked: Sequence[BlockedRow], floor: int
) -> Judgment:
    """The judgment on the offer. `last` is the line's newest update, open or ended; `floor` the lowest counter still allowed."""
    if offer.counter < floor:
        text = f"{offer.release} has counter {offer.counter}; nothing below {floor} is installed on this line again."
        return Judgment(Decision.REFUSE, "old-release", text)
    block = next((row for row in blocked if (row.line, row.release) == (offer.line, offer.release)), None)
    if block is not None and offer.attempt <= block.attempt:
        return Judgment(Decision.REFUSE, "blocked", f"{blocked_by(block.reason)} {block.text}")
    same = last is not None and last.offer.content == offer.content
    if last is not None and last.is_open and same:
        return Judgment(Decision.GOING_ON)
    if committed == offer.content and not (last is not None and last.is_open):
        return Judgment(Decision.CURRENT)
    if last is not None and same and (last.offer.assignment, last.offer.attempt) == (offer.assignment, offer.attempt):
        return Judgment(Decision.ENDED)
    return Judgment(Decision.TAKE, lifts_block=block is not None)
