"""`make demo`: the whole loop on this machine, with real processes, without root. See README.

--once runs the story to its end, prints what was verified, and exits 0 only when all of it held.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from examples.demo.own import check_own, run_own
from examples.demo.scenario import Scenario, make_videos, say, stay
from examples.demo.tools import ToolMissingError, find_mosquitto
from examples.demo.world import World, state_root
from protocol.errors import MooringError

ROOT = Path(__file__).resolve().parent.parent.parent
#: How fast the demo's clock runs, and how far back it starts: a day of looking around before it meets the system clock.
SPEED, LAG = 30, timedelta(days=30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = _parser().parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stop))
    try:
        check_own(video=options.video, model=options.model, manifest=options.manifest)
        return _run(options, stop)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0 if not options.once else 130
    except (MooringError, ToolMissingError, RuntimeError) as error:
        print(f"\nThe demo cannot go on: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, stop: threading.Event) -> int:
    mosquitto = find_mosquitto(ROOT / ".tools")
    start = datetime.now(UTC) - LAG
    environment = {
        "MOORING_BROKER__MOSQUITTO": str(mosquitto),
        "MOORING_CLOCK": f"{start.isoformat()},{SPEED},{datetime.now(UTC).isoformat()}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    shutil.rmtree(ROOT / ".demo", ignore_errors=True)
    root = state_root(ROOT / ".demo")
    with World(root, environment=environment) as world:
        say(f"Starting the server and its broker (state in {root}; the clock runs {SPEED}x)")
        world.start_server()
        world.admit_people()
        print(f"  console: {world.console_url}\n  logins:  " + ", ".join(f"{name} / {word}" for name, word in world.login.items()))
        if options.video or options.model or options.camera:
            is_good = run_own(world, video=options.video, model=options.model, manifest=options.manifest, is_camera=options.camera)
        else:
            videos, truth = make_videos(root, ["cam-1", "cam-2", "gate-1"])
            scenario = Scenario(world, videos, truth)
            scenario.run()
            is_good = _summary(scenario)
        if not options.once:
            say(f"Still running: {world.console_url} (Ctrl-C ends it)")
            stay(stop, world.children.check)
    return 0 if is_good else 1


def _summary(scenario: Scenario) -> bool:
    rows = scenario.report.rows
    width = max(len(what) for what, _, _ in rows)
    print("\nVerified:")
    for what, held, seen in rows:
        print(f"  {'ok  ' if held else 'FAIL'}  {what:<{width}}  {seen}")
    print(f"\n{sum(held for _, held, _ in rows)} of {len(rows)} held.")
    return scenario.report.is_good


def _interrupt(stop: threading.Event) -> None:
    stop.set()
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description="The whole loop on this machine.")
    parser.add_argument("--once", action="store_true", help="run the story, verify, exit")
    parser.add_argument("--video", type=Path, help="your video file")
    parser.add_argument("--model", type=Path, help="your .onnx or .tflite model")
    parser.add_argument("--manifest", type=Path, help="what you say of the model: TOML or JSON, see docs/manifest.md")
    parser.add_argument("--camera", action="store_true", help="use /dev/video0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
