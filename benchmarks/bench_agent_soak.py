"""A million frames through the real inference pipeline in one process: its memory, files and threads at the end and near the start.

MOORING_BENCH_FRAMES: how many (1,000,000). The first tenth warms allocators up; growth is counted from its end, medians of many readings.
Needs the shared data folder (MOORING_DATA).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.agent.per_frame import pipeline_on
from benchmarks.agent.slots import DATA, VWW_INT8, make_slot
from benchmarks.agent.whole import ENVIRONMENT
from benchmarks.record import measure, write

FRAMES = int(os.environ.get("MOORING_BENCH_FRAMES", "1000000"))
WARM = 0.1
READINGS, READING_S = 40, 0.05
MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Moment:
    """The process after so many frames."""

    frames: int
    seconds: float
    rss_mib: float
    files: int
    threads: int


def look(frames: int, began_s: float) -> Moment:
    """The median of some readings."""
    pause, readings = threading.Event(), []
    for _ in range(READINGS):
        readings.append(int(Path("/proc/self/statm").read_text().split()[1]) * MIB)
        pause.wait(READING_S)
    files, threads = len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
    return Moment(frames, time.monotonic() - began_s, statistics.median(readings), files, threads)


def soak(slot: Path) -> list[Moment]:
    """The moments after the first tenth, after every further tenth, and at the end."""
    moments, began_s, pause = [], time.monotonic(), threading.Event()
    with pipeline_on(slot, fps=0) as pipeline:
        for tenth in range(1, 11):
            while (frames := pipeline.count().inferred) < FRAMES * tenth / 10:
                pause.wait(0.2)
            moments.append(look(frames, began_s))
    return moments


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps([asdict(moment) for moment in soak(Path(sys.argv[1]))]))
        return 0
    if not VWW_INT8.file.exists():
        print(f"bench-agent-soak: skipped, {DATA} is missing; set MOORING_DATA to the folder with models and video.")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        slot = make_slot(Path(folder) / "slot", VWW_INT8)
        command = [sys.executable, "-m", "benchmarks.bench_agent_soak", str(slot)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    moments = [Moment(**one) for one in json.loads(result.stdout.splitlines()[-1])]
    first, last = moments[0], moments[-1]
    growth = 100.0 * (last.rss_mib / first.rss_mib - 1.0)
    rows = [
        measure(f"RSS growth over {last.frames:,} frames", ours=[growth], unit="%", target="<= 1"),
        measure("open files more after them", ours=[float(last.files - first.files)], unit="files", target="<= 0"),
        measure("threads more after them", ours=[float(last.threads - first.threads)], unit="threads", target="<= 0"),
    ]
    write("agent_soak", rows, details={"model": VWW_INT8.name, "moments": [asdict(moment) for moment in moments]})
    print(
        f"{last.frames:,} frames in {last.seconds:.0f} s; RSS {first.rss_mib:.1f} MiB after the first tenth, {last.rss_mib:.1f} at the end"
    )
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
