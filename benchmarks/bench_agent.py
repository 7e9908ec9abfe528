"""The inference engine beside bare runtimes: CPU per frame, frames per second, a 1080p camera, memory, starts, shadows, serving.

Needs the shared data folder (MOORING_DATA); without it, and for rows whose tools are missing, it says what was left out and why.
MOORING_BENCH_ROUNDS: rounds of each row (5).
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.agent import fallback, oip, per_frame, shadow, whole
from benchmarks.agent.slots import DATA, MBS_ONNX, MOBILENET, RN_ONNX, VWW_FLOAT, VWW_INT8, BenchModel, make_slot
from benchmarks.record import ROOT, Row, compare, interleave, line_of, measure, write
from examples.demo.scenario import DIGITS
from examples.demo.tools import find_mosquitto
from examples.demo.world import World

ROUNDS = int(os.environ.get("MOORING_BENCH_ROUNDS", "5"))
VIDEO = DATA / "video" / "car-detection.mp4"
#: Model, frames per second of a camera that would use it, row, and how much of the bare loop's CPU ours may take.
PER_FRAME: tuple[tuple[BenchModel, int, str, str], ...] = (
    (MOBILENET, 30, "cpu per frame 9 ms", "<= 1.03"),
    (RN_ONNX, 50, "cpu per frame 1 ms", "<= 1.10"),
    (VWW_FLOAT, 100, "cpu per frame 0.3 ms", "<= 1.25"),
    (VWW_INT8, 100, "cpu per frame 0.3 ms, int8", "<= 1.25"),
    (MBS_ONNX, 100, "cpu per frame 0.3 ms, onnx", "<= 1.25"),
)
SECONDS = 4.0
#: Of each process that is measured per frame.
TURNS = 4
#: MiB for everything that is not the inference process.
MIB_FOR_CONTROL = 64.0


class Slots:
    """One slot folder per model."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, model: BenchModel) -> Path:
        folder = self._root / model.name
        return folder if folder.exists() else make_slot(folder, model)


def per_frame_rows(slots: Slots, details: dict[str, object]) -> list[Row]:
    """As fast as frames are inferred, and at a camera's pace, where caches are cold and threads must be woken."""
    rows = []
    for model, fps, name, target in PER_FRAME:
        for pace, label in ((0, name), (fps, f"{name}, {fps} frames/s")):
            found = per_frame.measure(slots.of(model), fps=pace, turns=TURNS, rounds=3 * ROUNDS)
            ours, bare = [one.ours_ms for one in found], [one.bare_ms for one in found]
            rows.append(compare(label, ours=ours, peer=bare, peer_name=f"bare {model.name}", unit="ms", target=target))
            fed = [one.fed_ms for one in found]
            rows.append(
                compare(f"{label}, of fed", ours=ours, peer=fed, peer_name=f"{model.name} and preprocessing", unit="ms", target=target)
            )
            details[f"{label}: control process ms per prediction"] = [round(one.control_ms, 4) for one in found]
    return rows


def rate_rows(slots: Slots) -> list[Row]:
    """End to end against the slower of decoding and inferring alone."""
    slot = slots.of(MOBILENET)
    seconds = SECONDS / 2  # often and short: the speed of a machine that others use too changes within seconds
    ours, decode, infer = interleave(
        4 * ROUNDS,
        lambda: whole.peer("pipeline", slot, VIDEO, seconds)["fps"],
        lambda: whole.peer("decode", VIDEO, seconds)["fps"],
        lambda: whole.peer("infer", slot, seconds, 0)["fps"],
    )
    slower = [min(pair) for pair in zip(decode, infer, strict=True)]
    return [compare("frames per second", ours=ours, peer=slower, peer_name="slower of bare stages", unit="1/s", target=">= 0.95")]


def camera_rows(slots: Slots, big: Path, details: dict[str, object]) -> list[Row]:
    """A 1080p H.264 camera of which five frames per second are inferred."""
    slot, seconds = slots.of(MOBILENET), 2 * SECONDS
    shares: list[whole.Share] = []

    def ours() -> float:
        shares.append(whole.camera_share(slot, big, seconds))
        return shares[-1].share

    def bare() -> float:
        return whole.ffmpeg_share(big, seconds) + whole.peer("infer", slot, seconds, whole.INFERRED_FPS)["share"]

    used, peer = interleave(ROUNDS, ours, bare)
    details["cpu per camera 1080p: inferred frames per second"] = [round(one.inferred_fps, 2) for one in shares]
    return [
        compare("cpu per camera 1080p", ours=used, peer=peer, peer_name="ffmpeg -threads 1 + bare runtime", unit="cores", target="<= 1.10"),
        measure("cameras per core, 1080p", ours=[1.0 / share for share in used], unit="cameras", target=">= 1"),
    ]


