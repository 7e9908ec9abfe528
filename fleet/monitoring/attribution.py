"""Which features moved and how, in numbers and in words; explains an alarm, never raises one (DRIFT 5.7). Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fleet.monitoring.detectors import summaries_of
from fleet.monitoring.drift_model import AlarmSubject, Attribution, Distribution, FeatureCell, SubjectKind
from protocol.errors import InvalidError
from protocol.ids import DeviceId
from protocol.sketches.counts import Counts, split
from protocol.sketches.grid import Grid
from protocol.sketches.reference import DeviceReference
from protocol.sketches.summary import summarizer
from protocol.sketches.tail import MIN_SCORES, fit_tail

DoubleArray = npt.NDArray[np.float64]
#: Share of wrong names in the list of features (Benjamini and Hochberg).
FALSE_DISCOVERIES = 0.05
#: Shares below this are drawn and compared as this.
LEAST_SHARE = 1e-4
CLASSES = "classes"
#: Words in one sentence.
MAX_WORDS = 3
#: From so many deviations on a shift of place is what happened.
_CLEAR_PLACE = 2.0
#: Least change of a class's share that is put into words.
_LEAST_SHIFT = 0.02

#: Feature -> words for more and for less of it.
WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "image.brightness": ("brighter", "darker"),
        "image.contrast": ("richer in contrast", "flatter"),
        "image.sharpness": ("sharper", "blurrier"),
        "image.red": ("redder", "less red"),
        "image.blue": ("bluer", "less blue"),
        "image.saturation": ("more colorful", "paler"),
        "image.noise": ("noisier", "smoother"),
        "image.dark": ("with more dark areas", "with fewer dark areas"),
        "image.glare": ("with more glare", "with less glare"),
        "image.edges": ("with more edges", "with fewer edges"),
        "image.blocks": ("blockier", "less blocky"),
        "image.entropy": ("richer in tones", "poorer in tones"),
        "output.confidence": ("more confident", "less confident"),
        "output.entropy": ("more undecided", "less undecided"),
        "output.count": ("with more detections", "with fewer detections"),
        "output.top-score": ("with higher top scores", "with lower top scores"),
        "output.mean-score": ("with higher scores", "with lower scores"),
        "output.area": ("with larger boxes", "with smaller boxes"),
        "output.aspect": ("with wider boxes", "with narrower boxes"),
        "output.value": ("higher", "lower"),
        "output.step": ("jumpier", "steadier"),
        "output.score": ("with higher anomaly scores", "with lower anomaly scores"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What the window is compared with."""

    reference: DeviceReference
    #: Counts of clean time, for drawing.
    counts: Counts
    #: Counts of single clean windows, for each feature's own tail; may be few or none.
    clean: Sequence[Counts] = ()


def attribute(grid: Grid, base: Base, now: Counts, *, summary: DoubleArray | None = None) -> tuple[Attribution, ...]:
    """Features that moved, those with the largest part in T² first; the most moved one when none alone is surprising.

    `summary`: what is judged, float64[d]; None: that of the counts.
    """
    summary = summaries_of([now], grid)[0] if summary is None else summary
    p, place, spread, share = _per_feature(grid, base, summary)
    chosen = _discoveries(p)
    if not chosen:
        chosen = [int(np.nanargmax(np.where(np.isnan(p), -np.inf, share)))] if len(share) else []
    found = [_attribution(grid, base, now, index, p, place, spread, share) for index in chosen]
    return tuple(sorted(found, key=lambda one: -one.share))


def cells(grid: Grid, base: Base, now: Counts) -> tuple[FeatureCell, ...]:
    """The p and the shift of every feature, and of the classes as one: a row of the heat map."""
    p, place, _, _ = _per_feature(grid, base, summaries_of([now], grid)[0])
    names = _names(grid)
    return tuple(
        FeatureCell(name, group, None if np.isnan(p[index]) else float(p[index]), None if np.isnan(place[index]) else float(place[index]))
        for index, (name, group) in enumerate(names)
    )


