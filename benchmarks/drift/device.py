"""What drift costs the device that is watched: processor time of all its parts, and memory over numpy.

`python -m benchmarks.drift.device rows SLOT HEIGHT WIDTH`, `… control FOLDER`, `… memory FOLDER sketch|all` each are one measured process
and print what they found as JSON. Rows are made by the device's own sampler of frames of a real video, which a real model infers;
between two rows frames are decoded and inferred, so that caches are as a camera leaves them. The control process' part is its own desk
over its own store, with a clock that goes faster: what 32 features and 20 classes cost it in rows, checks, hours and a fit.
"""

import base64
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VIDEO = "video/car-detection.mp4"
#: Rows that are measured, and frames between two of them.
ROWS, FRAMES_BETWEEN = 150, 8
#: A camera gives so many frames a second: each is looked at whether it is to be a row.
FPS = 30
#: Rows before the measured ones.
WARM_ROWS = 20
DAYS, SUBWINDOWS_PER_DAY, HOURS = 28, 144, 2
DAY_S, HOUR_S, SUBWINDOW_S = 86_400.0, 3600.0, 600.0
#: Ticks of the control loop, seconds.
TICK_S = 0.1
MODEL = "a1" * 16
START = datetime(2026, 3, 1, tzinfo=UTC)


class Stepped:
    """A clock that stands until it is moved."""

    speed = 1.0

    def __init__(self, at: datetime) -> None:
        self._start, self._s = at, 0.0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._s)

    def monotonic(self) -> float:
        return self._s

    def wait(self, event: Any, timeout_s: float) -> bool:
        self._s += timeout_s
        return bool(event.is_set())

    def advance(self, seconds: float) -> None:
        self._s += seconds


