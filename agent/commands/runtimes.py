"""What can run models here, and on how many threads and which provider they run best."""

import argparse
from typing import Any

from agent.commands.output import Out, answer
from agent.commands.settings import load
from protocol.errors import NotFoundError


def probe(options: argparse.Namespace) -> int:
    """Try every runtime and wanted provider, and print how it went."""
    from agent.inference.options import backend_options
    from runtime.probe import probe_environment

    config = load(options).config
    cache = config.state_dir / "probe" if config.state_dir.is_dir() else None
    if cache is not None:
        cache.mkdir(exist_ok=True)
    found = [
        {"name": one.name, "version": one.version, "state": one.state.value, "text": one.text[:2000]}
        for one in probe_environment(cache, options=backend_options(config.runtime))
    ]
    rows = [f"{one['name']:22} {one['state']:10} {one['version']:10} {one['text']}" for one in found]
    answer(options, found, lambda out: out("\n".join(rows)))
    return 0


def autotune(options: argparse.Namespace) -> int:
    """Measure the models that this device has, also those that have nothing to gain."""
    from dataclasses import asdict

    from agent.inference.tuner import USUAL_FPS, Tuner
    from agent.slots import Slots
    from protocol.ids import LineName

    config = load(options).config
    slots, tuner = Slots(config.slots_dir), Tuner(config.runtime, config.state_dir / "probe")
    pipelines = [one for one in config.pipelines if options.pipeline in (None, one.name)]
    if options.pipeline is not None and not pipelines:
        names = ", ".join(one.name for one in config.pipelines) or "none"
        raise NotFoundError(f"There is no pipeline {options.pipeline!r}.", hint=f"The settings name: {names}. Or name its line: --line.")
    wanted = {options.line} if options.line else {one.line for one in pipelines} if options.pipeline else set(slots.lines())
    found = []
    for line in sorted(wanted):
        slot = slots.active(LineName(line))
        if slot is None:
            raise NotFoundError(f"Line {line!r} has no active model.", hint="Assign a release to this device first.")
        rates = [one.max_fps or USUAL_FPS for one in config.pipelines if one.line == line]
        frame_ms = 1000.0 / max(rates, default=USUAL_FPS)
        tuning = tuner.tune(slot.folder, tuner.wishes(frame_ms, options.seconds or config.runtime.autotune_s))
        found.append({"line": line, "frame_ms": frame_ms, **asdict(tuning)})

    def show(out: Out) -> None:
        for one in found:
            _show_tuning(one, out)
        if not found:
            out("This device has no models yet.")

    answer(options, found, show)
    return 0


def _show_tuning(found: dict[str, Any], out: Out) -> None:
    out(f"{found['line']}: {found['text']} ({found['wall_s']:.1f} s, {found['cpu_s']:.1f} s of processor)")
    for match in found["matches"]:
        setup, speed, default = match["setup"], match["speed"], match["default"]
        name = f"{setup['candidate']} x{setup['threads']}"
        if speed is None:
            out(f"  {name:26} {match['text']}")
            continue
        figures = [
            f"{label} {one['cpu_ms']:.3g}/{one['p50_ms']:.3g}/{one['p99_ms']:.3g}" for label, one in (("", speed), ("default", default))
        ]
        out(f"  {name:26}{', '.join(figures)} ms of processor/p50/p99")
    if found["setup"] != found["default"]:
        out("  It is used from the next start of this model on: with the next release, or systemctl restart mooring-agent.")
