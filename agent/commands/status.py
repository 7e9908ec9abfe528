"""What runs, what is wrong and what waits: asked of the running agent, or read from its files."""

import argparse
import json
from typing import Any

from agent.commands.drift import show_drift
from agent.commands.outbox import read_outbox
from agent.commands.output import Out, answer
from agent.commands.settings import load
from agent.config import AgentConfig
from protocol.errors import MooringError, TransferError

#: The origin of a value that nobody set from afar; there are dozens of them, and whoever looks at a device wants the others.
_OWN = "base"
#: States of an update whose files are not all here; what comes after them has them.
_FETCHING = ("idle", "downloading")
#: `LineState.transfer` in words.
_TRANSFERS = {"delta": "as a delta", "full": "whole", "none": "not at all, it is here"}


def show(options: argparse.Namespace) -> int:
    """Print how the agent is; returns 1 when none runs."""
    from agent.control import ask

    config = load(options).config
    try:
        found = ask(config.control_socket, "status") | {"running": True}
    except TransferError:
        found = _status_from_files(config)
    answer(options, found, lambda out: _show_status(found, out))
    return 0 if found["running"] else 1


def _status_from_files(config: AgentConfig) -> dict[str, Any]:
    """What the files say while no agent runs."""
    from agent.identity import load_identity
    from agent.slots import Slots

    found: dict[str, Any] = {"running": False, "device": None, "tenant": None}
    try:
        identity = load_identity(config.identity_dir)
        found |= {"device": identity.device, "tenant": identity.tenant}
    except MooringError as error:
        found["note"] = str(error)
    found["slots"] = [slot.model_dump() for slot in Slots(config.slots_dir).reports()] if config.slots_dir.is_dir() else []
    found["outbox"] = read_outbox(config) if config.store_path.is_file() else None
    return found


def _show_status(found: dict[str, Any], out: Out) -> None:
    if not found["running"]:
        out(f"The agent does not run. {found.get('note', '')}".rstrip())
    else:
        link = "connected" if found["connected"] else "NOT connected"
        out(
            f"{found['device'] or 'not enrolled'}: {link}, inference {found['inference']}, up {found['uptime_s']:.0f} s, {found['version']}"
        )
    for one in found.get("pipelines", []):
        show_pipeline(one, out)
    for name in silent_pipelines(found):
        out(f"  pipeline {name}: no figures yet")
    if signed := found.get("configuration"):
        show_configuration(signed, out)
    for line in found.get("lines", []):
        wanted = f" -> {line['desired']}" if line["desired"] and line["desired"] != line["installed"] else ""
        percent = f" {line['progress']} %" if wanted and line["state"] in _FETCHING else ""
        state = f"({line['state']})"
        out(f"  line {line['line']}: {line['installed'] or 'nothing'}{wanted}{percent} {state} {line['reason']} {line['text']}".rstrip())
        if line.get("bytes_needed") and line["state"] not in ("succeeded", "failed", "rolled_back", "inconsistent"):
            fetched = "were fetched" if line["state"] not in _FETCHING else "are to be fetched" if line["waits_for"] else "are fetched"
            out(f"       {line['bytes_needed']} bytes {fetched}, the model {_TRANSFERS.get(line['transfer'], line['transfer'])}")
    for slot in found["slots"]:
        marks = " ".join(mark for mark in ("active", "committed") if slot[mark])
        out(f"  slot {slot['line']}/{slot['slot']}: {slot['release']} {marks}")
    if drift := found.get("drift"):
        show_drift(drift, out, "  ")
    if served := found.get("serving"):
        out(f"  served on {served['address'] or 'nothing yet'}")
        for one in served["lines"]:
            text = one["text"] or f"{one['release']}: {one['answered']} answered, {one['failed']} failed, {one['refused']} refused"
            out(f"    {one['line']} {text}")
    for condition in found.get("conditions", []):
        out(f"  {condition['severity']}: {condition['code']}: {condition['text']}\n      -> {condition['advice']}")
    if day := found.get("budget"):
        limits = {key: f" of {day[key] / 1e6:.1f}" if day[key] else "" for key in ("bytes_per_day", "writes_per_day")}
        exchanged = f"{(day['sent'] + day['received']) / 1e6:.1f}{limits['bytes_per_day']} MB exchanged with the server"
        out(f"  {day['day'] or 'today'}: {exchanged}, {day['written'] / 1e6:.1f}{limits['writes_per_day']} MB written")
    if found["outbox"]:
        out(f"  outbox: {found['outbox']['rows']} rows, {found['outbox']['bytes'] / 2**20:.2f} MiB")


def silent_pipelines(found: dict[str, Any]) -> list[str]:
    """Pipelines in force that no window of figures has ended for: they just began, or a condition says why they are left out."""
    told = {one["pipeline"] for one in found.get("pipelines", [])}
    in_force = (found.get("configuration") or {}).get("values", {}).get("pipelines", {})
    return [name for name in in_force if name not in told]


def show_pipeline(one: dict[str, Any], out: Out) -> None:
    """What a pipeline runs and how fast; below it where its frames come from, and what is not as it was asked for."""
    words = [f"{one['line']} {one['release'] or 'no model'}", f"{one['fps']:.1f}/s"]
    if one["lat_ms_p50"] is not None:
        words.append(f"{one['lat_ms_p50']:.1f}/{one['lat_ms_p99']:.1f} ms")
    if one["effective"]:
        instead = f" instead of {one['asked']}" if one["asked"] not in ("", one["effective"]) else ""
        words.append(f"{one['effective']}{instead}")
    out(f"  pipeline {one['pipeline']}: {', '.join(words)}")
    source = one["source_state"] + (f", {one['decoder']}" if one.get("decoder") else "")
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(one["dropped"].items()) if count)
    out(f"       source {source}; {one['grabbed']} frames in {one['window_s']:.0f} s" + (f", dropped {dropped}" if dropped else ""))
    if one["source_text"]:
        out(f"       {one['source_text']}")


def show_configuration(signed: dict[str, Any], out: Out) -> None:
    """Which signed configuration is in force, its values with their origin, and what is left out; the device's own are counted."""
    from protocol.configuration import leaves, origin_of

    which = f"{signed['group']}/{signed['rev']}" if signed.get("rev") else "the device's own values"
    out(f"  configuration: {which} ({signed['state']})")
    if back := signed.get("returned"):
        out(f"    went back from {back['group']}/{back['rev']}: {back['reason']}: {back['text']}")
    values = [(key, value, origin_of(key, signed["origins"])) for key, value in leaves(signed["values"])]
    for key, value, origin in values:
        if origin != _OWN:
            out(f"    {key} = {json.dumps(value)}  # {origin}")
    if signed.get("rev"):
        own = sum(origin == _OWN for _, _, origin in values)
        out(f"    and {own} values of the device itself; --json lists them")
    for key, why in sorted(signed["ignored"].items()):
        out(f"    {key} is left out: {why}")