def distribution(grid: Grid, index: int, reference: Counts, now: Counts, *, reference_of: str) -> Distribution:
    """A feature's shares over its bins, and how far apart they are."""
    feature = grid.features[index]
    before, after = _shares(split(reference, grid)[index]), _shares(split(now, grid)[index])
    psi, js, w1 = distances(before, after)
    rows = now.rows - int(split(now, grid)[index][0])
    edges = (feature.low, *feature.edges, feature.high)
    return Distribution(feature.name, edges, tuple(before.tolist()), tuple(after.tolist()), rows, psi, js, w1, reference_of)


def distances(p: DoubleArray, q: DoubleArray) -> tuple[float, float, float]:
    """PSI, Jensen-Shannon distance (base 2) and Wasserstein-1 over equal bins of two distributions; nothing is decided by them."""
    p, q = np.maximum(p, LEAST_SHARE), np.maximum(q, LEAST_SHARE)
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    psi = float(((p - q) * np.log(p / q)).sum())
    js = math.sqrt(max(0.0, float(0.5 * (p * np.log2(p / m)).sum() + 0.5 * (q * np.log2(q / m)).sum())))
    return psi, js, float(np.abs(np.cumsum(p) - np.cumsum(q)).mean())


def words_of(
    features: Sequence[Attribution], subject: AlarmSubject, *, onset: datetime, now: datetime, devices: Sequence[DeviceId], seen: str = ""
) -> str:
    """One sentence for people, e.g. "Picture darker and blurrier since 14:10 UTC on 12 devices of site-b.".

    `seen`: in what it was seen, e.g. "in the mean of three hours".
    """
    said = {"input": "Picture", "sensor": "Readings", "output": "Answers", "classes": "Answers"}
    parts: dict[str, list[str]] = {}
    for one in features:
        group = "sensor" if one.group == "input" and not one.feature.startswith("image.") else one.group
        parts.setdefault(said.get(group, "Picture"), []).append(one.word)
    sentences = [f"{what} {_joined(list(dict.fromkeys(words))[:MAX_WORDS])}" for what, words in parts.items()] or ["Something moved"]
    text = "; ".join([sentences[0], *(sentence[0].lower() + sentence[1:] for sentence in sentences[1:])])
    same_day = onset.date() == now.date()
    since = f"{onset:%H:%M} UTC" if same_day else f"{onset:%Y-%m-%d %H:%M} UTC"
    return f"{text} since {since} on {_place(subject, devices)}{f', seen {seen}' if seen else ''}."


def word_for(feature: str, place: float, spread: float) -> str:
    """How a feature moved, by the shifts of its place and of its spread in deviations."""
    more, less = WORDS.get(feature, ("", ""))
    if not more:
        if feature.startswith("embedding."):
            return "unlike before"
        name = feature.removeprefix("sensor.")
        more, less = f"of {name} higher", f"of {name} lower"
    if abs(place) >= min(_CLEAR_PLACE, abs(spread)):  # what moves far in place moves in spread too
        return more if place > 0 else less
    changed = "more varied" if spread > 0 else "less varied"
    return f"{changed} in {feature.rpartition('.')[2]}"


def _place(subject: AlarmSubject, devices: Sequence[DeviceId]) -> str:
    if subject.kind is SubjectKind.DEVICE:
        return f"{subject.name}, pipeline {subject.pipeline}"
    site, _, kind = subject.name.partition("/")
    what = "device" if len(devices) == 1 else "devices"
    return (
        f"{len(devices)} {what} ({kind}) of {'no site' if site == '-' else f'site {site}'}"
        if subject.kind is SubjectKind.GROUP
        else (f"{len(devices)} {what} of campaign {subject.name}")
    )


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _names(grid: Grid) -> list[tuple[str, str]]:
    names = [(feature.name, feature.group.value) for feature in grid.features]
    return [*names, (CLASSES, CLASSES)] if grid.classes else names


def _places(grid: Grid, index: int) -> list[int]:
    """Coordinates of a feature, or of the classes, in the summary."""
    made = summarizer(grid)
    return list(made.of_feature(index)) if index < len(grid.features) else list(range(made.classes.start, made.classes.stop))


