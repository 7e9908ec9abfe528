"""The rows of drift.json: everything measured on the simulated fleet and on this machine, in the words of the issue."""

import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.drift import costs, fleet, frames, group, labels, singles, validation
from benchmarks.drift.bank import CACHE, roster
from benchmarks.drift.outcomes import Outcome
from benchmarks.drift.world import WINDOWS
from benchmarks.record import Row
from fleet.monitoring.accuracy import LABEL_BUDGET

#: Asked false alarms per device-year.
RATES = (0.2, 1.0, 5.0)
PEERS = ("evidently", "whylogs", "alibi", "river")
_HELD_OUT = ("held out full", "held out 20 percent", "held out ramp", "held out prior")
_KINDS = ("full", "20 percent", "5 percent", "prior", "ramp", *_HELD_OUT)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is simulated."""

    cameras: int
    repeats: int
    block_repeats: int
    single_repeats: int
    sites: int
    validated: tuple[int, ...]
    validated_windows: int
    #: Rounds in which a device's costs are measured.
    device_rounds: int


def measure_all(plan: Plan) -> tuple[list[Row], dict[str, object]]:
    """The rows and, as details, what stands behind them."""
    ours = fleet.run("looks", "test", plan.cameras, plan.repeats, with_held_out=True)
    blocks = fleet.run("blocks", "test", plan.cameras, plan.block_repeats, with_held_out=True)
    rows = [*_rates(ours), *_delays(ours)]
    details: dict[str, object] = {
        "everything": "simulated: streams of camera windows made from real pictures",
        "plan": asdict(plan),
        "ours": _table(ours),
        "blocks of DRIFT 5.4": _table(blocks),
        "by stream": {kind: _table([one for one in ours if one.kind == kind]) for kind in ("indoor", "outdoor")},
        "curve": {str(rate): fleet.total(ours, rate)[0] / fleet.total(ours, rate)[1] for rate in ours[0].alarms},
    }
    beside, details["single features"] = _singles(ours, plan)
    rows += beside
    merged, details["twelve cameras of a site, 5 percent"] = _sites(plan)
    rows += merged
    rows += _costs()
    paid, details["a device"] = costs.device_rows(plan.device_rounds)
    rows += paid
    estimates, details["estimates without labels"] = _estimates(plan)
    rows += estimates
    details["frames and means"] = validation.compare("study", plan.validated, plan.validated_windows)
    details["peers at their defaults"] = peers_at_defaults()
    return rows, details


def _rates(ours: Sequence[Outcome]) -> list[Row]:
    rows = []
    for rate in RATES:
        count, years = fleet.total(ours, rate)
        ends = [one.alarms[rate] / one.years for one in ours]
        spread = statistics.pstdev(ends)
        name = "false alarms per device-year" + ("" if rate == 1.0 else f", {rate:g} asked")
        rows.append(_row(name, count / years, f"per simulated device-year, {count} in {years:.0f}", len(ours), spread, f"<= {rate:g}"))
        bound = fleet.bound(count, years)
        rows.append(_row(f"{name}, 95 % bound", bound, "per simulated device-year", len(ours), spread, f"<= {1.2 * rate:g}"))
    return rows


def _delays(ours: Sequence[Outcome]) -> list[Row]:
    wanted = (("full", 1, "<= 1"), ("20 percent", 1, "<= 18"), ("prior", 1, "<= 18"))
    rows = []
    for kind, _, target in wanted:
        found = fleet.delays(ours, 1.0, kind)
        rows.append(
            _row(f"delay {kind}", statistics.median(found), "windows of 10 min, median, simulated", len(found), _half(found), target)
        )
    ramp = [value - WINDOWS // 2 for value in fleet.delays(ours, 1.0, "ramp")]
    rows.append(
        _row("delay ramp", statistics.median(ramp), "windows after half of its way, median, simulated", len(ramp), _half(ramp), "<= 12")
    )
    return rows


def _singles(ours: Sequence[Outcome], plan: Plan) -> tuple[list[Row], dict[str, object]]:
    """Mean delays where each single statistic raises as many false alarms a year on the study's cameras as ours at 1 asked on the test's.

    Details say what came of that on the test, and how long each takes at the level that is right on the test itself: by hindsight.
    """
    study = fleet.run_singles("study", plan.cameras, plan.single_repeats)
    test = fleet.run_singles("test", plan.cameras, plan.single_repeats)
    same = {(one.index, one.repeat) for one in test}
    paired = [one for one in ours if (one.index, one.repeat) in same]
    count, years = fleet.total(ours, 1.0)
    rate = count / years or 1.0  # few device-years may have had none
    rows, details = [], {}
    mine = [value for kind in fleet.SINGLE_KINDS for value in fleet.delays(paired, 1.0, kind)]
    for name in singles.NAMES:
        learned, chosen = ([one for one in every if one.detector == name] for every in (study, test))
        level = fleet.matched_level(learned, rate)
        theirs = [value for kind in fleet.SINGLE_KINDS for value in fleet.delays(chosen, level, kind)]
        ratio, title = float(np.mean(mine) / np.mean(theirs)), f"{name.upper()}, largest over features, calibrated alike"
        unit, taken = "windows, restricted mean, simulated", float(np.mean(theirs))
        rows.append(Row(f"delay vs {name}", float(np.mean(mine)), taken, title, ratio, unit, len(mine), 0.0, "<= 0.5", ratio <= 0.5))
        hindsight = fleet.matched_level(chosen, rate)
        details[name] = {
            "rate of ours, which all are brought to": rate,
            "by the study's cameras": {**_single(learned, level, "study"), **_single(chosen, level, "test")},
            "by the test's own, hindsight": _single(chosen, hindsight, "test"),
        }
    return rows, details


def _single(outcomes: Sequence[Outcome], level: float, purpose: str) -> dict[str, object]:
    """What a single statistic came to at this level of p; delays of the test alone."""
    count, years = fleet.total(outcomes, level)
    found: dict[str, object] = {"level of p": level, f"false alarms in {purpose}": count, f"device-years of {purpose}": years}
    if purpose == "test":
        by_kind = {kind: fleet.delays(outcomes, level, kind) for kind in fleet.SINGLE_KINDS}
        found["medians"] = {kind: statistics.median(values) for kind, values in by_kind.items()}
        found["means"] = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
        found["mean"] = float(np.mean([value for values in by_kind.values() for value in values]))
    return found


def _sites(plan: Plan) -> tuple[list[Row], dict[str, object]]:
    """A shift in 5 % of the rows of twelve cameras under one sky, from the mean of them."""
    found = group.sites("test", range(plan.cameras), range(group.FIRST_TEST, group.FIRST_TEST + plan.sites))
    rows = []
    for name in ("blur", "jpeg"):
        values = [one.together[name] for one in found]
        unit = "windows of 10 min, median, 12 cameras merged, simulated"
        rows.append(_row(f"delay 5 percent {name}, merged", statistics.median(values), unit, len(values), _half(values), "<= 144"))
    alarms, years = sum(one.alarms for one in found), sum(one.years for one in found)
    rows.append(
        _row("false alarms per group-year", alarms / years, f"per simulated group-year, {alarms} in {years:.1f}", len(found), 0.0, "<= 1")
    )
    medians: dict[str, object] = {
        how: {name: statistics.median([getattr(one, how)[name] for one in found]) for name in found[0].together}
        for how in ("together", "alone")
    }
    seen: dict[str, object] = {"sites": len(found), "alarms": alarms, "group-years": years, **medians}
    return rows, seen


def _costs() -> list[Row]:
    numbers, from_bytes = costs.merge_ms()
    sketch = [costs.us_per_frame() for _ in range(5)]
    peers = _peer("whylogs", "sketch.py")
    rows = [
        _row("bytes per device-hour", costs.bytes_per_hour(), "B", 1, 0.0, "<= 2048"),
        _row("bytes per device-hour, every feature moved by a deviation", costs.bytes_per_hour(1.0), "B", 1, 0.0, "<= 2048"),
        _row("sketch us per frame", statistics.median(sketch), "us, 32 features", len(sketch), _half(sketch), "<= 1"),
        _row("merge ms", from_bytes, "ms, 10,000 devices of 32 features from their bytes", 5, 0.0, "<= 50"),
        _row("merge ms, decoded", numbers, "ms", 5, 0.0, "<= 50"),
        _row("minutes to judge 1 M device-hours", costs.judge_minutes(), "min of one core, measured on 8,000", 1, 0.0, "<= 10"),
    ]
    for name in ("kll", "whylogs") if peers else ():
        value = peers[name]
        ratio = statistics.median(sketch) / value
        title = "Apache datasketches KLL k=128" if name == "kll" else "whylogs, a dict per frame"
        rows.append(
            Row(f"sketch us per frame vs {name}", statistics.median(sketch), value, title, ratio, "us", 5, 0.0, "<= 1.0", ratio <= 1.0)
        )
    return rows


def _estimates(plan: Plan) -> tuple[list[Row], dict[str, object]]:
    """On the test's windows: of shifts that are benign by the release alone (DRIFT 6), all, and those that the flag lets through."""
    found, few = labels.judged(range(plan.cameras)), labels.few_things(range(plan.cameras))
    audited, mild = labels.judged_with_labels(range(plan.cameras)), labels.benign(labels.profile())
    strong = labels.judged_damaged(range(plan.cameras))
    unit, points = "% of simulated windows", "points, simulated"
    kinds = {
        "label-free mae": [one.error for one in found if one.shift in mild],
        "label-free mae, all windows": [one.error for one in found],
        "label-free mae, flag on": [one.error for one in found if one.is_on],
        "label-free mae, hours of 44 to 88 things": [one.error for one in few],
        f"mae with {LABEL_BUDGET} labels": [one.error for one in audited],
        "label-free mae, damage of three severities": [one.error for one in strong],
    }
    rows = [_row(name, 100 * float(np.mean(errors)), points, len(errors), 0.0, "<= 3") for name, errors in kinds.items()]
    rows += [
        _part("flag off when wrong", [not one.is_on for one in found if one.error > 0.05], unit, ">= 95"),
        _part("flag off when wrong by 10 points", [not one.is_on for one in found if one.error > 0.1], unit, ">= 95"),
        _part("flag on when right", [one.is_on for one in found if one.error <= 0.03], unit, ">= 80"),
        _part("flag off when wrong, hours of 44 to 88 things", [not one.is_on for one in few if one.error > 0.05], unit, ">= 95"),
        _part("flag on when right, hours of 44 to 88 things", [one.is_on for one in few if one.error <= 0.03], unit, ">= 80"),
    ]
    rows += [
        _part(f"flag off when wrong, {LABEL_BUDGET} labels", [not one.is_on for one in audited if one.error > 0.05], unit, ">= 95"),
        _part(f"flag on when right, {LABEL_BUDGET} labels", [one.is_on for one in audited if one.error <= 0.03], unit, ">= 80"),
        _part("flag off when wrong, damage of three severities", [not one.is_on for one in strong if one.error > 0.05], unit, ">= 95"),
        _part("flag on when right, damage of three severities", [one.is_on for one in strong if one.error <= 0.03], unit, ">= 80"),
    ]
    by_scene = {one.scene: [other for other in found if other.scene == one.scene] for one in found}
    by_shift = {one.shift: [other.error for other in found if other.shift == one.shift] for one in found}
    details: dict[str, object] = {
        "benign by the release alone": sorted(mild),
        "mean error by camera": {scene: float(np.mean([one.error for one in its])) for scene, its in by_scene.items()},
        "flag on by camera": {scene: float(np.mean([one.is_on for one in its])) for scene, its in by_scene.items()},
        "mean error by shift": {shift: float(np.mean(errors)) for shift, errors in by_shift.items()},
        "accuracy by camera": {scene: float(np.mean([one.truth for one in its])) for scene, its in by_scene.items()},
        "mean error of the middle of the three, not corrected": float(np.mean([abs(one.middle - one.truth) for one in found])),
        "the same in hours of 44 to 88 things": float(np.mean([abs(one.middle - one.truth) for one in few])),
        "why the flag is off": dict(Counter(one.reason.partition(":")[0] for one in found if not one.is_on)),
    }
    if plan.cameras == len(roster("study")):  # minutes of frames: nothing for a quick look
        details["study, pictures left out"] = _chosen_on(range(plan.cameras))
    return rows, details


