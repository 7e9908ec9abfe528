"""Drift and its alarms as pages show them: put into words and figures. Pure; values in, rows out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fleet.monitoring.drift_claims import Claim
from fleet.monitoring.drift_model import (
    HOUR,
    AccuracyRange,
    Alarm,
    AlarmState,
    Distribution,
    FalseAlarms,
    Grade,
    OverviewRow,
    ReferenceSource,
    SubjectKind,
    TimePoint,
    Trust,
)
from fleet.monitoring.drift_tables import Waiting
from fleet.web.charts import Bar, Chart, Line, Mark, bars_of, number, probability

SUB_WINDOW = timedelta(minutes=10)
#: False alarms per device-year that the what-if table always shows.
RATES = (0.2, 0.5, 1.0, 2.0, 5.0)
#: Steps of the slider: rates from 0.1 to 10, even in their logarithm.
SLIDER_STEPS = 20
#: How far before the onset the time line of an alarm begins.
BEFORE = timedelta(days=2)
#: Lines about what was put aside.
WAITING_SHOWN = 10
#: Distributions on a page that asked for no feature.
DISTRIBUTIONS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the heat map."""

    text: str
    #: 0 (as the reference) to 4; the color repeats what the text says.
    heat: int
    title: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One pipeline of a device in the heat map."""

    device: str
    pipeline: str
    grade: str
    state: str
    alarm: str
    score: str
    p: str
    evidence: str
    is_listed: bool
    cells: tuple[Cell, ...]
    conditions: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Device by feature, as a table."""

    features: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    learning: int
    #: What was put aside, one line each.
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DistributionView:
    """One feature, reference against now."""

    feature: str
    bars: tuple[Bar, ...]
    rows: int
    psi: str
    js: str
    w1: str
    reference_of: str


@dataclass(frozen=True, slots=True)
class AccuracyView:
    """The accuracy range with its flag, and what was measured."""

    low: str
    high: str
    trust: str
    #: good, warn, or empty for gray.
    kind: str
    words: str
    reason: str
    estimates: tuple[tuple[str, str], ...]
    measured: tuple[tuple[str, str, str, int], ...]
    rows: int


@dataclass(frozen=True, slots=True)
class WhatIf:
    """When an alarm would have come at another rate of false alarms."""

    rate: float
    #: None: not within what is stored.
    delay: timedelta | None

    @property
    def words(self) -> str:
        """The delay for people."""
        return "not within what is stored" if self.delay is None else duration(self.delay)


