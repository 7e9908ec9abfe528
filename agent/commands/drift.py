"""What is watched in front of the models: shown, and copied into a file for the server."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.commands.output import Out, answer
from agent.commands.settings import load
from protocol.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from agent.drift.store import Subject, SubWindowRow

#: `DriftPipeline.grade` in words.
_GRADES = {
    "off": "not watched (setting drift.enabled)",
    "none": "not watched: its release brings no reference profile",
    "collecting": "learning what is normal here",
    "provisional": "watched by a provisional reference",
    "calibrated": "watched",
}


def show(options: argparse.Namespace) -> int:
    """Print what the running agent knows. Raises: TransferError when none runs."""
    from agent.control import ask

    found = ask(load(options).config.control_socket, "drift")
    answer(options, found, lambda out: show_drift(found, out))
    return 0


def record(options: argparse.Namespace) -> int:
    """Copy the kept sub-windows into a file that the device signs.

    Raises: DeviceError when it is not enrolled; NotFoundError when there are none; ConfigError when the file cannot be written.
    """
    from agent.drift.store import SUBWINDOWS_PER_DAY, read_windows
    from agent.identity import load_identity
    from protocol.clock import from_environment, to_unix_ms
    from protocol.recordings import sign_recording
    from protocol.sketches.recording import encode_recording
    from protocol.sketches.reference import PROVISIONAL_DAYS

    config, now = load(options).config, from_environment().now()
    identity = load_identity(config.identity_dir)
    since = int(now.timestamp() // 600) - options.days * SUBWINDOWS_PER_DAY
    rows, grids = read_windows(config.store_path, since=since, pipeline=options.pipeline)
    rows = [row for row in rows if row.rows]
    if not rows:
        raise _nothing(options, {row.subject.pipeline for row in read_windows(config.store_path, since=since)[0] if row.rows})
    used = {row.subject.grid for row in rows}
    body = encode_recording({name: body for name, body in grids.items() if name in used}, (row.body for row in rows))
    data = sign_recording(identity.signing_key(), body, device=identity.device, tenant=identity.tenant, recorded_at_ms=to_unix_ms(now))
    try:
        options.output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{options.output} cannot be written: {error.strerror}.") from None
    days = _complete_days(rows)
    pipelines = sorted({row.subject.pipeline for row in rows})
    said = {"file": str(options.output), "bytes": len(data), "subwindows": len(rows), "pipelines": pipelines, "device": identity.device}
    text = f"{len(rows)} sub-windows of {', '.join(pipelines)} in {options.output}, signed by {identity.device}. "
    if enough := [name for name in pipelines if days[name] >= PROVISIONAL_DAYS]:
        text += f"At the server: mooring drift reference import {identity.device} FILE --pipeline {enough[0]}"
    else:
        text += (
            f"A server learns no reference from it yet: {', '.join(f'{name} has {days[name]}' for name in pipelines)} "
            f"complete days, wanted {PROVISIONAL_DAYS}. Record again when the device has watched for longer."
        )
    answer(options, {**said, "complete_days": days}, lambda out: out(text))
    return 0


def _nothing(options: argparse.Namespace, others: set[str]) -> NotFoundError:
    """Why there is nothing to record, with the pipelines of which there is something."""
    hint = "`mooring-agent drift show` says what is watched; a sub-window takes ten minutes."
    whose = f" of pipeline {options.pipeline}" if options.pipeline else ""
    if others:
        hint = f"There are some of {', '.join(sorted(others))}."
    return NotFoundError(f"No sub-windows{whose} of the last {options.days} days are kept here.", hint=hint)


def _complete_days(rows: "Sequence[SubWindowRow]") -> dict[str, int]:
    """Per pipeline the complete days of the model version of which there are most, were every sub-window of them clean."""
    import numpy as np

    from protocol.sketches.codec import Source
    from protocol.sketches.reference import complete_days

    places: dict[Subject, list[int]] = {}
    found = {row.subject.pipeline: 0 for row in rows}
    for row in rows:
        if row.subject.src == Source.ACTIVE:
            places.setdefault(row.subject, []).append(row.w0)
    for subject, w0s in places.items():
        found[subject.pipeline] = max(found[subject.pipeline], len(complete_days(np.array(w0s, np.int64))))
    return found


def show_drift(found: dict[str, Any], out: Out, indent: str = "") -> None:
    """A line per pipeline."""
    for one in found["pipelines"]:
        text = _GRADES.get(one["grade"], one["grade"])
        if one["grade"] == "collecting":
            text += f", {one['days']} of 14 complete days"
        if one["threshold"] is not None:
            text += f", evidence {one['evidence']:.3g} of {one['threshold']:.3g}"
        if one["state"] != "ok":
            names = ", ".join(feature["name"] for feature in one["features"][:3])
            text += f"; DRIFT {one['state']}{_seen_in(one.get('look', ''), one.get('stretch', 0))}: {names}"
        out(f"{indent}drift {one['pipeline']}: {text}")
    if found["lost"]:
        out(f"{indent}drift: {found['lost']} rows were lost or skipped")


def _seen_in(look: str, stretch: int) -> str:
    """Which look found it, in words; stretch in sub-windows."""
    if not stretch:
        return ""
    what = "the shares of classes" if look.startswith("classes") else "the mean"
    return " in ten minutes" if stretch == 1 else f" in {what} of {'an hour' if stretch == 6 else f'{stretch / 6:.3g} hours'}"