def _chosen_on(cameras: Sequence[int]) -> dict[str, object]:
    """What the study says of the same, by which everything was chosen."""
    kinds = {"windows": labels.study(cameras), "damaged": labels.study_damaged(cameras)}
    kinds[f"both, {LABEL_BUDGET} labels"] = labels.study_with_labels(cameras)
    mixed = labels.study_mixes(cameras)
    kinds |= {name: [one for one in mixed if one.shift == name] for name in dict.fromkeys(one.shift for one in mixed)}
    return {
        name: {
            "windows": len(its),
            "mean error": float(np.mean([one.error for one in its])),
            "mean error of the middle": float(np.mean([abs(one.middle - one.truth) for one in its])),
            "wrong by more than 5 points, of them off": [
                sum(one.error > 0.05 for one in its),
                sum(one.error > 0.05 and not one.is_on for one in its),
            ],
            "right within 3, of them on": [sum(one.error <= 0.03 for one in its), sum(one.error <= 0.03 and one.is_on for one in its)],
            "on": sum(one.is_on for one in its),
        }
        for name, its in kinds.items()
    }


def _part(what: str, held: Sequence[bool], unit: str, target: str) -> Row:
    """How often it held, of the windows it is about; 100 % of none."""
    return _row(what, 100 * float(np.mean(held)) if held else 100.0, unit, len(held), 0.0, target)


