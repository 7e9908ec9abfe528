"""Consecutive stretches of a place where four classes pass by day and night, the last of them rarely."""

import numpy as np

#: Things in a stretch, and the parts of those that are there which four classes have: the last is rare.
THINGS = 300
PARTS = np.array([0.5, 0.3, 0.18, 0.02])
RARE, NOTHING = 3, 4


def place(n: int, seed: int, *, rare: float = 1.0, busy: float | None = None) -> np.ndarray:
    """Stretches of a place by day and night, float64[n, 2 + 5]: light, its square, shares of four classes and of nothing.

    By little light a tenth of class 0 is taken for the rare one. `rare`: how much more frequent it is; `busy`: instead of day and night.
    """
    rng = np.random.default_rng(seed)
    light = np.sin(2 * np.pi * np.arange(n) / 144) + 0.1 * rng.normal(size=n)
    there = np.clip(0.45 + 0.3 * light, 0.1, 0.9) if busy is None else np.full(n, busy)
    parts = np.tile(PARTS, (n, 1))
    mistaken = 0.1 * np.clip(-light, 0, 1) * parts[:, 0]
    parts[:, 0] -= mistaken
    parts[:, RARE] = parts[:, RARE] * rare + mistaken
    parts /= parts.sum(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(THINGS, [*(some * is_there), 1 - is_there]) for some, is_there in zip(parts, there, strict=True)])
    return np.column_stack([light, light**2, counts / THINGS])
