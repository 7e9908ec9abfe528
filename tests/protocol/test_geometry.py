"""Points, lines and polygons: exact on whatever lies on a line, on a corner, or in one point."""

import itertools
import math
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.geometry import GRID, contains, crossing, line_fault, on_grid, polygon_fault, touch, turn

small = st.tuples(st.integers(0, 6), st.integers(0, 6))
SQUARE = ((0, 0), (4, 0), (4, 4), (0, 4))


def _interval(offset: int, slope: int, low: int, high: int) -> tuple[Fraction, Fraction] | None:
    """The t in [0, 1] with low <= offset + slope * t <= high."""
    if slope == 0:
        return (Fraction(0), Fraction(1)) if low <= offset <= high else None
    ends = sorted((Fraction(low - offset, slope), Fraction(high - offset, slope)))
    found = max(ends[0], Fraction(0)), min(ends[1], Fraction(1))
    return found if found[0] <= found[1] else None


def _touch_by_fractions(a, b, c, d) -> bool:
    """Walk t along c-d and ask where that is on the line through a and b, and between them."""
    along, move = (b[0] - a[0], b[1] - a[1]), (d[0] - c[0], d[1] - c[1])
    start = (c[0] - a[0], c[1] - a[1])
    if along == (0, 0):
        limits = [_interval(start[axis], move[axis], 0, 0) for axis in (0, 1)]
    else:
        cross = _interval(along[0] * start[1] - along[1] * start[0], along[0] * move[1] - along[1] * move[0], 0, 0)
        length = along[0] ** 2 + along[1] ** 2
        dot = _interval(along[0] * start[0] + along[1] * start[1], along[0] * move[0] + along[1] * move[1], 0, length)
        limits = [cross, dot]
    first, second = limits
    return first is not None and second is not None and max(first[0], second[0]) <= min(first[1], second[1])


@given(small, small, small, small)
def test_segments_touch_exactly_when_fractions_say_so(a, b, c, d):
    assert touch(a, b, c, d) == _touch_by_fractions(a, b, c, d)


def _around_their_middle(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points in the order in which somebody in their middle sees them: mostly a simple polygon, seldom a convex one."""
    x, y = (sum(point[axis] for point in points) / len(points) + 0.01 for axis in (0, 1))
    return sorted(points, key=lambda point: math.atan2(point[1] - y, point[0] - x))


@given(
    st.lists(small, min_size=3, max_size=7, unique=True).map(_around_their_middle).filter(lambda points: not polygon_fault(points)), small
)
def test_a_point_is_inside_when_a_way_out_crosses_the_border_an_odd_number_of_times(points, point):
    far = (1009, 2003)  # no way there leads through another point of this small grid
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    is_on_border = any(touch(point, point, a, b) for a, b in edges)
    assert contains(points, point) == (is_on_border or sum(touch(point, far, a, b) for a, b in edges) % 2 == 1)


def test_the_border_belongs_to_the_polygon_and_the_outside_does_not():
    assert all(contains(SQUARE, point) for point in [*SQUARE, (2, 0), (4, 2), (2, 2)])
    assert not any(contains(SQUARE, point) for point in [(5, 0), (5, 4), (2, 5), (-1, 2), (6, 2)])


@given(st.lists(small, min_size=1, max_size=12), st.sampled_from([((3, -99), (3, 99)), ((-99, -99), (99, 99)), ((99, 2), (-99, 3))]))
def test_a_walk_that_returns_crosses_a_line_through_the_frame_as_often_to_the_right_as_to_the_left(walk, line):
    closed = [*walk, walk[0]]
    total = 0
    for start, end in itertools.pairwise(closed):
        step = crossing(start, end, line)
        total += step
        assert total in {0, (1 if turn(*line, walk[0]) <= 0 else -1)}
        assert step == -crossing(end, start, line)
    assert total == 0


@given(small, small, small, small)
def test_a_stop_on_the_way_changes_no_crossing(start, end, a, b):
    assume(a != b)
    double = [(2 * x, 2 * y) for x, y in (start, end, a, b)]
    middle = (start[0] + end[0], start[1] + end[1])
    line = double[2:]
    assert crossing(double[0], double[1], line) == crossing(double[0], middle, line) + crossing(middle, double[1], line)


def test_directions_are_those_of_somebody_who_stands_on_the_line():
    upward = ((5, 10), (5, 0))  # y runs down: this one looks to the top of the picture
    assert (crossing((4, 5), (6, 5), upward), crossing((6, 5), (4, 5), upward)) == (1, -1)
    assert crossing((4, 11), (6, 11), upward) == 0  # around its end
    assert crossing((5, 9), (5, 1), upward) == 0  # along it


def test_a_way_through_a_corner_of_a_line_crosses_once():
    bent = ((0, 4), (4, 4), (8, 8))
    assert (crossing((4, 0), (4, 9), bent), crossing((4, 9), (4, 0), bent)) == (1, -1)


def test_shapes_that_are_none_are_told_why():
    assert polygon_fault(SQUARE) == ""
    assert "at least 3" in polygon_fault(SQUARE[:2])
    assert "points 1 and 2 are the same" in polygon_fault([(0, 0), (0, 0), (1, 1)])
    assert "back on itself at point 3" in polygon_fault([(0, 0), (1, 0), (4, 0), (2, 0)])
    assert "crosses itself" in polygon_fault([(0, 0), (4, 4), (4, 0), (0, 4)])
    assert "crosses itself" in polygon_fault([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)])  # a corner on another edge
    assert polygon_fault([(0, 0), (2, 0), (4, 0), (4, 4)]) == ""  # a corner that does not bend
    assert line_fault([(0, 0), (1, 1)]) == ""
    assert "at least 2" in line_fault([(0, 0)])
    assert "points 2 and 3 are the same" in line_fault([(0, 0), (1, 1), (1, 1)])


def test_coordinates_outside_the_frame_are_on_its_edge():
    assert on_grid(-0.5, 1.5) == (0, GRID)
    assert on_grid(0.5, 0.25) == (GRID // 2, GRID // 4)