def peers_at_defaults() -> dict[str, object]:
    """Share of clean simulated windows on which each peer alarms by its defaults: a room, a street, and the same rows shuffled."""
    arrays = {}
    for name, index in (("indoor", 0), ("outdoor", 1)):
        device = fleet.one("test", index, 901, 40)
        rng = np.random.default_rng([index, 3])
        before = np.sort(rng.choice(14 * WINDOWS, 24, replace=False))
        after = np.sort(rng.choice(np.arange(28 * WINDOWS, 40 * WINDOWS), 4, replace=False))
        reference, _ = frames.windows(device.bank, "test", index, device.path, before.tolist(), (*device.key, 6), every=6)
        windows, _ = frames.windows(device.bank, "test", index, device.path, after.tolist(), (*device.key, 8))
        flat = reference.reshape(-1, reference.shape[-1])
        rows = np.concatenate([flat, windows[:, ::6].reshape(-1, flat.shape[1])])
        rng.shuffle(rows)
        arrays |= {f"{name}.reference": flat, f"{name}.windows": windows}
        arrays |= {f"{name}, rows shuffled.reference": rows[:2400], f"{name}, rows shuffled.windows": rows[2400:2800].reshape(4, 100, -1)}
    path = CACHE / "peers.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # stub: allow_pickle
    return {peer: _peer(peer, "judge.py", peer, str(path)) or "left out: not installed, or it failed" for peer in PEERS}


