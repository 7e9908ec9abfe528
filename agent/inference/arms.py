"""Which of two releases answers, by a hash that nobody can steer and everybody can recompute; pure.

Time is cut into blocks, and each block of each pipeline belongs to one of the two arms as a whole: what a camera sees in a minute depends
on itself, so single frames would be no fair draw.
"""

import hashlib

#: Seconds of one block, by the moments of capture.
BLOCK_S = 60
_SPAN = 2**64


def block_of(at_ms: int) -> int:
    """The number of the block that a moment, Unix milliseconds, lies in."""
    return at_ms // (BLOCK_S * 1000)


def is_candidates_turn(*, salt: str, device: str, pipeline: str, block: int, share: int) -> bool:
    """Whether the candidate answers in the block: in `share` percent of all blocks, in the long run."""
    drawn = hashlib.sha256(f"{salt}/{device}/{pipeline}/{block}".encode()).digest()
    return int.from_bytes(drawn[:8]) * 100 < share * _SPAN
