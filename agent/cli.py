"""`mooring-agent`: run, serve, enroll, status, consent, snapshot, import, doctor, outbox, drift, identity, config, probe and more.

Data goes to standard output, talk to standard error. Exit: 0 ok · 1 failed · 2 usage · 3 not found · 4 auth · 5 conflict ·
6 unreachable (retry) · 130 interrupted. Commands ask the running agent through its control socket, or read its files when it is
down. What only one command needs is imported by that command.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.config import AgentConfig
from agent.settings.loading import TOKEN_ENVIRONMENT_NAME, LoadedConfig, changed_serving, load_config, parse_value
from protocol.errors import (
    AccessError,
    ConfigError,
    ConflictError,
    InvalidError,
    MooringError,
    NotFoundError,
    TransferError,
)

#: Error family to exit status; the first that fits.
_EXITS: tuple[tuple[type[MooringError], int], ...] = (
    (ConfigError, 2),
    (InvalidError, 2),
    (NotFoundError, 3),
    (AccessError, 4),
    (ConflictError, 5),
    (TransferError, 6),
)
INTERRUPTED = 130
#: Seconds that a command waits for an agent that is starting.
AGENT_START_S = 20.0
#: Where `serve` listens when nobody says otherwise.
DEFAULT_LISTEN = "127.0.0.1:8000"
#: A token file holds one line.
MAX_TOKEN_BYTES = 1024

#: `LineState.transfer` in words.
_TRANSFERS = {"delta": "as a delta", "full": "whole", "none": "not at all, it is here"}

Out = Callable[[str], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except MooringError as error:
        sys.stderr.write(f"mooring-agent: {error}\n")
        return next((status for family, status in _EXITS if isinstance(error, family)), 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def version() -> str:
    """The version of the installed distribution; "0+source" when run from a checkout that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("mooring")
    except metadata.PackageNotFoundError:
        return "0+source"


# --- commands ---


def _run(options: argparse.Namespace) -> int:
    import signal

    from agent.database.file import prepare_in_child
    from agent.reporting import probe_in_child
    from agent.service import Service
    from protocol.clock import from_environment

    config = _load(options).config
    _log_to_stderr(config.log_level)
    clock, ended = from_environment(), False
    service: Service | None = None

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if service is not None:
            service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    prepare_in_child(config.store_path)
    while not ended:  # once more when an identity appeared: all is wired anew with it
        service = Service(config, clock=clock, version=version(), probe=lambda: probe_in_child(config))
        service.run()
    return 0


def _enroll(options: argparse.Namespace) -> int:
    from agent.identity import EnrollmentWish, enroll, guess_device_type, parse_token

    config = _load(options).config
    token = parse_token(_token_text(options))
    device_type = options.device_type or config.device_type or guess_device_type()
    server = options.server or config.server.url
    if not server:
        raise ConfigError("No server to enroll with.", hint="Wanted: --server https://host[:port], or the setting server.url.")
    wish = EnrollmentWish(
        server=server.rstrip("/"),
        token=token,
        device_type=device_type,
        device=options.device,
        proxy=config.server.proxy,
        timeout_s=config.server.timeout_s,
        agent_version=version(),
    )
    identity = enroll(config.identity_dir, wish, force=options.force)
    found = {"device": identity.device, "tenant": identity.tenant, "group": identity.enrollment.group, "folder": str(identity.folder)}
    _print(
        options,
        found,
        lambda out: out(f"Enrolled as {identity.device} (group {identity.enrollment.group or 'none'}) in {identity.folder}."),
    )
    return 0


def _status(options: argparse.Namespace) -> int:
    from agent.control import ask

    config = _load(options).config
    try:
        found = ask(config.control_socket, "status") | {"running": True}
    except TransferError:
        found = _status_from_files(config)
    _print(options, found, lambda out: _show_status(found, out))
    return 0 if found["running"] else 1


def _consent(options: argparse.Namespace) -> int:
    from agent.control import ask

    found = ask(_load(options).config.control_socket, "consent", line=options.line, given=options.yes)
    said = "goes on" if found["given"] else "is given up"
    _print(options, found, lambda out: out(f"{found['line']}: {found['release']} {said}."))
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    import base64

    from agent.control import ask

    found = ask(_load(options).config.control_socket, "snapshot", pipeline=options.pipeline)
    data = base64.b64decode(found["jpeg"])
    if str(options.output) == "-":
        sys.stdout.buffer.write(data)
        return 0
    try:
        options.output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{options.output} cannot be written: {error.strerror}.") from None
    said = {"pipeline": options.pipeline, "file": str(options.output), "bytes": len(data)}
    _print(options, said, lambda out: out(f"{options.pipeline}: {found['width']} x {found['height']} pixels in {options.output}."))
    return 0