def _per_feature(grid: Grid, base: Base, summary: DoubleArray) -> tuple[DoubleArray, DoubleArray, DoubleArray, DoubleArray]:
    """p, shift of place, shift of spread, part of T²; NaN for a feature that the reference does not judge."""
    reference, count = base.reference, len(_names(grid))
    where = {int(coordinate): index for index, coordinate in enumerate(reference.coordinates)}
    clean = summaries_of(base.clean, grid)[:, reference.coordinates] if base.clean else np.empty((0, len(where)))
    judged = summary[reference.coordinates]
    x, parts = reference.scatter.standardized(judged[None])[0], reference.scatter.contributions(judged)
    total = max(float(parts.sum()), 1e-12)
    p, place, spread, share = (np.full(count, np.nan) for _ in range(4))
    for index in range(count):
        inside = [where[one] for one in _places(grid, index) if one in where]
        if not inside:
            continue
        at = np.array(inside, dtype=np.int64)
        scatter = reference.scatter.part(at)
        score = float(scatter.scores(judged[at][None])[0])
        p[index] = _own_p(score, scatter.scores(clean[:, at]), len(at))
        share[index] = float(parts[at].sum()) / total
        place[index], spread[index] = (
            (x[at[0]], x[at[1]]) if index < len(grid.features) and len(at) == 2 else (float(np.abs(x[at]).max()), 0.0)
        )
    return p, place, spread, share


def _own_p(score: float, clean: DoubleArray, dimensions: int) -> float:
    """By the tail of clean windows; with too few of them as if it were the square of normal numbers."""
    if len(clean) >= MIN_SCORES:
        try:
            return float(fit_tail(clean).p_values(np.array([score]))[0])
        except InvalidError:  # it never varied
            pass
    return _chi_square_tail(score, dimensions)


def _chi_square_tail(score: float, dimensions: int) -> float:
    """Probability that a sum of so many squares of normal numbers is larger (Wilson and Hilferty 1931; exact for two)."""
    if dimensions == 2:
        return math.exp(-score / 2)
    z = ((score / dimensions) ** (1 / 3) - (1 - 2 / (9 * dimensions))) / math.sqrt(2 / (9 * dimensions))
    return max(1e-12, 0.5 * math.erfc(z / math.sqrt(2)))


def _discoveries(p: DoubleArray) -> list[int]:
    """Benjamini and Hochberg: those with p up to k/m of the share, k the largest that fits."""
    known = [int(index) for index in np.argsort(p) if not np.isnan(p[index])]
    fitting = [rank for rank, index in enumerate(known, 1) if p[index] <= FALSE_DISCOVERIES * rank / len(known)]
    return known[: max(fitting, default=0)]


def _attribution(
    grid: Grid, base: Base, now: Counts, index: int, p: DoubleArray, place: DoubleArray, spread: DoubleArray, share: DoubleArray
) -> Attribution:
    name, group = _names(grid)[index]
    if name == CLASSES:
        before, after = _class_shares(base.counts), _class_shares(now)
        word = _class_word(grid, before, after)
    else:
        before, after = _shares(split(base.counts, grid)[index]), _shares(split(now, grid)[index])
        word = word_for(name, float(place[index]), float(spread[index]))
    psi, js, w1 = distances(before, after)
    return Attribution(name, group, word, float(p[index]), float(share[index]), float(place[index]), float(spread[index]), psi, js, w1)


def _class_word(grid: Grid, before: DoubleArray, after: DoubleArray) -> str:
    more = [grid.classes[index] for index in np.argsort(before - after) if after[index] - before[index] > _LEAST_SHIFT][:2]
    less = [grid.classes[index] for index in np.argsort(after - before) if before[index] - after[index] > _LEAST_SHIFT][:2]
    parts = ([f"more often {' or '.join(more)}"] if more else []) + ([f"more rarely {' or '.join(less)}"] if less else [])
    return ", ".join(parts) or "shared out otherwise"


def _class_shares(counts: Counts) -> DoubleArray:
    total = counts.classes.sum()
    return counts.classes / total if total else np.full(len(counts.classes), 1 / max(1, len(counts.classes)))


def _shares(cells_: npt.NDArray[np.int64]) -> DoubleArray:
    """Shares of the bins 1..K among finite values, under in the first and over in the last."""
    bins = cells_[2:-1].astype(np.float64)
    bins[0] += cells_[1]
    bins[-1] += cells_[-1]
    total = bins.sum()
    return np.asarray(bins / total if total else np.full(len(bins), 1 / len(bins)), dtype=np.float64)