@dataclass(frozen=True, slots=True)
class WhatIfView:
    """The what-if table, and the rate that somebody asked for."""

    rows: tuple[WhatIf, ...]
    asked: WhatIf | None
    #: Position of the slider.
    step: int
    windows: int


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """One alarm in a list."""

    id: str
    place: str
    place_url: str
    state: str
    cause: str
    grade: str
    words: str
    onset: datetime
    raised_at: datetime
    outcome: str
    devices: int
    reopened: int
    muted_until: datetime | None
    acknowledged_by: str


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One feature that an alarm names."""

    feature: str
    group: str
    word: str
    share: str
    p: str
    place: str
    spread: str
    psi: str
    js: str
    w1: str


@dataclass(frozen=True, slots=True)
class AlarmPage:
    """One alarm with what it means."""

    row: AlarmRow
    features: tuple[FeatureRow, ...]
    #: (question, answer), in plain words.
    explanation: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    devices: tuple[str, ...]
    note: str
    link: str
    parent: str
    revision: int
    is_open: bool
    can_acknowledge: bool
    what_if: WhatIfView | None = None
    timeline: Chart | None = None


@dataclass(frozen=True, slots=True)
class AlarmsView:
    """Alarms, and what is said aloud when they change."""

    rows: tuple[AlarmRow, ...]
    shown: str
    open_count: int
    said: str
    promise: str
    #: What devices say and nothing confirms, one line each.
    unconfirmed: tuple[str, ...] = ()
    next_url: str = ""
    first_url: str = ""


@dataclass(frozen=True, slots=True)
class PipelineDrift:
    """The drift page of one pipeline."""

    device: str
    pipeline: str
    alarm: str
    accuracy: AccuracyView | None
    timeline: Chart
    distributions: tuple[DistributionView, ...]
    features: tuple[str, ...]
    feature: str
    facts: tuple[tuple[str, str], ...]
    #: What a candidate in the shadow sees and answers beside it: feature, rows, and how far each is from what its own release carries:
    #: (W1 of the release in use, W1 of the candidate).
    candidate: tuple[tuple[str, int, str, str], ...] = ()


def heat_map(rows: Sequence[OverviewRow], waiting: Sequence[Waiting] = ()) -> HeatMap:
    """The heat map: features in the order in which they first come; and what was put aside."""
    features = tuple(dict.fromkeys(cell.feature for row in rows for cell in row.cells))
    learning = sum(row.state.grade is Grade.COLLECTING for row in rows)
    lines = [waiting_words(one) for one in waiting[:WAITING_SHOWN]]
    more = len(waiting) - len(lines)
    lines += [f"And of {more} other pipeline{'' if more == 1 else 's'}."] if more else []
    return HeatMap(features, tuple(_heat_row(row, features) for row in rows), learning, tuple(lines))


def waiting_words(one: Waiting) -> str:
    """What was put aside of one pipeline, since when, and what lets it out."""
    count = f"{one.windows} window{'' if one.windows == 1 else 's'} of {one.key.device} / {one.key.pipeline}"
    span = f"since {one.since:%Y-%m-%d %H:%M} UTC, until {one.until:%Y-%m-%d %H:%M} UTC"
    if one.reason == "unknown-grid":
        return f"{count} wait for the release that brings grid {one.key.grid_id[:12]}, {span}."
    return f"{count} overlap windows that were there already; they are kept apart {span}."


def heat_of(p: float | None) -> int:
    """How warm a tail probability is drawn."""
    if p is None:
        return 0
    return sum(p < limit for limit in (0.05, 0.01, 1e-3, 1e-6))


def distribution_view(found: Distribution) -> DistributionView:
    """A distribution as bars."""
    bars = bars_of(found.edges, found.reference, found.now)
    return DistributionView(found.feature, bars, found.rows, number(found.psi), number(found.js), number(found.w1), found.reference_of)


def accuracy_view(found: AccuracyRange) -> AccuracyView:
    """The range in percent with what its flag means."""
    words = {
        Trust.TRUSTED: ("trusted", "good", "No input or embedding feature has an open alarm: estimates of this kind held at release."),
        Trust.MATCHED: ("matched", "warn", "There is an open alarm, of a kind of change for which the estimates held at release."),
        Trust.NOT_TRUSTED: (
            "not trusted",
            "",
            "Estimates without labels can be wrong by far here. Only labels tell; no gate uses this range.",
        ),
    }
    name, kind, said = words[found.trust]
    return AccuracyView(
        low=percent(found.low),
        high=percent(found.high),
        trust=name,
        kind=kind,
        words=said,
        reason=found.reason,
        estimates=tuple((key, percent(value)) for key, value in found.estimates.items()),
        measured=tuple(
            (
                one.slice or "all",
                percent(one.accuracy) if one.accuracy is not None else "–",
                f"{percent(one.low)} to {percent(one.high)}",
                one.labels,
            )
            for one in found.measured
            if one.labels
        ),
        rows=found.rows,
    )


def timeline_chart(points: Sequence[TimePoint], *, threshold: float, alarm: Alarm | None = None) -> Chart:
    """What looks say, the largest of each hour, against what raises an alarm; with an alarm's onset and crossing."""
    largest: dict[int, TimePoint] = {}
    for point in points:
        hour = _window_of(point.at) // HOUR
        if point.statistic is not None and point.statistic >= _said(largest.get(hour)):
            largest[hour] = point
        else:
            largest.setdefault(hour, point)
    times = tuple(point.at for point in largest.values())
    marks = [] if alarm is None else [Mark(alarm.onset, "onset", "onset"), Mark(alarm.raised_at, "raised", "alarm")]
    lines = [Line("now", tuple(point.statistic for point in largest.values()))]
    lines += [Line("alarm", (threshold,) * len(times))] if threshold > 0 else []
    note = "How seldom what was seen comes without a change: once in so many windows. The largest of each hour; a gap was not testable."
    return Chart("timeline", "How unlike normal", "", times, tuple(lines), note=note, marks=tuple(marks), is_log=True)


