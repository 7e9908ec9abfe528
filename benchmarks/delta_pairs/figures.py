"""From measured pairs to rows: what is wanted of each, the worst of many for README, and the whole record for docs/deltas.md."""

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from benchmarks.delta_pairs.listing import MADE_TARGETS, Pair
from benchmarks.delta_pairs.peers import Peer, Trial, Use
from benchmarks.record import Row, compare, measure

HEADER_BYTES = 112
#: MB of output per CPU second; MB above an interpreter with numpy.
SPEED, MEMORY = ">= 50", "<= 16"
#: CPU seconds of the server for one delta.
ENCODER = "<= 120"
#: The generic tools that sizes are held against; others are only shown.
GENERIC = ("bsdiff", "xdelta3", "zstd --patch-from", "detools")
#: Of the pairs of our own, per kind of change: how many have to reach what is wanted of the given ones.
OWN = ">= 3"
#: How near a TFLite pair's ratio has to come to that of the same change in ONNX.
TFLITE = ">= 0.9"


@dataclass(slots=True)
class Ours:
    """Our deltas of one pair: bytes and method, and the figures of every turn."""

    size: int = 0
    method: int = 0
    encodes: list[Use] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    memories: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Large:
    """The large file's delta."""

    size: int
    new_bytes: int
    encode_s: float
    speeds: list[float]
    memories: list[float]


@dataclass(frozen=True, slots=True)
class Measured:
    """One pair, measured: each tool's turns with its best setting, settings that failed and why, and the bounds in bytes."""

    pair: Pair
    ours: Ours
    trials: dict[str, list[Trial]]
    failed: dict[str, str]
    full: int
    entropy: float
    changed: float

    @property
    def best(self) -> tuple[str, list[Trial]] | None:
        """The smallest delta of the tools that count: the generic four, on float models ZipNN too."""
        names = [name for name in self.trials if name in GENERIC or (name == "ZipNN" and self.pair.is_float)]
        return min(((name, self.trials[name]) for name in names), key=lambda item: item[1][0].size, default=None)

    @property
    def times(self) -> float | None:
        """How many times smaller ours is than the best of them."""
        return None if self.best is None else self.best[1][0].size / self.ours.size


def rows_of(measured: Measured) -> list[Row]:
    """The rows of one pair."""
    pair, ours = measured.pair, measured.ours
    rows = [] if (size := size_row(measured)) is None else [size]
    rows.append(measure(f"{pair.name}: above the full download", ours=[ours.size - measured.full], unit="B", target=f"<= {HEADER_BYTES}"))
    rows.append(measure(f"{pair.name}: encode CPU s", ours=[use.cpu_s for use in ours.encodes], unit="s", target=ENCODER))
    rows.append(measure(f"{pair.name}: decode MB/s", ours=ours.speeds, unit="MB/s", target=SPEED))
    rows.append(measure(f"{pair.name}: decode memory MB", ours=ours.memories, unit="MB", target=MEMORY))
    return rows


def size_row(measured: Measured) -> Row | None:
    """Our bytes beside the best tool's; None where no tool ran or nothing is claimed of the pair."""
    if measured.best is None or measured.pair.times is None:
        return None
    name, trials = measured.best
    # Rounded against us: a ratio of 1/15 must not pass as 0.0667.
    target = f"<= {math.floor(1e5 / measured.pair.times) / 1e5:g}"
    ours = [measured.ours.size] * len(trials)
    return compare(f"{measured.pair.name}: size", ours=ours, peer=[trial.size for trial in trials], peer_name=name, unit="B", target=target)


def large_rows(big: Large) -> list[Row]:
    """The rows of the large file."""
    name = f"large ({big.new_bytes / 1e6:.0f} MB, random weights)"
    return [
        measure(f"{name}: encode CPU s", ours=[big.encode_s], unit="s", target=ENCODER),
        measure(f"{name}: decode MB/s", ours=big.speeds, unit="MB/s", target=SPEED),
        measure(f"{name}: decode memory MB", ours=big.memories, unit="MB", target=MEMORY),
    ]


