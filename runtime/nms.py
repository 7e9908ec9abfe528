"""Non-maximum suppression: of boxes that overlap, the best one stays. Vectorized over the boxes, bounded by what is kept."""

import numpy as np

from runtime.base import Array


def suppress(boxes: Array, scores: Array, classes: Array | None, *, overlap: float, limit: int) -> Array:
    """Indices of the boxes that stay, best first, at most `limit`; of equal scores the first comes first.

    `boxes` is float32 [N, 4] as x0, y0, x1, y1; `scores` [N]. A box goes when its intersection over union with a better one that stays
    is above `overlap`; with `classes` [N] only boxes of one class compete.
    """
    left = np.argsort(-scores, kind="stable")
    boxes = np.ascontiguousarray(boxes[left].T)
    x0, y0, x1, y1 = boxes
    areas = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
    ordered = None if classes is None else classes[left]
    is_left = np.ones(left.size, np.bool_)
    kept: list[int] = []
    place = 0
    while len(kept) < limit:
        ahead = is_left[place:]
        step = int(ahead.argmax()) if ahead.size else 0
        if not ahead.size or not ahead[step]:
            break
        best = place + step
        kept.append(best)
        place = best + 1
        rest = slice(place, None)
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        # not a division: boxes without an area overlap nothing
        competes = shared > overlap * (areas[best] + areas[rest] - shared)
        if ordered is not None:
            competes &= ordered[rest] == ordered[best]
        is_left[rest] &= ~competes
    return np.asarray(left[np.asarray(kept, np.intp)])


def intersection_over_union(one: Array, other: Array) -> Array:
    """[N, M]: intersection over union of every box of [N, 4] with every one of [M, 4], as x0, y0, x1, y1; 0 for boxes without an area."""
    one, other = np.asarray(one, np.float64).reshape(-1, 1, 4), np.asarray(other, np.float64).reshape(1, -1, 4)
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