def _said(point: TimePoint | None) -> float:
    return 0.0 if point is None or point.statistic is None else point.statistic


def per_year_of(alarm: Alarm) -> float:
    """Windows that the check which raised the alarm judges in a year, by its threshold; 0: it has none."""
    return alarm.threshold * alarm.rate


def what_if(points: Sequence[TimePoint], *, onset: datetime, rate: float, per_year: float) -> WhatIf:
    """When these windows would have raised an alarm at `rate` false alarms a year, counted from the onset."""
    for point in points:
        if point.at >= onset and _said(point) >= per_year / rate:
            return WhatIf(rate, point.at + SUB_WINDOW - onset)  # the window is judged at its end
    return WhatIf(rate, None)


def what_if_view(points: Sequence[TimePoint], *, onset: datetime, per_year: float, asked: float | None) -> WhatIfView | None:
    """The table of delays, and the one that was asked for; None without windows, or for an alarm without a threshold."""
    known = sum(point.statistic is not None for point in points)
    if not known or not per_year > 0:
        return None
    rows = tuple(what_if(points, onset=onset, rate=rate, per_year=per_year) for rate in RATES)
    chosen = what_if(points, onset=onset, rate=asked, per_year=per_year) if asked is not None else None
    return WhatIfView(rows, chosen, step_of(asked or 1.0), known)


def rate_of_step(step: int) -> float:
    """The rate at a position of the slider, two digits: 0 is 0.1, the last is 10."""
    return float(f"{10 ** (2 * step / SLIDER_STEPS - 1):.2g}")


def step_of(rate: float) -> int:
    """The position of the slider that is nearest to a rate."""
    return min(SLIDER_STEPS, max(0, round((math.log10(rate) + 1) * SLIDER_STEPS / 2)))


def alarm_row(alarm: Alarm) -> AlarmRow:
    """An alarm in a list."""
    subject = alarm.subject
    is_device = subject.kind is SubjectKind.DEVICE
    return AlarmRow(
        id=alarm.alarm,
        place=f"{subject.name} / {subject.pipeline}" if subject.pipeline else f"{subject.kind.value} {subject.name}",
        place_url=f"/drift/{subject.name}/{subject.pipeline}" if is_device else "",
        state=alarm.state.value,
        cause=alarm.cause.value,
        grade=alarm.grade.value,
        words=alarm.words,
        onset=alarm.onset,
        raised_at=alarm.raised_at,
        outcome=alarm.outcome.value if alarm.outcome and not alarm.is_open else "",
        devices=len(alarm.devices),
        reopened=alarm.reopened,
        muted_until=alarm.muted_until,
        acknowledged_by=alarm.acknowledged_by.removeprefix("person:"),
    )


def alarm_page(
    alarm: Alarm,
    *,
    words: str,
    source: ReferenceSource | None = None,
    what_if: WhatIfView | None = None,
    timeline: Chart | None = None,
) -> AlarmPage:
    """One alarm with what it means; `source`: where its reference comes from."""
    return AlarmPage(
        row=alarm_row(alarm),
        features=tuple(
            FeatureRow(
                one.feature,
                one.group,
                one.word,
                percent(one.share),
                probability(one.p),
                signed(one.place),
                signed(one.spread),
                number(one.psi),
                number(one.js),
                number(one.w1),
            )
            for one in alarm.features
        ),
        explanation=explanation(alarm, words),
        facts=(
            ("Evidence", f"{number(alarm.statistic)}, with {number(alarm.threshold)} an alarm is raised"),
            ("False alarms allowed", f"{number(alarm.rate)} per device-year"),
            ("Reference", f"{alarm.grade.value}{f', {alarm.reference_id[:12]}' if alarm.reference_id else ''}{_whence(source)}"),
            ("Model version", alarm.subject.model[:12] or "–"),
            ("Windows of evidence", str(len(alarm.evidence))),
        ),
        devices=tuple(alarm.devices),
        note=alarm.note,
        link=alarm.link,
        parent=alarm.parent or "",
        revision=alarm.revision,
        is_open=alarm.is_open,
        can_acknowledge=alarm.state is AlarmState.RAISED,
        what_if=what_if,
        timeline=timeline,
    )