def _import(options: argparse.Namespace) -> int:
    import time

    from agent.control import ask
    from agent.importing import sole_use

    config = _load(options).config
    folder = options.folder.expanduser().absolute()
    with sole_use(config.state_dir) as is_alone:
        found = _import_stopped(config, folder) if is_alone else None
    looks_until = time.monotonic() + AGENT_START_S
    while found is None:
        try:
            found = ask(config.control_socket, "import", folder=str(folder)) | {"running": True}
        except TransferError:  # it has just been started, or ends
            if time.monotonic() > looks_until:
                raise
            time.sleep(0.2)
    deadline = time.monotonic() + options.wait
    while found["running"] and (found["phase"] == "reading" or (found["phase"] == "updating" and time.monotonic() < deadline)):
        time.sleep(0.2)
        found = ask(config.control_socket, "import-status") | {"running": True}
    _print(options, found, lambda out: _show_import(found, out))
    return 1 if found["phase"] in ("failed", "none") else 0


def _import_stopped(config: AgentConfig, folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from agent.database.file import prepare_in_child
    from agent.reporting import probe_in_child
    from agent.service import Service
    from protocol.clock import from_environment

    prepare_in_child(config.store_path)
    service = Service(config, clock=from_environment(), version=version(), probe=lambda: probe_in_child(config))
    return asdict(service.import_stopped(folder)) | {"running": False}


def _show_import(found: dict[str, Any], out: Out) -> None:
    names = ", ".join(f"{release} of {line}" for line, release in found["releases"]) or "nothing"
    match found["phase"]:
        case "failed":
            out(f"Nothing was taken: {found['text']}")
            return
        case "none":
            out("The agent was started again meanwhile and has forgotten this import. Leave the stick in and import it once more.")
            return
        case "done":
            out(f"The stick assigned {names}; its updates are over: mooring-agent status.")
        case _:
            how = "goes on now" if found["running"] else "begins when the agent starts"
            out(f"The stick assigns {names}; all is copied and verified, installing {how}. The stick may be pulled.")
    if found["text"]:
        out(found["text"])
    if found["phase"] != "done":
        out("For the report of how it went: leave the stick in until the update is over, or import it once more then.")
    elif found["is_reported"]:
        out("The report is on the stick. Back at the server: mooring bundle import-reports DIR")


def _outbox(options: argparse.Namespace) -> int:
    from agent.control import ask

    config = _load(options).config
    try:
        found = ask(config.control_socket, "outbox")
    except TransferError:
        found = _outbox_from_file(config)

    def show(out: Out) -> None:
        out(f"{found['rows']} rows, {found['bytes'] / 2**20:.2f} MiB, {found['unacknowledged']} sent and not acknowledged by the server")
        for stream, rows in sorted(found["by_stream"].items()):
            out(f"  {stream:10} {rows}")
        for kind, rows in sorted(found["dropped"].items()):
            out(f"  given up ({kind}): {rows}")

    _print(options, found, show)
    return 0


def _drift_show(options: argparse.Namespace) -> int:
    from agent.control import ask

    found = ask(_load(options).config.control_socket, "drift")
    _print(options, found, lambda out: _show_drift(found, out))
    return 0


def _drift_record(options: argparse.Namespace) -> int:
    from agent.drift.store import SUBWINDOWS_PER_DAY, read_windows
    from protocol.clock import from_environment
    from protocol.sketches.recording import encode_recording

    config = _load(options).config
    now_w0 = int(from_environment().now().timestamp() // 600)
    rows, grids = read_windows(config.store_path, since=now_w0 - options.days * SUBWINDOWS_PER_DAY, pipeline=options.pipeline)
    rows = [row for row in rows if row.rows]
    if not rows:
        raise NotFoundError(
            f"No sub-windows of the last {options.days} days are kept here.",
            hint="`mooring-agent drift show` says what is watched; a sub-window takes ten minutes.",
        )
    used = {row.subject.grid for row in rows}
    data = encode_recording({name: body for name, body in grids.items() if name in used}, (row.body for row in rows))
    try:
        options.output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{options.output} cannot be written: {error.strerror}.") from None
    pipelines = sorted({row.subject.pipeline for row in rows})
    said = {"file": str(options.output), "bytes": len(data), "subwindows": len(rows), "pipelines": pipelines}
    text = f"{len(rows)} sub-windows of {', '.join(pipelines)} in {options.output}. At the server: mooring drift reference import"
    _print(options, said, lambda out: out(text))
    return 0


def _identity(options: argparse.Namespace) -> int:
    from agent.identity import certificate_life, load_identity

    identity = load_identity(_load(options).config.identity_dir)
    found = {
        **identity.enrollment.model_dump(mode="json"),
        "certificate_until": certificate_life(identity)[1].isoformat(),
        "folder": str(identity.folder),
    }
    _print(options, found, lambda out: out("\n".join(f"{key:20} {value}" for key, value in found.items())))
    return 0


def _config_show(options: argparse.Namespace) -> int:
    rows = _load(options).rows()
    found = {key: {"value": value, "origin": origin} for key, value, origin in rows}

    def show(out: Out) -> None:
        for key, value, origin in rows:
            out(f"{key} = {json.dumps(value)}" + (f"  # {origin}" if options.origin else ""))

    _print(options, found, show)
    return 0


def _config_check(options: argparse.Namespace) -> int:
    _load(options)
    _print(options, {"ok": True}, lambda out: out("The settings are good."))
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Serve in the foreground, without pipelines, updates or server."""
    import signal
    import threading

    from agent.serving.messages import Beat, Task
    from agent.serving.worker import run

    config = _load(options).config
    wished = {"listen": options.listen or config.serving.listen or DEFAULT_LISTEN, "lines": tuple(options.line) or config.serving.lines}
    serving = changed_serving(config.serving, wished)
    folder = options.model_dir.expanduser().absolute() if options.model_dir else None
    task = Task(serving=serving, runtime=config.runtime, slots_dir=config.slots_dir, model_dir=folder, version=version())
    stop, told = threading.Event(), set[tuple[str, str, str]]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def tell(beat: Beat) -> None:
        now = {(one.line, one.release, one.text) for one in beat.lines}
        for line, release, text in sorted(now - told):
            sys.stderr.write(f"{line}: {text or f'release {release} is served on {beat.address}'}\n")
        told.clear()
        told.update(now)

    run(task, stop=stop, on_beat=tell)
    return 0


def _probe(options: argparse.Namespace) -> int:
    from agent.inference.options import backend_options
    from runtime.probe import probe_environment

    config = _load(options).config
    cache = config.state_dir / "probe" if config.state_dir.is_dir() else None
    if cache is not None:
        cache.mkdir(exist_ok=True)
    found = [
        {"name": one.name, "version": one.version, "state": one.state.value, "text": one.text[:2000]}
        for one in probe_environment(cache, options=backend_options(config.runtime))
    ]
    rows = [f"{one['name']:22} {one['state']:10} {one['version']:10} {one['text']}" for one in found]
    _print(options, found, lambda out: out("\n".join(rows)))
    return 0


def _autotune(options: argparse.Namespace) -> int:
    """Measure the models that this device has, also those that have nothing to gain."""
    from dataclasses import asdict

    from agent.inference.tuner import USUAL_FPS, Tuner
    from agent.slots import Slots
    from protocol.ids import LineName

    config = _load(options).config
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

    _print(options, found, show)
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


def _doctor(options: argparse.Namespace) -> int:
    from agent.doctor import examine

    found = examine(_load(options).config)

    def show(out: Out) -> None:
        for check in found:
            out(f"{check.verdict.value:5} {check.name:12} {check.text}")
            if check.advice:
                out(f"      {'':12} -> {check.advice}")

    _print(options, [check.as_dict() for check in found], show)
    return 1 if any(check.is_failure for check in found) else 0


def _version(options: argparse.Namespace) -> int:
    _print(options, {"version": version()}, lambda out: out(f"mooring-agent {version()}"))
    return 0


# --- pieces ---


def _load(options: argparse.Namespace) -> LoadedConfig:
    flags: dict[str, Any] = {"state_dir": options.state_dir, "run_dir": options.run_dir}
    for setting in options.set:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} has no value.", hint="Wanted: --set key=value, e.g. --set update.poll_s=60.")
        flags[key] = parse_value(key, value)
    environment = dict(os.environ)
    loaded = load_config(flags=flags, environment=environment, config_path=options.config)
    if options.state_dir and "run_dir" not in loaded.origins:  # without root, one folder is enough
        flags["run_dir"] = str(Path(options.state_dir) / "run")
        loaded = load_config(flags=flags, environment=environment, config_path=options.config)
    return loaded


def _token_text(options: argparse.Namespace) -> str:
    from protocol.files import read_bounded

    if options.token is not None:
        return str(options.token)
    if options.token_file is not None:
        try:
            return read_bounded(options.token_file, MAX_TOKEN_BYTES).decode(errors="replace").strip()
        except OSError as error:
            raise InvalidError(f"{options.token_file} cannot be read: {error.strerror}.") from None
    if text := os.environ.get(TOKEN_ENVIRONMENT_NAME):
        return text
    raise InvalidError(
        "No token was given.", hint=f"Wanted: --token-file FILE, the environment variable {TOKEN_ENVIRONMENT_NAME}, or --token."
    )


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
    found["outbox"] = _outbox_from_file(config) if config.store_path.is_file() else None
    return found


def _outbox_from_file(config: AgentConfig) -> dict[str, Any]:
    from dataclasses import asdict

    from agent.store import count_rows

    epoch, counts = count_rows(config.store_path)
    return {"epoch": epoch, **asdict(counts)}


def _show_status(found: dict[str, Any], out: Out) -> None:
    if not found["running"]:
        out(f"The agent does not run. {found.get('note', '')}".rstrip())
    else:
        link = "connected" if found["connected"] else "NOT connected"
        out(
            f"{found['device'] or 'not enrolled'}: {link}, inference {found['inference']}, up {found['uptime_s']:.0f} s, {found['version']}"
        )
    for one in found.get("pipelines", []):
        latency = "-" if one["lat_ms_p50"] is None else f"{one['lat_ms_p50']:.1f}/{one['lat_ms_p99']:.1f} ms"
        out(
            f"  pipeline {one['pipeline']}: {one['line']} {one['release'] or 'no model'}, {one['fps']:.1f}/s, {latency}, {one['effective']}"
        )
    if signed := found.get("configuration"):
        _show_configuration(signed, out)
    for line in found.get("lines", []):
        wanted = f" -> {line['desired']} {line['progress']} %" if line["desired"] and line["desired"] != line["installed"] else ""
        out(f"  line {line['line']}: {line['installed'] or 'nothing'}{wanted} ({line['state']}) {line['reason']} {line['text']}".rstrip())
        if line.get("bytes_needed") and line["state"] not in ("succeeded", "failed", "rolled_back", "inconsistent"):
            out(f"       {line['bytes_needed']} bytes are fetched, the model {_TRANSFERS.get(line['transfer'], line['transfer'])}")
    for slot in found["slots"]:
        marks = " ".join(mark for mark in ("active", "committed") if slot[mark])
        out(f"  slot {slot['line']}/{slot['slot']}: {slot['release']} {marks}")
    if drift := found.get("drift"):
        _show_drift(drift, out, "  ")
    if served := found.get("serving"):
        out(f"  served on {served['address'] or 'nothing yet'}")
        for one in served["lines"]:
            text = one["text"] or f"{one['release']}: {one['answered']} answered, {one['failed']} failed, {one['refused']} refused"
            out(f"    {one['line']} {text}")
    for condition in found.get("conditions", []):
        out(f"  {condition['severity']}: {condition['code']}: {condition['text']}\n      -> {condition['advice']}")
    if day := found.get("budget"):
        limits = {key: f" of {day[key] / 1e6:.0f}" if day[key] else "" for key in ("bytes_per_day", "writes_per_day")}
        exchanged = f"{(day['sent'] + day['received']) / 1e6:.1f}{limits['bytes_per_day']} MB exchanged with the server"
        out(f"  {day['day'] or 'today'}: {exchanged}, {day['written'] / 1e6:.1f}{limits['writes_per_day']} MB written")
    if found["outbox"]:
        out(f"  outbox: {found['outbox']['rows']} rows, {found['outbox']['bytes'] / 2**20:.2f} MiB")


#: `DriftPipeline.grade` in words.
_GRADES = {
    "off": "not watched (setting drift.enabled)",
    "none": "not watched: its release brings no reference profile",
    "collecting": "learning what is normal here",
    "provisional": "watched by a provisional reference",
    "calibrated": "watched",
}


def _show_drift(found: dict[str, Any], out: Out, indent: str = "") -> None:
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


def _show_configuration(signed: dict[str, Any], out: Out) -> None:
    from protocol.configuration import leaves, origin_of

    which = f"{signed['group']}/{signed['rev']}" if signed.get("rev") else "the device's own values"
    out(f"  configuration: {which} ({signed['state']})")
    if back := signed.get("returned"):
        out(f"    went back from {back['group']}/{back['rev']}: {back['reason']}: {back['text']}")
    for key, value in leaves(signed["values"]):
        out(f"    {key} = {json.dumps(value)}  # {origin_of(key, signed['origins'])}")
    for key, why in sorted(signed["ignored"].items()):
        out(f"    {key} is left out: {why}")


def _print(options: argparse.Namespace, document: Any, show: Callable[[Out], object]) -> None:
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    else:
        show(lambda line: sys.stdout.write(line + "\n"))


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings that win over those in /etc/mooring")
    common.add_argument("--state-dir", metavar="DIR", help="where the agent keeps its state, e.g. ~/mooring-agent without root")
    common.add_argument("--run-dir", metavar="DIR", help="where the control socket is; with --state-dir: the folder run in it")
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, e.g. update.poll_s=60")
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog="mooring-agent", description="Runs signed models on this device and keeps them current.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, group: Any = commands) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = group.add_parser(name, parents=[common], help=text, description=text)
        found.set_defaults(command=command)
        return found

    add("run", _run, "run the agent in the foreground")
    enroll = add("enroll", _enroll, "get an identity from a server with a one-time token")
    enroll.add_argument("--server", metavar="URL", help="https://host[:port] of the device API")
    enroll.add_argument("--token", help="the token; prefer --token-file, others on this machine can see command lines")
    enroll.add_argument("--token-file", type=Path, metavar="FILE", help=f"a file with the token; or set {TOKEN_ENVIRONMENT_NAME}")
    enroll.add_argument("--device", metavar="ID", help="wished device id")
    enroll.add_argument("--device-type", metavar="TYPE", help="what artifacts this machine can run; default: the kind of this machine")
    enroll.add_argument("--force", action="store_true", help="replace an identity that is there")
    add("status", _status, "what runs, what is wrong, what waits")
    snapshot = add("snapshot", _snapshot, "a picture of a pipeline's next frame, annotated; only where its setting `preview` allows it")
    snapshot.add_argument("pipeline", metavar="PIPELINE")
    snapshot.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to put the JPEG; - is standard output")
    consent = add("consent", _consent, "say yes or no to the release that a line is getting (setting update.consent)")
    consent.add_argument("line", metavar="LINE")
    answer = consent.add_mutually_exclusive_group(required=True)
    answer.add_argument("--yes", action="store_true", help="activate it as soon as its window is open")
    answer.add_argument("--no", action="store_true", help="give it up; the version before stays")
    stick = add("import", _import, "update from a stick made by `mooring bundle create`, on a site without a network")
    stick.add_argument("folder", type=Path, metavar="DIR", help="the folder on the stick")
    stick.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for the update to end, so that its report is on the stick"
    )
    serve = add("serve", _serve, "answer other programs with the models of this device (Open Inference Protocol), without a camera")
    serve.add_argument("line", nargs="*", metavar="LINE", help="model lines to serve; default: the setting serving.lines, else all")
    serve.add_argument("--listen", metavar="ADDRESS", help=f"address:port or unix:/path; default: serving.listen, else {DEFAULT_LISTEN}")
    serve.add_argument(
        "--model-dir", type=Path, metavar="DIR", help="a folder with a manifest.json, or with such folders, in place of the slots"
    )
    add("doctor", _doctor, "check camera, runtimes, clock, disk, broker and server, and say what to do")
    add("outbox", _outbox, "what waits for the server")
    drift = commands.add_parser("drift", help="what is watched in front of the models").add_subparsers(required=True, metavar="COMMAND")
    add("show", _drift_show, "per pipeline: how far its reference is, and what the evidence says", drift)
    record = add("record", _drift_record, "copy the kept sub-windows into a file, from which a server can learn a reference", drift)
    record.add_argument("--days", type=int, default=28, metavar="N", help="the latest so many days; default: 28")
    record.add_argument("--pipeline", metavar="NAME", help="of this pipeline only")
    record.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to put them")
    add("identity", _identity, "who this device is")
    config = commands.add_parser("config", help="the settings").add_subparsers(required=True, metavar="COMMAND")
    add("show", _config_show, "print the settings, secrets masked", config).add_argument(
        "--origin", action="store_true", help="say where each comes from"
    )
    add("check", _config_check, "check the settings; exit 2 names what is wrong", config)
    add("probe", _probe, "try every inference runtime, and every wanted provider, in a child process")
    tune = add("autotune", _autotune, "measure on how many threads and which provider the models of this device run best")
    tune.add_argument("--pipeline", metavar="NAME", help="the model of this pipeline only")
    tune.add_argument("--line", metavar="LINE", help="the model of this line only")
    tune.add_argument("--seconds", type=float, metavar="S", help="wall clock and processor time at most, per model; default: the setting")
    add("version", _version, "print the version")
    return parser


if __name__ == "__main__":
    sys.exit(main())