def summarize(results: Sequence[Measured], rows: Sequence[Row]) -> list[Row]:
    """The few rows for README: sizes of the given pairs, how many of our own reach the same, and the worst of everything else, named."""
    named = {row.what: row for row in rows}
    summary = [row for item in results if item.pair.is_given and (row := named.get(f"{item.pair.name}: size"))]
    for change in MADE_TARGETS:
        own = [item.pair for item in results if (item.pair.format, item.pair.change, item.pair.is_given) == ("int8", change, False)]
        found = [row for pair in own if (row := named.get(f"{pair.name}: size"))]
        if found:
            what = f"{change}, own pairs as much smaller as the given ones have to be (of {len(found)})"
            summary.append(measure(what, ours=[sum(row.met for row in found)], unit="pairs", target=OWN))
    summary += worst(tflite_rows(results), "TFLite, own pairs: ratio of size, over that of the same change in ONNX")
    for what in ("above the full download", "decode MB/s", "decode memory MB"):
        summary += worst([row for row in rows if row.what.endswith(f": {what}")], f"delta of any pair: {what}")
    return summary


def tflite_rows(results: Sequence[Measured]) -> list[Row]:
    """Per TFLite pair: how its ratio against the best tool relates to that of the same change in ONNX."""
    times = {item.pair.name: item.times for item in results}
    return [
        measure(f"{item.pair.name}: ratio over that in ONNX", ours=[item.times / twin], unit="", target=TFLITE)
        for item in results
        if item.pair.format == "tflite" and item.times and (twin := times.get(item.pair.twin))
    ]


def worst(rows: Sequence[Row], what: str) -> list[Row]:
    """The row furthest from its bound under a new name, as a list; nothing of nothing."""
    if not rows:
        return []
    row = max(rows, key=strain)
    return [replace(row, what=f"{what} (worst of {len(rows)}: {row.what.split(':')[0]})")]


def strain(row: Row) -> float:
    """How hard a row presses its bound: above 1 it is missed."""
    relation, bound = row.target.split()
    value = row.ours if row.ratio is None else row.ratio
    return value / float(bound) if relation == "<=" else float(bound) / max(value, 1e-9)


# --- the record and the line on the screen ---


def line_of(measured: Measured) -> str:
    """One pair on one line."""
    ours = measured.ours
    tools = " ".join(f"{name} {trials[0].size}" for name, trials in measured.trials.items())
    times = "" if measured.times is None else f" {measured.times:.2f}x smaller (wanted {measured.pair.times or '-'}x)"
    speed, memory, encode = statistics.median(ours.speeds), max(ours.memories), statistics.median(use.cpu_s for use in ours.encodes)
    return (
        f"{measured.pair.name}: {ours.size} B (method {ours.method}){times}; entropy {measured.entropy:.0f}, full {measured.full}, "
        f"{tools}; encode {encode:.2f} s, decode {speed:.0f} MB/s, {memory:.1f} MB"
    )


def peer_document(peer: Peer) -> dict[str, object]:
    """A tool: what ran, or why it did not."""
    return {"name": peer.name, "version": peer.version, "missing": peer.missing, "settings": [item.name for item in peer.variants]}


def pair_document(measured: Measured) -> dict[str, object]:
    """Everything that was measured of one pair; medians of CPU seconds and MiB."""
    pair, ours = measured.pair, measured.ours
    return {
        "name": pair.name,
        "change": pair.change,
        "format": pair.format,
        "is_given": pair.is_given,
        "old": {"file": pair.old.name, "length": pair.old.stat().st_size, "sha256": hashlib.sha256(pair.old.read_bytes()).hexdigest()},
        "new": {"file": pair.new.name, "length": pair.new.stat().st_size, "sha256": hashlib.sha256(pair.new.read_bytes()).hexdigest()},
        "weights_changed": round(measured.changed, 4),
        "entropy_bytes": round(measured.entropy),
        "full_bytes": measured.full,
        "wanted_times": pair.times,
        "times": measured.times and round(measured.times, 3),
        "best": measured.best and measured.best[0],
        "ours": {
            "size": ours.size,
            "method": ours.method,
            "encode": asdict(median_use(ours.encodes)),
            "decode_mb_s": round(statistics.median(ours.speeds), 1),
            "decode_memory_mb": round(max(ours.memories), 2),
        },
        "tools": {
            name: {
                "setting": trials[0].variant,
                "size": trials[0].size,
                "encode": asdict(median_use([trial.encode for trial in trials])),
                "decode": asdict(median_use([trial.decode for trial in trials])),
            }
            for name, trials in measured.trials.items()
        },
        "failed": measured.failed,
    }


def median_use(uses: Sequence[Use]) -> Use:
    """The median of CPU seconds and of memory."""
    return Use(round(statistics.median(use.cpu_s for use in uses), 4), round(statistics.median(use.memory_mib for use in uses), 1))