def explanation(alarm: Alarm, words: str) -> tuple[tuple[str, str], ...]:
    """What the alarm means, how sure it is, and what it costs to be wrong; plain words."""
    moved = {
        "input": "What the camera or sensor delivers is no longer like what this device saw while its reference was learned.",
        "prior": "What comes in looks as before, and the answers come in other shares: some things have become more or less frequent.",
        "concept": "What comes in looks as before, and labels (or a bigger model) say that the same pictures now mean something else.",
        "unknown": "What the model sees or answers is no longer like its reference; which of the two moved is not told yet.",
    }[alarm.cause.value]
    rate, count = number(alarm.rate), max(1, len(alarm.devices))
    sure = (
        f"If nothing had changed, this check would raise about {rate} alarm{'' if alarm.rate == 1 else 's'} per device and year, "
        f"or fewer. What was seen comes once in {number(alarm.statistic)} windows by itself, or more seldom; "
        f"{number(alarm.threshold)} are needed."
    )
    if alarm.grade is Grade.PROVISIONAL:
        sure += " The reference is young (14 to 27 days): the rate is not promised yet."
    cost = (
        f"If it is a false alarm, somebody looks at {count} device{'' if count == 1 else 's'} for nothing; with this setting that comes "
        f"to about {number(alarm.rate * count)} such looks a year for {'it' if count == 1 else 'them'}. If it is right and nobody answers, "
        "the model goes on answering on pictures it was not measured on: its accuracy may be far below what the release promised, "
        "and the estimated range is not trusted while the alarm is open."
    )
    doing = (
        "Look at the features below and at the device. A dirty lens, a moved or covered camera: mend it and clear the alarm as a "
        "condition. A lasting change of the world: retrain, or take a new reference. Nothing wrong: clear it as a false alarm; "
        "such answers are counted against the promise."
    )
    return (
        ("What happened", words or moved),
        ("What it means", moved),
        ("How sure is it", sure),
        ("What it costs to be wrong", cost),
        ("What to do", doing),
    )


def alarms_view(
    found: Sequence[Alarm], *, open_count: int, shown: str, promise: FalseAlarms | None, claims: Sequence[Claim] = ()
) -> AlarmsView:
    """A page of alarms, with the sentence that is read aloud, and what devices say beside them."""
    rows = tuple(alarm_row(one) for one in found)
    newest = next((row for row in rows if row.state != "cleared"), None)
    said = f"{open_count} open alarm{'' if open_count == 1 else 's'}." + (f" The newest: {newest.place}." if newest else "")
    if claims:
        said += f" {len(claims)} alarm{'' if len(claims) == 1 else 's'} of devices unconfirmed."
    lines = tuple(claim_words(one) for one in claims)
    return AlarmsView(rows, shown, open_count, said, promise_words(promise) if promise else "", lines)


def claim_words(one: Claim) -> str:
    """Whose alarm it is, since when, and why it stands alone."""
    return f"{one.device} / {one.pipeline} says that it crossed in the ten minutes from {one.raised_at:%Y-%m-%d %H:%M} UTC. {one.reason}"


def with_pages(view: AlarmsView, *, next_url: str, first_url: str) -> AlarmsView:
    """The view with where its other pages are."""
    return replace(view, next_url=next_url, first_url=first_url)


