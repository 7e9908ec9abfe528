"""Which windows go to the server, and when: an hour as one message, at a minute of the device's own (DRIFT 3). Pure.

Windows of a device never overlap. So what was handed to the uplink once is never merged, and only windows that touch are.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from agent.drift.store import Subject, SubWindowRow
from agent.store import SketchDraft
from protocol.sketches.codec import (
    SUBWINDOW_MS,
    SUBWINDOW_S,
    SUBWINDOWS_PER_HOUR,
    SketchWindow,
    decode,
    encode,
    merged,
    read_head,
    window_id,
)
from protocol.sketches.grid import Grid
from protocol.sketches.reference import DeviceReference
from protocol.sketches.summary import summary

HOUR_S = SUBWINDOW_S * SUBWINDOWS_PER_HOUR
#: What windows may grow to when the disk budget is full: 6 hours, then a day; in sub-windows.
COARSER = (36, 144)
#: Evidence spans one sub-window; it is never merged.
EVIDENCE = 1

GridOf = Callable[[str], Grid | None]


def minute_of(device: str) -> int:
    """The minute, 0 to 59, at which this device sends its hours: a fleet's messages are spread."""
    return hashlib.sha256(device.encode()).digest()[0] * 60 // 256


def due_hours(rows: Sequence[SubWindowRow], *, now_s: float, minute: int) -> list[list[SubWindowRow]]:
    """The sub-windows of each subject and hour that is over and whose minute has come, oldest first."""
    hours: dict[tuple[int, Subject], list[SubWindowRow]] = {}
    for row in rows:
        hour = row.w0 // SUBWINDOWS_PER_HOUR
        if (hour + 1) * HOUR_S + minute * 60 <= now_s:
            hours.setdefault((hour, row.subject), []).append(row)
    return [hours[key] for key in sorted(hours)]


def hour_draft(rows: Sequence[SubWindowRow], grid: Grid) -> SketchDraft:
    """The message of one subject's hour: all of it, but for what lies before its grid was made. Raises: InvalidError for an unreadable row.

    It never spans one sub-window alone: that would be evidence, which is not summed.
    """
    window = merged([decode(row.body, grid) for row in rows], grid)
    hour = window.w0 // SUBWINDOWS_PER_HOUR * SUBWINDOWS_PER_HOUR
    end = hour + SUBWINDOWS_PER_HOUR
    first = min(window.w0, max(hour, grid.made_at_ms // SUBWINDOW_MS), end - 2)
    return draft_of(spread(window, w0=first, nsub=end - first))


def evidence_draft(row: SubWindowRow, grid: Grid, reference: DeviceReference) -> SketchDraft:
    """The message of one sub-window that is sent at once, with its score by the reference that crossed. Raises: InvalidError."""
    window = decode(row.body, grid)
    scores = reference.scores(summary(window.counts, grid)[None])
    return draft_of(replace(window, scores=scores, reference_id=reference.reference_id))


def draft_of(window: SketchWindow) -> SketchDraft:
    """The window as a row of the outbox."""
    return SketchDraft(window.pipeline, window_id(window.w0, window.nsub), int(window.src), lambda rev: encode(replace(window, rev=rev)))


def spread(window: SketchWindow, *, w0: int, nsub: int) -> SketchWindow:
    """The same counts in a longer window around it."""
    at, scores = window.w0 - w0, np.full(nsub, np.nan, np.float32)
    scores[at : at + window.nsub] = window.scores
    return replace(window, w0=w0, nsub=nsub, mask=window.mask << at, scores=scores)


def merge_unsent(bodies: Sequence[bytes], grid_of: GridOf) -> tuple[tuple[int, ...], SketchDraft] | None:
    """The oldest windows that touch inside 6 hours, else inside a day, and the one that stands for them; None: there are none."""
    heads = [read_head(body) for body in bodies]
    for span in COARSER:
        runs: dict[tuple[str, bytes, bytes, int, int], list[int]] = {}
        for place in sorted(range(len(heads)), key=lambda place: heads[place].w0):
            head = heads[place]
            if head.nsub == EVIDENCE or head.w0 // span != (head.w0 + head.nsub - 1) // span:
                continue
            run = runs.setdefault((head.pipeline, head.model, head.grid_id, int(head.src), head.w0 // span), [])
            last = heads[run[-1]] if run else None
            if last is not None and last.w0 + last.nsub != head.w0:
                if len(run) > 1:
                    continue
                run.clear()
            run.append(place)
        for (_, _, grid_id, _, _), run in sorted(runs.items(), key=lambda item: heads[item[1][0]].w0):
            grid = grid_of(grid_id.hex()) if len(run) > 1 else None
            if grid is not None:
                return tuple(run), draft_of(merged([decode(bodies[place], grid) for place in run], grid))
    return None