def _peer(environment: str, script: str, *arguments: str) -> dict[str, float]:
    python = CACHE / "peers" / environment / "bin" / "python"
    if not python.exists():
        print(f"left out: {environment} (benchmarks/drift/install-peers)")
        return {}
    command = [python, Path(__file__).resolve().parent / "peers" / script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CACHE, timeout=1800)
    if result.returncode:
        print(f"left out: {environment} failed: {result.stderr[-300:]}")
        return {}
    return dict(json.loads(result.stdout.strip().splitlines()[-1]))


def _table(outcomes: Sequence[Outcome]) -> dict[str, object]:
    table: dict[str, object] = {}
    for rate in RATES:
        count, years = fleet.total(outcomes, rate)
        found = {kind: fleet.delays(outcomes, rate, kind) for kind in _KINDS}
        table[f"{rate:g} asked"] = {
            "alarms": count,
            "device-years": years,
            "rate": count / years,
            "bound": fleet.bound(count, years),
            "most on one device": max(one.alarms[rate] / one.years for one in outcomes),
            "median delay": {kind: statistics.median(values) for kind, values in found.items() if values},
            "mean delay": {kind: float(np.mean(values)) for kind, values in found.items() if values},
            "within one window": {kind: float(np.mean(np.array(values) <= 1)) for kind, values in found.items() if values},
            "within a day": {kind: float(np.mean(np.array(values) <= WINDOWS)) for kind, values in found.items() if values},
        }
    return table


def _row(what: str, value: float, unit: str, runs: int, spread: float, target: str) -> Row:
    relation, bound = target.split()
    is_met = value <= float(bound) if relation == "<=" else value >= float(bound)
    return Row(what, float(value), None, "", None, unit, runs, float(spread), target, bool(is_met))


def _half(values: Sequence[float]) -> float:
    """Half of the range between the quartiles."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low) / 2