def pipeline_drift(
    row: OverviewRow,
    *,
    points: Sequence[TimePoint],
    accuracy: AccuracyRange | None,
    distributions: Sequence[Distribution],
    feature: str,
    alarm: Alarm | None,
    own_rate: float | None = None,
    candidate: Sequence[Distribution] = (),
) -> PipelineDrift:
    """The drift page of one pipeline; without a feature asked for, the distributions of what moved most.

    `candidate`: of the candidate in the shadow, all features.
    """
    state, is_learned = row.state, row.state.grade is not Grade.COLLECTING
    by_name = {one.feature: one for one in distributions}
    order = sorted(row.cells, key=lambda cell: (1.0 if cell.p is None else cell.p, -abs(cell.place or 0.0)))
    picked = [one for one in (by_name.get(cell.feature) for cell in order) if one is not None]
    shown = list(distributions) if feature else (picked or list(distributions))[:DISTRIBUTIONS_SHOWN]
    facts = (
        ("Reference", f"{state.grade.value}{_whence(row.source)}" if is_learned else f"learning: day {state.days} of 14, no alarms yet"),
        ("Check", f"by the {state.check.value}"),
        ("Latest score", f"{number(state.score)} (p {probability(state.p)})"),
        ("Evidence", f"{number(state.statistic)}, with {number(state.threshold)} an alarm is raised"),
        *([("False alarms allowed", f"{number(own_rate)} per device-year, by the device's own settings")] if own_rate is not None else []),
        ("Site gap", f"{number(state.site_gap)} (distance to the model's own reference; shown, never an alarm)"),
        ("Peers", f"p {probability(state.peer_p)} against devices like it; shown, never an alarm"),
        ("Judged until", f"{state.judged_until:%Y-%m-%d %H:%M} UTC" if state.judged_until else "nothing yet"),
        ("Conditions", ", ".join(f"{code}: {seconds} s" for code, seconds in state.conditions.items()) or "none"),
    )
    return PipelineDrift(
        device=state.device,
        pipeline=state.pipeline,
        alarm=row.alarm or "",
        accuracy=accuracy_view(accuracy) if accuracy else None,
        timeline=timeline_chart(points, threshold=state.threshold, alarm=alarm),
        distributions=tuple(distribution_view(one) for one in shown),
        features=tuple(cell.feature for cell in row.cells),
        feature=feature,
        facts=facts,
        candidate=tuple(
            (one.feature, one.rows, number(by_name[one.feature].w1) if one.feature in by_name else "–", number(one.w1)) for one in candidate
        ),
    )


def promise_words(found: FalseAlarms) -> str:
    """How the promise was kept, in a sentence."""
    if not found.device_years:
        return ""
    if not found.is_telling:
        watched = f"{number(found.device_years * 365.25)} device-days"
        return f"Watched for {watched}: too little to say how many alarms are false; {number(found.rate)} per device-year are allowed."
    bound = f" (95 % sure that it is at most {number(found.bound)})" if found.bound is not None else ""
    return (
        f"{found.count} of {found.alarms} alarms were called false in {number(found.device_years)} device-years: "
        f"{number(found.count / found.device_years)} per device-year{bound}; {number(found.rate)} are allowed."
    )


def percent(value: float) -> str:
    """A share in percent: "93.4 %"."""
    return f"{100 * value:.1f} %"


def signed(value: float | None) -> str:
    """A shift with its sign: "+1.3"."""
    return "–" if value is None else f"{value:+.1f}"


def duration(length: timedelta) -> str:
    """A length of time in the unit that suits it."""
    minutes = length.total_seconds() / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def _whence(source: ReferenceSource | None) -> str:
    """What is to be known of where a reference comes from."""
    return ", from an unsigned recording" if source is ReferenceSource.RECORDING else ""


def _heat_row(row: OverviewRow, features: Sequence[str]) -> HeatRow:
    state, cells = row.state, {cell.feature: cell for cell in row.cells}
    conditions = ", ".join(f"{code} {seconds} s" for code, seconds in state.conditions.items())
    return HeatRow(
        device=state.device,
        pipeline=state.pipeline,
        grade=f"{state.grade.value}{_whence(row.source)}" if state.grade is not Grade.COLLECTING else f"learning, day {state.days} of 14",
        state=row.alarm_state.value if row.alarm_state else "ok",
        alarm=row.alarm or "",
        score=number(state.score),
        p=probability(state.p),
        evidence=number(state.evidence),
        is_listed=state.is_listed,
        cells=tuple(
            Cell(signed(cell.place), heat_of(cell.p), f"p {probability(cell.p)}")
            if (cell := cells.get(feature))
            else Cell("–", 0, "not watched")
            for feature in features
        ),
        conditions=conditions,
    )


def _window_of(moment: datetime) -> int:
    return int(moment.timestamp()) // int(SUB_WINDOW.total_seconds())
