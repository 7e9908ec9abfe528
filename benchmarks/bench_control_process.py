"""What the running agent weighs as a guest: its control process, connected, after one update, over ten minutes, by proportional set size.

MOORING_BENCH_SECONDS: how long it is watched (600). Server, broker and agent are real processes of this machine.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.record import measure, write
from examples.demo.scenario import DIGITS, LINE, make_videos
from examples.demo.tools import find_mosquitto
from examples.demo.world import World

NAME = "cam-1"
SECONDS = float(os.environ.get("MOORING_BENCH_SECONDS", "600"))
SAMPLE_S = 2.0
#: MiB of the control process at most (ROADMAP: ≤ 80 MiB PSS).
TARGET = "<= 80"
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = "[update]\nmin_inferences = 50\nmin_seconds = 2.0\nlatency_noise_ms = 1000.0\n"


def pss_mib(pid: int) -> float:
    """Proportional set size of a process in MiB: shared pages count by how many share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup says no Pss.")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        mosquitto = find_mosquitto(ROOT / ".tools")
        with World(Path(folder) / "w", environment={"MOORING_BROKER__MOSQUITTO": str(mosquitto)}) as world:
            samples = watch(world)
    peak = measure(f"running control process, peak PSS over {SECONDS:g} s", ours=[max(samples)], unit="MiB", target=TARGET)
    median = measure(f"running control process, PSS over {SECONDS:g} s", ours=samples, unit="MiB", target=TARGET)
    write("control_process", [median, peak])
    print(f"{len(samples)} samples, first {samples[0]:.1f}, last {samples[-1]:.1f} MiB")
    return 0 if peak.met else 1


def watch(world: World) -> list[float]:
    """Samples of the control process from its first connection on; the update is checked and installed while they are taken."""
    world.start_server()
    world.admit_people()
    videos, _ = make_videos(world.root, [NAME])
    source = {"kind": "video", "path": str(videos[NAME]), "loop": True}
    pipelines = [{"name": "front", "line": LINE, "source": source, "keep": "events"}]
    golden = DIGITS / "models" / "1.1" / "tflite"
    model = world.import_model(golden / "model.tflite", DIGITS / "tflite.toml", name="digits", golden=golden / "golden.cbor")
    world.release(LINE, "1.1", {model: ["camera"]})
    world.add_agent(NAME, device_type="camera", pipelines=pipelines, settings=SETTINGS)
    world.start_agent(NAME)
    world.await_(lambda: world.device(NAME)["presence"] == "online", timeout_s=120, what="the agent online")
    pid, ends, pause = world.children.pid(NAME), time.monotonic() + SECONDS, threading.Event()
    campaign = world.campaign(LINE, "1.1", group="default", min_inferences=50)
    samples: list[float] = []
    while time.monotonic() < ends:
        world.children.check()
        samples.append(pss_mib(pid))
        pause.wait(SAMPLE_S)
    state = world.updates_of(campaign)[NAME]["state"]
    if state != "updated":
        raise RuntimeError(f"The update is {state!r}, not updated: what was measured is not what was meant.")
    return samples


if __name__ == "__main__":
    sys.exit(main())