def start_rows(slots: Slots) -> list[Row]:
    """The first answer and memory, for both runtimes."""
    rows = []
    for model, name in ((VWW_INT8, "tflite"), (MBS_ONNX, "onnx")):
        slot, seconds = slots.of(model), SECONDS
        firsts: list[dict[str, float]] = []

        def bare_cpu(slot: Path = slot, firsts: list[dict[str, float]] = firsts) -> float:
            firsts.append(whole.first(slot))
            return firsts[-1]["cpu_s"]

        cold, bare = interleave(ROUNDS, lambda slot=slot: whole.cold_start(slot, VIDEO), bare_cpu)  # type: ignore[misc]  # bound early
        label = "cold start" if name == "tflite" else f"cold start, {name}"
        rows.append(compare(label, ours=cold, peer=bare, peer_name="bare import + first inference", unit="s CPU", target="<= 3"))
        memory = [whole.inference_pss(slot, VIDEO, seconds) for _ in range(ROUNDS)]
        label = "pss" if name == "tflite" else f"pss, {name}"
        peer = [one["pss_mib"] for one in firsts]
        rows.append(compare(label, ours=memory, peer=peer, peer_name="bare runtime + numpy", unit="MiB", target="<= 1.6"))
    return rows


def unit_rows(mosquitto: Path, root: Path) -> list[Row]:
    """All processes of an agent that is enrolled, connected and infers, beyond what the inference process may take."""
    slot = DIGITS / "models" / "1.1" / "tflite"
    bare = whole.first(slot)["pss_mib"]
    with World(root / "w", environment={"MOORING_BROKER__MOSQUITTO": str(mosquitto)}) as world:
        unit = whole.unit_pss(world, SECONDS)
    target = f"<= {MIB_FOR_CONTROL:g}"
    return [measure("pss of the unit beyond 1.6 x bare", ours=[unit - 1.6 * bare], unit="MiB", target=target)]


def shadow_rows(details: dict[str, object]) -> list[Row]:
    """The champion beside an idle-priority shadow, and the shadow beside its budget."""
    found = [shadow.measure_shadow(rounds=2, seconds=SECONDS) for _ in range(ROUNDS)]
    ours, peer = [one.p99_with for one in found], [one.p99_without for one in found]
    details["shadow"] = [asdict(one) for one in found]
    off = [abs(one.cpu_of_budget - 1.0) for one in found]
    return [
        compare("p99 with shadow", ours=ours, peer=peer, peer_name="the same without", unit="ms", target="<= 1.2"),
        measure("shadow CPU off its budget", ours=off, unit="", target="<= 0.1"),
    ]


def oip_rows(details: dict[str, object]) -> list[Row]:
    """Requests per second beside MLServer."""
    rows, figures = oip.rows(rounds=ROUNDS)
    details |= figures
    return rows


def fallback_rows(details: dict[str, object]) -> list[Row]:
    """Seconds without inference after a death, by kind; the row is the slowest kind."""
    found = fallback.measure_fallback(rounds=2 * ROUNDS)
    details["fallback, s"] = found
    slowest = max(value for name, value in found.items() if name.endswith(("prediction", "next back end")))
    return [measure("fallback seconds", ours=[slowest], unit="s", target="<= 2")]


def main() -> int:
    if not VIDEO.exists():
        print(f"bench-agent: skipped, {DATA} is missing; set MOORING_DATA to the folder with models and video.")
        return 0
    for name in (whole.NO_BYTE_CODE, oip.SERVING_VARIABLE):  # a server of ours takes no settings that it does not know
        os.environ.pop(name, None)
    rows: list[Row] = []
    details: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        slots = Slots(root)
        parts: list[Callable[[], Sequence[Row]]] = [
            lambda: per_frame_rows(slots, details),
            lambda: rate_rows(slots),
            lambda: start_rows(slots),
        ]
        if shutil.which("ffmpeg"):
            big = whole.make_1080p(VIDEO, root / "camera.mp4")
            parts.append(lambda: camera_rows(slots, big, details))
        else:
            print("bench-agent: left out `cpu per camera 1080p`: ffmpeg is not installed (apt install ffmpeg)")
        parts += [lambda: shadow_rows(details), lambda: fallback_rows(details)]
        if mosquitto := find_mosquitto(ROOT / ".tools"):
            parts.append(lambda: unit_rows(mosquitto, root))
        if oip.SERVING_PYTHON.is_file():
            parts.append(lambda: oip_rows(details))
        else:
            print("bench-agent: left out `oip throughput`: MLServer is not installed (make serving-tools)")
        for part in parts:
            found = part()
            rows += found
            for row in found:  # a later part may fail, and these took minutes
                print(line_of(row), flush=True)
    headline = ["cpu per frame 9 ms", "cpu per frame 1 ms", "cpu per frame 0.3 ms", "frames per second", "cpu per camera 1080p", "pss"]
    headline += [
        "pss of the unit beyond 1.6 x bare",
        "cold start",
        "p99 with shadow",
        "oip throughput 1",
        "oip throughput 8",
        "fallback seconds",
    ]
    write("agent", rows, headline=headline, details=details, is_printed=True)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