def child(*arguments: str | int | Path) -> dict[str, Any]:
    """What a measured process of its own printed. Numpy gets one thread, as the agent gives it."""
    environment = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PYTHONPYCACHEPREFIX"] = str(ROOT / ".cache" / "drift" / "bytecode")  # without it a first import weighs its compiler too
    command = [sys.executable, "-m", "benchmarks.drift.device", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- rows, in the inference process ---


def bring_profile(slot: Path, frames: list[Any]) -> None:
    """Give the slot a profile whose grid is of these frames, at the default step."""
    import numpy as np

    from protocol.files import digest_of_file
    from protocol.sketches.counts import Sketcher
    from protocol.sketches.grid import STEPS_S, Grid, fit_feature
    from protocol.sketches.profile import FILE_NAME, ModelProfile, encode_profile
    from runtime.answers import Classification, ClassScore
    from runtime.features import Extractor, group_of
    from runtime.manifest import FileEntry, load_manifest, to_bytes
    from runtime.preprocess import Preprocessor, compile_plan

    manifest = load_manifest(slot / "manifest.json")
    extractor, preprocessor, chance = Extractor(manifest), Preprocessor(compile_plan(manifest)), np.random.default_rng(1)
    described, rows = manifest.outputs[0], []
    for frame in frames:
        answer = Classification((ClassScore("class 0", 0, float(chance.uniform(0.2, 0.99))),))
        scores = chance.integers(0, 255, described.shape).astype(described.dtype)
        rows.append(extractor.row(preprocessor.run(frame), answer, outputs={described.name: scores}, size=frame.shape[:2]).copy())
    values = np.array(rows)
    names = extractor.names
    features = tuple(fit_feature(name, group_of(name), np.nan_to_num(values[:, at]), 32) for at, name in enumerate(names))
    grid = Grid(features, tuple(f"class {index}" for index in range(2)), STEPS_S[0], 0)
    sketcher = Sketcher(grid)
    for row in values:
        sketcher.add(row, 0)
    path = slot / FILE_NAME
    path.write_bytes(encode_profile(ModelProfile(grid, sketcher.take())))
    entry = FileEntry(sha256=digest_of_file(path), length=path.stat().st_size)
    (slot / "manifest.json").write_bytes(to_bytes(replace(manifest, files={**manifest.files, FILE_NAME: entry})))


def measure_rows(slot: Path, height: int, width: int) -> dict[str, Any]:
    """Processor milliseconds of the inference process: of a row, of looking at a frame that is none, and of an inference beside them."""
    from agent.config import RuntimeConfig
    from agent.inference.engine import Line
    from agent.inference.hearing import FROM_WORKER
    from agent.inference.marks import Marks, new_memory
    from agent.inference.messages import Sampled
    from agent.inference.rows import RowBudget, RowSampler
    from benchmarks.agent.slots import DATA
    from protocol.clock import SystemClock

    frames = _frames(DATA / VIDEO, height, width)
    if not (slot / "profile.cbor").exists():
        bring_profile(slot, [next(frames) for _ in range(200)])
    line = Line("bench", marks=Marks(new_memory()), now=SystemClock().monotonic)
    swap = line.activate(slot, RuntimeConfig(threads=1))
    if not swap.ok:
        raise RuntimeError(swap.text)
    clock, sent = Stepped(START), list[Sampled]()

    def send(row: Sampled) -> bool:
        sent.append(row)
        return True

    dice = random.Random(1)  # noqa: S311 - the same instants each time
    sampler = RowSampler("front", "bench", clock=clock, budget=RowBudget(1e9), send=send, chance=dice)
    sampler.watch(0)
    rows_ms, glances_ms, inferred_ms, written_ms = list[float](), list[float](), list[float](), list[float]()
    while len(rows_ms) < ROWS + WARM_ROWS:
        for number in range(FRAMES_BETWEEN):
            frame = next(frames)
            clock.advance(1.0 / FRAMES_BETWEEN)
            spent_s = -time.thread_time()
            glimpse = sampler.begin(line.watched)
            spent_s += time.thread_time()
            began_s = time.thread_time()
            line.infer(frame, session=1, pipeline="front", at_ms=number, glimpse=glimpse)
            inferred_ms.append((time.thread_time() - began_s) * 1e3)
            if glimpse is None:
                glances_ms.append(spent_s * 1e3)
                continue
            spent_s -= time.thread_time()
            if glimpse.watched is None or glimpse.answer is None:
                raise RuntimeError("the model left no copies")
            glimpse.take(  # once more what the inference has done, to know what it takes
                glimpse.watched,
                glimpse.tensor.copy(),
                answer=glimpse.answer,
                outputs=glimpse.outputs,
                size=glimpse.size,
                readings=glimpse.readings,
            )
            sampler.finish(glimpse, session=1)
            made_s = time.thread_time()
            FROM_WORKER.dump_json(sent[-1])
            written_ms.append((time.thread_time() - made_s) * 1e3)
            rows_ms.append((spent_s + time.thread_time()) * 1e3)
    fault = next((row.fault for row in sent if row.fault), "")
    if fault:
        raise RuntimeError(fault)
    return {
        "row ms": _median(rows_ms[WARM_ROWS:]),
        "row ms, mean": sum(rows_ms[WARM_ROWS:]) / ROWS,
        "of it written ms": _median(written_ms),
        "frame that is no row ms": _median(glances_ms),
        "inference ms": _median(inferred_ms),
        "features": len(line.watched.grid.features) if line.watched else 0,
        "fitting step s": sent[-1].fitting_step_s,
    }


def _frames(path: Path, height: int, width: int) -> Any:
    import cv2

    while True:
        capture = cv2.VideoCapture(str(path))
        while (read := capture.read())[0]:
            yield cv2.cvtColor(cv2.resize(read[1], (width, height)), cv2.COLOR_BGR2RGB)
        capture.release()


# --- counting, in the control process ---


def prepare(folder: Path) -> None:
    """The state of a device that has watched for 28 days: its store, with a calibrated reference, and the rows of some hours to come."""
    import numpy as np

    from agent.drift import check
    from agent.drift.store import CheckRow, DriftStore, Flag, Subject
    from agent.drift.windows import begin, row_of
    from agent.inference.hearing import FROM_WORKER
    from agent.inference.messages import Quality, Sampled
    from agent.store import Store
    from benchmarks.drift.costs import grid as make_grid
    from protocol.sketches.reference import fit_reference
    from protocol.sketches.summary import summary

    grid, clock, chance = make_grid(), Stepped(START), np.random.default_rng(3)
    subject, today = Subject("front", MODEL, grid.grid_id.hex()), int(START.timestamp() // SUBWINDOW_S)
    store = Store(folder / "outbox.db", clock=clock)
    rows, made, vectors = DriftStore(store, clock), [], []
    for w0 in range(today - DAYS * SUBWINDOWS_PER_DAY, today):
        window, weather = begin(subject, grid, w0), chance.normal(0, 0.1, len(grid.features))
        for values in chance.normal(weather, 1, (60, len(grid.features))).astype(np.float32):
            window.add(values, (grid.classes[int(chance.integers(len(grid.classes)))],))
        vectors.append(summary(window.counts(), grid))
        made.append(row_of(window, flags=Flag.TESTABLE))
    w0s = np.array([row.w0 for row in made], np.int64)
    reference = fit_reference(np.array(vectors), w0s, grid=grid, model=bytes.fromhex(MODEL))
    rows.keep_grid(subject.grid, grid.encoded)
    rows.save_windows([_sent(row) for row in made])
    state = check.CheckState(1.0, days=DAYS, usual_rows=60.0, origin=check.OWN, from_w0=today - DAYS, is_told=True)
    rows.save_check(CheckRow(subject, check.to_json(state), reference.encoded))
    store.close()
    (folder / "grid").write_bytes(grid.encoded)
    (folder / "reference").write_bytes(reference.encoded)
    with (folder / "rows").open("w") as file:
        for number in range(round(HOURS * HOUR_S)):
            values = chance.normal(0, 1, len(grid.features)).astype("<f4")
            row = Sampled(
                pipeline="front",
                line="bench",
                release="1.0",
                folder="/unused",
                model=MODEL,
                grid=subject.grid,
                at_s=number + 0.5,
                step_s=1.0,
                values=base64.b64encode(values.tobytes()).decode(),
                labels=(grid.classes[int(chance.integers(len(grid.classes)))],),
                size=(480, 640),
                quality=Quality(120.0, 40.0, f"{number:x}", 0, 0),
                fitting_step_s=1,
            )
            file.write(FROM_WORKER.dump_json(row).decode() + "\n")


def _sent(row: Any) -> Any:
    from dataclasses import replace

    return replace(row, sent="before")


def _desk(folder: Path, clock: Stepped) -> Any:
    from agent.config import DriftConfig, PipelineConfig
    from agent.drift.desk import DriftDesk
    from agent.store import Store

    desk = DriftDesk(
        Store(folder / "outbox.db", clock=clock), clock=clock, device="cam-1", source="/mooring/t0/cam-1", has_profile=lambda _: True
    )
    pipeline = {"name": "front", "line": "bench", "source": {"kind": "video", "path": "/unused"}}
    desk.configure(DriftConfig(), [PipelineConfig.model_validate(pipeline)])
    return desk


def measure_control(folder: Path) -> dict[str, Any]:
    """Processor seconds of the control process: of reading a row, of ticks, of the end of a sub-window, of an hour, of a fit."""
    from agent.drift import references
    from agent.inference.hearing import FROM_WORKER

    clock = Stepped(START)
    desk, w0 = _desk(folder, clock), int(START.timestamp() // SUBWINDOW_S)
    ticks_per_s = round(1 / TICK_S)
    spent = {"reading a row": 0.0, "ticks": 0.0, "ends of sub-windows": 0.0}
    ends = 0
    with (folder / "rows").open("rb") as file:
        for line in file:
            for tick in range(ticks_per_s):
                clock.advance(TICK_S)
                began_s = time.process_time()
                if tick == ticks_per_s // 2:
                    desk.add(FROM_WORKER.validate_json(line))
                    spent["reading a row"] += time.process_time() - began_s
                    began_s = time.process_time()
                desk.tick(is_clock_set=True)
                desk.steps()
                desk.findings()
                _ = desk.revision
                is_end = clock.now().timestamp() // SUBWINDOW_S > w0
                ends, w0 = ends + is_end, w0 + is_end
                spent["ends of sub-windows" if is_end else "ticks"] += time.process_time() - began_s
    seconds = HOURS * HOUR_S
    watch = desk._watch  # noqa: SLF001 - the fit is asked for by days that this run does not wait for
    (watched,) = watch._watched.values()  # noqa: SLF001 - see above
    fits = []
    for _ in range(3):
        began_s = time.process_time()
        references.own_fit(watch._rows, watched, int(START.timestamp() // SUBWINDOW_S), is_indoor=False)()  # noqa: SLF001 - see above
        fits.append(time.process_time() - began_s)
    if watched.state.judged_w0 < START.timestamp() // SUBWINDOW_S + HOURS * 6 - 2 or watched.state.score is None:
        raise RuntimeError("the sub-windows were not judged")
    return {
        "reading a row, share": spent["reading a row"] / seconds,
        "ticks, share": spent["ticks"] / seconds,
        "ends of sub-windows, share": spent["ends of sub-windows"] / seconds,
        "end of a sub-window ms": spent["ends of sub-windows"] / max(1, ends) * 1e3,
        "fit s": _median(fits),
        "a fit a day, share": _median(fits) / DAY_S,
    }


# --- memory ---


def measure_memory(folder: Path, what: str) -> dict[str, Any]:
    """KiB that this process has more after an hour of rows than with numpy alone: resident, and of it its own (anonymous)."""
    import agent.service  # noqa: F401 - what the control process has anyway: its store, and messages of the inference process
    from agent.inference.hearing import FROM_WORKER

    lines = (folder / "rows").read_bytes().splitlines()[: round(HOUR_S) + 30]
    FROM_WORKER.validate_json(lines[0])
    clock = Stepped(START)
    desk = _desk(folder, clock)
    import numpy as np  # noqa: F401 - what memory is counted from

    before = _memory()
    made = _sketch_an_hour(folder, lines) if what == "sketch" else _watch_an_hour(desk, clock, lines)
    after = _memory()
    grown = {name: after[name] - before[name] for name in after}
    return {
        "resident KiB": grown["all"],
        "of it pages of numpy's own files KiB": grown["numpy"],
        "of it anonymous KiB": grown["own"],
        "rows": made,
    }


def _sketch_an_hour(folder: Path, lines: list[bytes]) -> int:
    """An hour of rows into counts, a window of each ten minutes."""
    import numpy as np

    from protocol.sketches.codec import SketchWindow, Source, encode
    from protocol.sketches.counts import Sketcher
    from protocol.sketches.grid import decode_grid

    grid = decode_grid((folder / "grid").read_bytes())
    sketcher, made, w0 = Sketcher(grid), 0, int(START.timestamp() // SUBWINDOW_S)
    for number, line in enumerate(lines):
        values = np.frombuffer(base64.b64decode(json.loads(line)["values"]), "<f4")
        sketcher.add(values, number % len(grid.classes))
        if number % SUBWINDOW_S == SUBWINDOW_S - 1:
            counts = sketcher.take()
            made += counts.rows
            scores = np.array([np.nan], np.float32)
            encode(SketchWindow("front", grid.grid_id, bytes(16), Source.ACTIVE, w0 + made, 1, 1, counts, scores))
    return made


def _watch_an_hour(desk: Any, clock: Stepped, lines: list[bytes]) -> int:
    """An hour of rows through the desk of the control process, each sub-window judged and kept, the hour sent."""
    from agent.inference.hearing import FROM_WORKER

    for line in lines:
        clock.advance(0.5)
        desk.add(FROM_WORKER.validate_json(line))
        clock.advance(0.5)
        desk.tick(is_clock_set=True)
    (row,) = desk.body()["pipelines"]
    if row["score"] is None:
        raise RuntimeError("nothing was judged")
    return len(lines)


def _memory() -> dict[str, int]:
    """Resident KiB of this process: all, what belongs to no file, and pages of numpy's own files, which come as they are used."""
    found, path = {"all": 0, "own": 0, "numpy": 0}, b""
    with Path("/proc/self/smaps").open("rb", buffering=4096) as lines:  # line by line: what looking takes is what it would miss afterwards
        for line in lines:
            name, *values = line.split()
            if not name.endswith(b":"):
                path = values[4] if len(values) > 4 else b""
            elif name == b"Rss:":
                found["all"] += int(values[0])
                found["numpy"] += int(values[0]) if b"/numpy" in path else 0
            elif name == b"Anonymous:":
                found["own"] += int(values[0])
    return found


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> int:
    """One measured process."""
    kind, path, *rest = sys.argv[1:]
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "rows": lambda: measure_rows(Path(path), int(rest[0]), int(rest[1])),
        "control": lambda: measure_control(Path(path)),
        "memory": lambda: measure_memory(Path(path), rest[0]),
    }
    print(json.dumps(calls[kind]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
