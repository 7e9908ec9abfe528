"""Points, lines and polygons in a frame: pure and exact, the same on both sides.

Coordinates are integers on a grid of `GRID` steps per frame side, x to the right, y down, so every test below is integer arithmetic
without rounding: what lies on a line lies on it everywhere.
"""

import itertools
from collections.abc import Sequence

#: Steps per side of the frame: a sixty-fourth of a pixel of a 16,384-pixel frame.
GRID = 1 << 20

Point = tuple[int, int]


def on_grid(x: float, y: float) -> Point:
    """The grid point nearest to frame coordinates 0..1; what lies outside the frame is moved to its edge."""
    return round(min(1.0, max(0.0, x)) * GRID), round(min(1.0, max(0.0, y)) * GRID)


def turn(a: Point, b: Point, c: Point) -> int:
    """Twice the signed area of the triangle: above 0 when c is on the right hand of who stands at a and looks to b, 0 when on the line."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def touch(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the segments a-b and c-d, ends included, share a point; a segment may be a single point."""
    first, second, third, fourth = turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)
    if _differ(first, second) and _differ(third, fourth):
        return True
    return (
        (first == 0 and _in_box(c, a, b))
        or (second == 0 and _in_box(d, a, b))
        or (third == 0 and _in_box(a, c, d))
        or (fourth == 0 and _in_box(b, c, d))
    )


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Whether the point lies in the polygon or on its border; the polygon is simple and closes itself."""
    inside = False
    y = point[1]
    before = polygon[-1]
    for corner in polygon:
        side = turn(before, corner, point)
        if side == 0 and _in_box(point, before, corner):
            return True
        # a ray to the right: an edge counts with its upper end, without its lower end
        if (before[1] > y) != (corner[1] > y) and (side > 0) == (corner[1] < before[1]):
            inside = not inside
        before = corner
    return inside


def crossing(start: Point, end: Point, line: Sequence[Point]) -> int:
    """How a straight movement crosses an open line of two or more points: 1 to its right hand, -1 to its left hand, 0 not, or back again.

    A point on the line counts as on its left hand. So a movement that ends on the line and goes on from there crosses once, whichever
    movement that is, one along the line never does, and one through a corner of the line crosses once.
    """
    total = 0
    for first, second in itertools.pairwise(line):
        was_right, is_right = turn(first, second, start) > 0, turn(first, second, end) > 0
        if was_right != is_right and (turn(start, end, first) > 0) != (turn(start, end, second) > 0):
            total += 1 if is_right else -1
    return (total > 0) - (total < 0)


def polygon_fault(points: Sequence[Point]) -> str:
    """Why the points are no simple polygon, in words; empty when they are one."""
    count = len(points)
    if count < 3:
        return f"{count} points; wanted at least 3"
    for index in range(count):
        a, b, c = points[index], points[(index + 1) % count], points[(index + 2) % count]
        if a == b:
            return f"points {index + 1} and {(index + 1) % count + 1} are the same"
        if turn(a, b, c) == 0 and (c[0] - b[0]) * (b[0] - a[0]) + (c[1] - b[1]) * (b[1] - a[1]) < 0:
            return f"its border goes back on itself at point {(index + 1) % count + 1}"
    for one in range(count):
        for other in range(one + 2, count):
            if (other + 1) % count != one and touch(points[one], points[one + 1], points[other], points[(other + 1) % count]):
                return f"its border crosses itself: the edge from point {one + 1} meets the edge from point {other + 1}"
    return ""


def line_fault(points: Sequence[Point]) -> str:
    """Why the points are no line, in words; empty when they are one."""
    if len(points) < 2:
        return f"{len(points)} points; wanted at least 2"
    same = next((index for index, (a, b) in enumerate(itertools.pairwise(points)) if a == b), None)
    return "" if same is None else f"points {same + 1} and {same + 2} are the same"


def _differ(one: int, other: int) -> bool:
    """Whether the signs are opposite."""
    return (one > 0 > other) or (one < 0 < other)


def _in_box(point: Point, a: Point, b: Point) -> bool:
    return min(a[0], b[0]) <= point[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= point[1] <= max(a[1], b[1])
