"""Tracking ids: which box of this frame is the object of which box before. Pure, deterministic, bounded.

ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022, arXiv:2110.06864): boxes with
a high score are matched with all tracks by overlap, those with a low score only with tracks that were seen last time; what is left of
the high ones begins tracks, which are believed when they are seen twice. Where a track will be is foretold by the Kalman filter of SORT
and DeepSORT (Bewley et al., arXiv:1602.00763; Wojke et al., arXiv:1703.07402): center, aspect and height at a constant speed. Its
matrices are block diagonal, so the four are filtered each by itself, which gives the same numbers.

Otherwise than there: only boxes of one label are matched; time is measured, since a device infers as it can; many boxes in one heap are
matched greedily, so that no frame takes long.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.inference.messages import Box

#: Tracks of one pipeline; beyond them no object gets an id until one is given up.
MAX_TRACKS = 256
#: A track that is not seen is kept for this many frames (the paper's buffer) and never longer than this many seconds.
MAX_MISSED, MAX_AGE_S = 30, 10.0
#: A score at or above it may begin a track, unless the pipeline's `min_score` says otherwise (the paper's tau).
HIGH_SCORE = 0.5
#: Least overlap, intersection over union: of a high box, of a low one, and of a track that was seen only once.
HIGH_IOU, LOW_IOU, NEW_IOU = 0.2, 0.5, 0.3
#: Rows and columns up to which boxes and tracks that overlap are matched at the least cost; larger heaps greedily.
EXACT_SIZE = 16
#: Frames per second for which the papers chose their noise; and the longest time that is foretold at once, in such frames.
_PAPER_FPS, _MAX_STEPS = 30.0, 60.0
#: Standard deviations as shares of the height: of a place, and of a speed per frame (DeepSORT).
_PLACE, _SPEED = 1 / 20, 1 / 160
#: The same of the aspect, which has no size.
_ASPECT_FIRST, _ASPECT, _ASPECT_SPEED, _ASPECT_SEEN = 1e-2, 1e-2, 1e-5, 1e-1

_Corners = tuple[float, float, float, float]


class _Filter:
    """One number at a constant speed: its Kalman filter with two states."""

    __slots__ = ("pp", "pv", "speed", "value", "vv")

    def __init__(self, value: float, place: float, speed: float) -> None:
        self.value, self.speed = value, 0.0
        self.pp, self.pv, self.vv = place * place, 0.0, speed * speed

    def predict(self, steps: float, place: float, speed: float) -> None:
        self.value += steps * self.speed
        self.pp += steps * (2 * self.pv + steps * self.vv) + steps * place * place
        self.pv += steps * self.vv
        self.vv += steps * speed * speed

    def correct(self, seen: float, deviation: float) -> None:
        gain_p, gain_v = self.pp / (self.pp + deviation * deviation), self.pv / (self.pp + deviation * deviation)
        difference = seen - self.value
        self.value += gain_p * difference
        self.speed += gain_v * difference
        self.vv -= gain_v * self.pv
        self.pv -= gain_p * self.pv
        self.pp -= gain_p * self.pp


class _Track:
    """One object that is followed."""

    __slots__ = ("aspect", "at_s", "believed", "height", "index", "missed", "number", "x", "y")

    def __init__(self, number: int, box: Box, at_s: float, *, believed: bool) -> None:
        x, y, aspect, height = _measured(box)
        self.number, self.index, self.at_s, self.missed, self.believed = number, box.index, at_s, 0, believed
        self.x = _Filter(x, 2 * _PLACE * height, 10 * _SPEED * height)
        self.y = _Filter(y, 2 * _PLACE * height, 10 * _SPEED * height)
        self.aspect = _Filter(aspect, _ASPECT_FIRST, _ASPECT_SPEED)
        self.height = _Filter(height, 2 * _PLACE * height, 10 * _SPEED * height)

    def predict(self, steps: float) -> None:
        height = abs(self.height.value)
        if self.missed:  # what is not seen does not grow or shrink on and on (SORT's code)
            self.height.speed = 0.0
        self.x.predict(steps, _PLACE * height, _SPEED * height)
        self.y.predict(steps, _PLACE * height, _SPEED * height)
        self.aspect.predict(steps, _ASPECT, _ASPECT_SPEED)
        self.height.predict(steps, _PLACE * height, _SPEED * height)

    def correct(self, box: Box, at_s: float) -> None:
        x, y, aspect, height = _measured(box)
        deviation = _PLACE * abs(self.height.value)
        self.x.correct(x, deviation)
        self.y.correct(y, deviation)
        self.aspect.correct(aspect, _ASPECT_SEEN)
        self.height.correct(height, deviation)
        self.at_s, self.missed, self.believed = at_s, 0, True

    def corners(self) -> _Corners:
        half_h = max(0.0, self.height.value) / 2
        half_w = max(0.0, self.aspect.value) * half_h
        return self.x.value - half_w, self.y.value - half_h, self.x.value + half_w, self.y.value + half_h


@dataclass(frozen=True, slots=True)
class Pair:
    """A track and a box that overlap, by their places in the lists that are matched."""

    track: int
    box: int
    cost: float


class Tracker:
    """The tracking ids of one pipeline; called by one thread."""

    def __init__(self, *, high_score: float | None = None) -> None:
        """`high_score`: a score at or above it may begin a track; None: `HIGH_SCORE`."""
        self._high_score = HIGH_SCORE if high_score is None else high_score
        self._numbers = itertools.count(1)
        self._tracks: list[_Track] = []
        self._session: int | None = None
        self._at_s = 0.0

    def update(self, boxes: Sequence[Box], *, session: int, at_s: float) -> tuple[Box, ...]:
        """The boxes in their order, those of followed objects with their id; an id is given once in the life of the tracker.

        `at_s`: when the frame was captured, seconds of any clock that runs evenly. Another `session` begins with no tracks.
        """
        is_first = session != self._session
        if is_first:
            self._tracks, self._session, self._at_s = [], session, at_s
        elapsed_s, self._at_s = max(0.0, at_s - self._at_s), max(at_s, self._at_s)
        steps = min(_MAX_STEPS, elapsed_s * _PAPER_FPS)
        for track in self._tracks:
            track.predict(steps)
        numbers: dict[int, int] = {}
        high = [place for place, box in enumerate(boxes) if box.score >= self._high_score]
        low = [place for place, box in enumerate(boxes) if box.score < self._high_score]
        believed = [track for track in self._tracks if track.believed]
        unsure = [track for track in self._tracks if not track.believed]
        believed, high = self._match(believed, high, boxes, numbers, least=HIGH_IOU)
        just_seen = [track for track in believed if track.missed == 0]
        unseen, _ = self._match(just_seen, low, boxes, numbers, least=LOW_IOU)
        unseen += [track for track in believed if track.missed > 0]
        gone, high = self._match(unsure, high, boxes, numbers, least=NEW_IOU)
        for track in unseen:
            track.missed += 1
        given_up = {id(track) for track in gone} | {
            id(track) for track in unseen if track.missed > MAX_MISSED or self._at_s - track.at_s > MAX_AGE_S
        }
        self._tracks = [track for track in self._tracks if id(track) not in given_up]
        for place in high[: MAX_TRACKS - len(self._tracks)]:
            track = _Track(next(self._numbers), boxes[place], self._at_s, believed=is_first)
            self._tracks.append(track)
            if is_first:
                numbers[place] = track.number
        return tuple(replace(box, track=numbers[place]) if place in numbers else box for place, box in enumerate(boxes))

    def _match(
        self,
        tracks: list[_Track],
        places: list[int],
        boxes: Sequence[Box],
        numbers: dict[int, int],
        *,
        least: float,
    ) -> tuple[list[_Track], list[int]]:
        """Give the boxes at these places the numbers of the tracks they belong to; returns the tracks and places that are left."""
        corners = [track.corners() for track in tracks]
        pairs = []
        for column, place in enumerate(places):
            box = boxes[place]
            for row, track in enumerate(tracks):
                overlap = _iou(corners[row], box) if track.index == box.index else 0.0
                if overlap >= least:
                    pairs.append(Pair(row, column, 1.0 - overlap))
        matched = assign(pairs)
        for row, column in matched:
            tracks[row].correct(boxes[places[column]], self._at_s)
            numbers[places[column]] = tracks[row].number
        rows, columns = {row for row, _ in matched}, {column for _, column in matched}
        return (
            [track for row, track in enumerate(tracks) if row not in rows],
            [place for column, place in enumerate(places) if column not in columns],
        )


def assign(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """As many (track, box) as possible at the least total cost, each once; in heaps beyond `EXACT_SIZE` the cheapest first."""
    found: list[tuple[int, int]] = []
    for heap in _heaps(pairs):
        rows, columns = sorted({pair.track for pair in heap}), sorted({pair.box for pair in heap})
        if len(heap) == 1:
            found.append((heap[0].track, heap[0].box))
        elif len(rows) > EXACT_SIZE or len(columns) > EXACT_SIZE:
            found += _greedily(heap)
        else:
            found += _exactly(heap, rows, columns)
    return found


def _heaps(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in groups that share no track and no box: each is matched by itself."""
    above: dict[tuple[str, int], tuple[str, int]] = {}

    def top(node: tuple[str, int]) -> tuple[str, int]:
        while (higher := above.setdefault(node, node)) != node:
            above[node] = node = above.setdefault(higher, higher)
        return node

    for pair in pairs:
        above[top(("box", pair.box))] = top(("track", pair.track))
    groups: dict[tuple[str, int], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(top(("track", pair.track)), []).append(pair)
    return list(groups.values())


def _greedily(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    rows, columns = set[int](), set[int]()
    found = []
    for pair in sorted(pairs, key=lambda pair: (pair.cost, pair.track, pair.box)):
        if pair.track not in rows and pair.box not in columns:
            rows.add(pair.track)
            columns.add(pair.box)
            found.append((pair.track, pair.box))
    return found


def _exactly(pairs: Sequence[Pair], rows: list[int], columns: list[int]) -> list[tuple[int, int]]:
    """The Hungarian method with potentials (Kuhn 1955; shortest augmenting paths): rows are given columns one after another."""
    known = {(pair.track, pair.box): pair.cost for pair in pairs}
    never = float(len(rows) + len(columns) + 1)  # dearer than any way without it
    size = max(len(rows), len(columns))
    cost = [
        [known.get((rows[r], columns[c]), never) if r < len(rows) and c < len(columns) else never for c in range(size)] for r in range(size)
    ]
    row_price, column_price = [0.0] * (size + 1), [0.0] * (size + 1)
    owner, before = [0] * (size + 1), [0] * (size + 1)
    for row in range(1, size + 1):
        owner[0], column = row, 0
        least, is_used = [float("inf")] * (size + 1), [False] * (size + 1)
        while owner[column]:
            is_used[column] = True
            current, delta, following = owner[column], float("inf"), 0
            for other in range(1, size + 1):
                if is_used[other]:
                    continue
                reduced = cost[current - 1][other - 1] - row_price[current] - column_price[other]
                if reduced < least[other]:
                    least[other], before[other] = reduced, column
                if least[other] < delta:
                    delta, following = least[other], other
            for other in range(size + 1):
                if is_used[other]:
                    row_price[owner[other]] += delta
                    column_price[other] -= delta
                else:
                    least[other] -= delta
            column = following
        while column:
            owner[column] = owner[before[column]]
            column = before[column]
    matched = ((rows[owner[c + 1] - 1], columns[c]) for c in range(len(columns)) if owner[c + 1] <= len(rows))
    return sorted(pair for pair in matched if pair in known)


def _measured(box: Box) -> tuple[float, float, float, float]:
    """Center, aspect and height as the filter knows them; a box without size gets a tiny one."""
    height = max(box.y1 - box.y0, 1e-6)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, (box.x1 - box.x0) / height, height


def _iou(corners: _Corners, box: Box) -> float:
    width = min(corners[2], box.x1) - max(corners[0], box.x0)
    if width <= 0:
        return 0.0
    height = min(corners[3], box.y1) - max(corners[1], box.y0)
    if height <= 0:
        return 0.0
    both = width * height
    either = (corners[2] - corners[0]) * (corners[3] - corners[1]) + (box.x1 - box.x0) * (box.y1 - box.y0) - both
    return both / either if either > 0 else 0.0
