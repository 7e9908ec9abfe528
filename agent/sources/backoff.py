"""How long to wait before trying again: full jitter below a doubling ceiling."""

import random


def full_jitter_s(attempt: int, *, first_s: float, max_s: float) -> float:
    """Seconds to wait before attempt number `attempt` (0 = the first retry): uniform in [0, min(max_s, first_s * 2^attempt)]."""
    ceiling = min(max_s, first_s * 2.0 ** min(attempt, 60))
    return random.uniform(0.0, ceiling)  # noqa: S311 - spreads load, guards nothing
