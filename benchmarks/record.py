"""One measured figure beside its peer, and the file it is kept in; `python -m benchmarks.record` puts them into README."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- figures: made by `python -m benchmarks.record`, never typed -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its peer.

    `ratio` = ours / peer of the medians; `spread` = half the range of the ratios of the rounds. `target` bounds the ratio, or our figure
    where there is no peer: "<= x" or ">= x".
    """

    what: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    unit: str
    runs: int
    spread: float
    target: str
    met: bool


def compare(what: str, *, ours: Sequence[float], peer: Sequence[float], peer_name: str, unit: str, target: str) -> Row:
    """The row of interleaved rounds: ours[i] and peer[i] were measured one after the other."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(ours) / statistics.median(peer)
    spread = (max(ratios) - min(ratios)) / 2
    return Row(
        what, statistics.median(ours), statistics.median(peer), peer_name, ratio, unit, len(ratios), spread, target, _is_met(ratio, target)
    )


def measure(what: str, *, ours: Sequence[float], unit: str, target: str) -> Row:
    """The row of a figure that has no peer."""
    median = statistics.median(ours)
    return Row(what, median, None, "", None, unit, len(ours), (max(ours) - min(ours)) / 2, target, _is_met(median, target))


def interleave(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Each measure called once per round, in turn; returns the figures of each measure."""
    figures: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, call in zip(figures, measures, strict=True):
            values.append(call())
    return figures


def write(
    name: str,
    rows: Sequence[Row],
    *,
    headline: Sequence[str] = (),
    details: dict[str, object] | None = None,
    is_printed: bool = False,
) -> Path:
    """Keep the rows as results/<name>.json and print them, unless that was done as they came; returns the file's path.

    `headline` names the rows that README shows where there are too many; `details` are kept beside them, whatever else was measured.
    """
    document: dict[str, object] = {
        "schema": "benchmark.1",
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "rows": [asdict(row) for row in rows],
    }
    document |= {"headline": list(headline)} if headline else {}
    document |= {"details": details} if details else {}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    for row in () if is_printed else rows:
        print(line_of(row))
    return path


def render(documents: Sequence[dict[str, object]]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | ours | peer | ratio | target | met |", "|---|---|---|---|---|---|"]
    for document in documents:
        shown = document.get("headline")
        for item in document["rows"]:  # type: ignore[attr-defined]  # JSON
            row = Row(**item)
            if shown and row.what not in shown:  # type: ignore[operator]  # JSON
                continue
            peer = "–" if row.peer is None else f"{row.peer:.4g} {row.unit} ({row.peer_name})"
            ratio = "–" if row.ratio is None else f"{row.ratio:.2f} ± {row.spread:.2f}"
            lines.append(f"| {row.what} | {row.ours:.4g} {row.unit} | {peer} | {ratio} | {row.target} | {'yes' if row.met else 'no'} |")
    machines = sorted({str(document["machine"]) for document in documents})
    lines += ["", f"Measured on: {'; '.join(machines)}. Median of interleaved rounds ± half the range of their ratios."]
    return "\n".join(lines)


def main() -> int:
    """Write the figures of all results into README.md; `--check` only says whether they are current."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    readme = ROOT / "README.md"
    text = readme.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    new = pattern.sub(lambda _: f"{BEGIN}\n{render(documents)}\n{END}", text)
    if "--check" in sys.argv:
        return int(new != text)
    readme.write_text(new)
    return 0


def _is_met(value: float, target: str) -> bool:
    relation, bound = target.split()
    return {"<=": value <= float(bound), ">=": value >= float(bound)}[relation]


def line_of(row: Row) -> str:
    """The row as it is printed."""
    peer = "" if row.peer is None else f" · {row.peer_name} {row.peer:.4g} · ratio {row.ratio:.3f} ± {row.spread:.3f}"
    return f"{'met   ' if row.met else 'MISSED'} {row.what}: {row.ours:.4g} {row.unit}{peer} · {row.runs} rounds · target {row.target}"


def _commit() -> str:
    result = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _machine() -> str:
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in _cpuinfo())}
    cpu = f"{said.get('model name', platform.machine())}{_vectors(said.get('flags', '').split())}"
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"


def _vectors(flags: Sequence[str]) -> str:
    """What int8 models are fast or slow by on x86-64: processors of one name differ in it."""
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    dots = "with" if {"avx512_vnni", "avx_vnni"} & set(flags) else "without"
    return f" ({wide} {dots} VNNI)" if wide else ""


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
