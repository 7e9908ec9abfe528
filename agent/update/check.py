"""The short-lived child that asks the server what this device should run: `python -m agent.update.check`; prints one JSON document.

Only this process loads the trust code (python-tuf); it ends after one answer, so the control process stays light.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agent.configuration import ConfigurationOffer
from agent.identity import Identity, load_identity, open_client, read_answer
from agent.traffic import Traffic
from agent.update.assignment import (
    FULL_METHOD,
    KNOWN_METHODS,
    NO_BASE,
    Assignment,
    CandidateRun,
    CheckAnswer,
    CheckError,
    LineOffer,
    OfferedDelta,
    OfferedFile,
    dump_answer,
)
from agent.update.fetch import open_reading_fetcher, open_tuf_fetcher
from protocol.clock import Clock, from_environment, from_unix_ms, to_unix_ms
from protocol.errors import AccessError, ConflictError, DeviceError, InvalidError, MooringError, TransferError, TrustError, UnavailableError
from protocol.files import read_bounded
from protocol.ids import DeviceTypeName, Digest, LineName, ReleaseVersion, check_name

if TYPE_CHECKING:
    import httpx

    from protocol.trust.updater import AssignedFile, LineAssignment, RepositoryAccess
    from protocol.trust.updater import Assignment as Agreed

#: What python-tuf allows a root to have.
MAX_ROOT_BYTES = 512_000
MAX_TIME_BYTES = 4096
#: What python-tuf allows a timestamp to have.
MAX_TIMESTAMP_BYTES = 16_384
_NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True)
class CheckWish:
    """What the control process tells the child."""

    server: str
    device_type: str
    runtimes: tuple[str, ...]
    agent_version: str
    #: ETag of the last answer that was taken over; empty asks for everything.
    etag: str = ""
    proxy: str | None = None
    timeout_s: float = 30.0
    min_bytes_per_s: float = 1000.0
    #: Ask for the signed time too: this device's own clock may be wrong, and something goes by it.
    wants_time: bool = False
    time_floor_ms: int = 0
    #: Per line: lowest counter allowed, and counter committed.
    floors: tuple[tuple[str, int], ...] = ()
    committed: tuple[tuple[str, int], ...] = ()
    #: Per group: revision of the configuration once committed; and the only group whose configuration is taken, empty: any.
    configurations: tuple[tuple[str, int], ...] = ()
    group: str = ""
    #: Folder on a stick that is asked in place of the server; empty: the server.
    bundle: str = ""


def command_of(state_dir: Path, wish: CheckWish) -> list[str]:
    """The child's command line; `main` reads it back."""
    options = {
        "--state": str(state_dir),
        "--server": wish.server,
        "--device-type": wish.device_type,
        "--runtimes": ",".join(wish.runtimes),
        "--agent-version": wish.agent_version,
        "--etag": wish.etag,
        "--proxy": wish.proxy or "",
        "--timeout": repr(wish.timeout_s),
        "--min-rate": repr(wish.min_bytes_per_s),
        "--wants-time": str(int(wish.wants_time)),
        "--time-floor": str(wish.time_floor_ms),
        "--floors": ",".join(f"{line}={counter}" for line, counter in wish.floors),
        "--committed": ",".join(f"{line}={counter}" for line, counter in wish.committed),
        "--configurations": ",".join(f"{group}={rev}" for group, rev in wish.configurations),
        "--group": wish.group,
        "--bundle": wish.bundle,
    }
    return [sys.executable, "-m", "agent.update.check", *(f"{name}={value}" for name, value in options.items())]


def check(state_dir: Path, wish: CheckWish, *, clock: Clock) -> CheckAnswer:
    """Ask the director; when something changed, verify it against both repositories. Never raises: errors are part of the answer."""
    traffic = Traffic()
    answer = _check(state_dir, wish, clock=clock, traffic=traffic)
    sent, received = traffic.totals()
    return replace(answer, bytes_sent=sent, bytes_received=received)


def _check(state_dir: Path, wish: CheckWish, *, clock: Clock, traffic: Traffic) -> CheckAnswer:
    time_ms: int | None = None
    try:
        identity = load_identity(state_dir / "identity")
        if wish.bundle:
            return CheckAnswer(assignment=_verify_bundle(identity, state_dir, wish, clock=clock))
        context = identity.tls_context()
        with open_client(context, base_url=wish.server, proxy=wish.proxy, timeout_s=wish.timeout_s, traffic=traffic) as client:
            time_ms = _ask_time(client, identity, state_dir, wish) if wish.wants_time else None
            etag = _poll(client, wish.etag)
            if etag is None and _is_fresh(state_dir, max(clock.now(), from_unix_ms(wish.time_floor_ms))):
                return CheckAnswer(unchanged=True, etag=wish.etag, signed_time_ms=time_ms)
            assignment = _verify(client, identity, state_dir, wish, clock=clock)
            return CheckAnswer(assignment=assignment, etag=etag or wish.etag, signed_time_ms=time_ms)
    except MooringError as error:
        return CheckAnswer(error=_error(error), signed_time_ms=time_ms)
    except OSError as error:
        return CheckAnswer(error=_error(DeviceError(f"The update check could not use this device's files: {error}.", code="disk_error")))


def _poll(client: "httpx.Client", etag: str) -> str | None:
    """The ETag of what is there now, or None when it is still the one given. The timestamp names all other metadata."""
    headers = {"If-None-Match": etag} if etag else {}
    with client.stream("GET", "/device/v1/director/timestamp.json", headers=headers) as response:
        if response.status_code == _NOT_MODIFIED:
            return None
        if response.status_code in {429, 500, 502, 503, 504}:
            retry = response.headers.get("Retry-After", "")
            raise UnavailableError(
                f"{response.url} answered {response.status_code}.", retry_after_s=float(retry) if retry.isdecimal() else None
            )
        found = response.headers.get("ETag", "")
        return found if len(found) <= 200 else ""


def _is_fresh(state_dir: Path, now: datetime) -> bool:
    """Whether the kept timestamp has not expired: else "unchanged", which nobody signs, would be a freeze without end."""
    try:
        kept = json.loads(read_bounded(state_dir / "trust" / "director" / "timestamp.json", MAX_TIMESTAMP_BYTES))
        return now < datetime.fromisoformat(kept["signed"]["expires"])
    except (OSError, InvalidError, ValueError, LookupError, TypeError):
        return False


def _verify(client: "httpx.Client", identity: Identity, state_dir: Path, wish: CheckWish, *, clock: Clock) -> Assignment:
    from protocol.trust.updater import RepositoryAccess

    director = _director(client, identity, state_dir, wish)
    image_url = f"{wish.server}/image/v1/metadata/"
    image = RepositoryAccess(state_dir / "trust" / "image", image_url, _root(identity.image_root_path), director.fetcher)
    floor = from_unix_ms(wish.time_floor_ms)
    if clock.now() < floor:
        floor = max(floor, _signed_time(client, identity, director))
    try:
        return _agree(identity, wish, image=image, director=director, now=clock.now(), floor=floor)
    except TrustError as error:
        if error.code == "freeze":
            raise _explain_freeze(error, _signed_time(client, identity, director), clock.now()) from error
        raise


def _verify_bundle(identity: Identity, state_dir: Path, wish: CheckWish, *, clock: Clock) -> Assignment:
    """The same verifier over a folder; what it assigns and this device lacks is here when this returns."""
    from agent.update.bundle import bring, open_bundle
    from protocol.trust.updater import RepositoryAccess

    trust, base = state_dir / "trust", "stick:///"
    with open_bundle(Path(wish.bundle)) as bundle:
        bundle.check_is_for(identity.tenant, identity.device)
        image_reader, director_reader = (
            open_reading_fetcher(bundle.image_file, base),
            open_reading_fetcher(bundle.director_reader(identity.device), base),
        )
        image = RepositoryAccess(trust / "image", base, _root(identity.image_root_path), image_reader)
        director = RepositoryAccess(trust / "director", base, _root(identity.director_root_path), director_reader)
        floor = from_unix_ms(wish.time_floor_ms)
        try:
            assignment = _agree(identity, wish, image=image, director=director, now=clock.now(), floor=floor)
        except TrustError as error:
            raise _explain_old_stick(error, from_unix_ms(bundle.index.valid_until), max(clock.now(), floor)) from error
        bring(bundle, assignment, state_dir)
    return assignment


def _agree(
    identity: Identity, wish: CheckWish, *, image: "RepositoryAccess", director: "RepositoryAccess", now: datetime, floor: datetime
) -> Assignment:
    from protocol.trust.updater import DeviceFacts, verify_assignment

    facts = DeviceFacts(
        device=identity.device,
        tenant=identity.tenant,
        device_type=DeviceTypeName(wish.device_type),
        runtimes=wish.runtimes,
        agent_version=wish.agent_version,
        group=wish.group,
    )
    agreed = verify_assignment(
        image=image,
        director=director,
        facts=facts,
        now=now,
        time_floor=floor,
        floors={LineName(line): counter for line, counter in wish.floors},
        committed={LineName(line): counter for line, counter in wish.committed},
        configurations=dict(wish.configurations),
    )
    return _assignment(agreed, wish.server)


def _explain_old_stick(error: TrustError, until: datetime, now: datetime) -> TrustError:
    hints = {
        "freeze": f"The stick says that it holds until {until:%Y-%m-%d}; here it is {now:%Y-%m-%d}. Make a new one, or set the clock.",
        "rollback": "This device has seen newer metadata than the stick carries: make a new stick.",
    }
    return TrustError(error.message, code=error.code, hint=hints.get(error.code, error.hint))


def _director(client: "httpx.Client", identity: Identity, state_dir: Path, wish: CheckWish) -> "RepositoryAccess":
    from protocol.trust.updater import RepositoryAccess

    fetcher = open_tuf_fetcher(client, min_bytes_per_s=wish.min_bytes_per_s)
    folder, url = state_dir / "trust" / "director", f"{wish.server}/device/v1/director/"
    return RepositoryAccess(folder, url, _root(identity.director_root_path), fetcher)


def _ask_time(client: "httpx.Client", identity: Identity, state_dir: Path, wish: CheckWish) -> int | None:
    """The signed time, or None: a server without one stops no update, and whoever needs the time waits for it."""
    try:
        return to_unix_ms(_signed_time(client, identity, _director(client, identity, state_dir, wish)))
    except (TransferError, AccessError, ConflictError):
        return None


def _signed_time(client: "httpx.Client", identity: Identity, director: "RepositoryAccess") -> datetime:
    from protocol.trust.updater import verify_signed_time

    nonce = secrets.token_hex(16)
    document = read_answer(client, "GET", f"/device/v1/director/time?nonce={nonce}", limit=MAX_TIME_BYTES)
    return verify_signed_time(document, director=director, device=identity.device, nonce=nonce)


def _explain_freeze(error: TrustError, signed: datetime, now: datetime) -> TrustError:
    if abs(signed - now) < timedelta(days=1):
        return error
    return TrustError(
        f"{error.message} This device's clock says {now:%Y-%m-%d %H:%M} UTC, the server's signed time is {signed:%Y-%m-%d %H:%M}.",
        code=error.code,
        hint="Set the system clock.",
    )


def _root(path: Path) -> bytes:
    return read_bounded(path, MAX_ROOT_BYTES)


def _assignment(agreed: "Agreed", server: str) -> Assignment:
    candidates = tuple(
        replace(
            _offer(one.release, server),
            candidate=CandidateRun(run_as=one.run.as_, share=one.run.share, salt=one.run.salt, until_ms=one.run.until, cpu=one.cpu),
        )
        for one in agreed.candidates
        if one.run.as_ != "active"
    )
    return Assignment(
        assignment=agreed.assignment,
        attempt=agreed.attempt,
        issued_at_ms=to_unix_ms(agreed.issued_at),
        lines=tuple(_offer(line, server) for line in agreed.lines),
        floors=dict(agreed.floors),
        campaign=agreed.campaign,
        metadata_versions=dict(agreed.metadata_versions),
        configuration=_configuration(agreed, server),
        candidates=candidates,
        pipelines={LineName(name): run.as_ for name, run in agreed.run.items()},
    )


def _offer(line: "LineAssignment", server: str) -> LineOffer:
    return LineOffer(
        line=line.line,
        release=ReleaseVersion(line.release),
        counter=line.counter,
        variant=line.variant,
        assignment=line.assignment,
        attempt=line.attempt,
        campaign=line.campaign,
        runtime=line.runtime,
        files=tuple(_file(target, server) for target in line.targets),
        full_bytes_allowed=line.full_bytes_allowed,
    )


def _configuration(agreed: "Agreed", server: str) -> ConfigurationOffer | None:
    found = agreed.configuration
    if found is None:
        return None
    return ConfigurationOffer(found.group, found.rev, found.attempt, found.length, found.sha256, blob_url(server, found.sha256))


def _file(target: "AssignedFile", server: str) -> OfferedFile:
    # a method that this agent does not know, or one that does not go with its base, is no offer to it
    deltas = tuple(
        OfferedDelta(Digest(one.base_sha256), one.length, Digest(one.sha256), one.method, blob_url(server, Digest(one.sha256)))
        for one in target.deltas
        if one.method in KNOWN_METHODS and (one.method == FULL_METHOD) == (one.base_sha256 == NO_BASE)
    )
    return OfferedFile(target.name, target.length, target.sha256, blob_url(server, target.sha256), deltas)


def blob_url(server: str, digest: Digest) -> str:
    """Where the server serves the bytes with this digest."""
    return f"{server.rstrip('/')}/blobs/sha256/{digest.removeprefix('sha256:')}"


def _error(error: MooringError) -> CheckError:
    retry = error.retry_after_s if isinstance(error, UnavailableError) else None
    family = next((kind.__name__ for kind in type(error).__mro__ if MooringError in kind.__bases__), "MooringError")
    return CheckError(family, error.code, str(error)[:2000], retry)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, print the answer; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent.update.check", description=__doc__)
    for name in ("--state", "--server", "--device-type"):
        parser.add_argument(name, required=True)
    for name in (
        "--runtimes",
        "--agent-version",
        "--etag",
        "--proxy",
        "--floors",
        "--committed",
        "--configurations",
        "--group",
        "--bundle",
    ):
        parser.add_argument(name, default="")
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--min-rate", type=float, default=1000.0)
    parser.add_argument("--wants-time", type=int, default=0)
    parser.add_argument("--time-floor", type=int, default=0)
    options = parser.parse_args(arguments)
    wish = CheckWish(
        server=options.server.rstrip("/"),
        device_type=options.device_type,
        runtimes=tuple(filter(None, options.runtimes.split(","))),
        agent_version=options.agent_version,
        etag=options.etag,
        proxy=options.proxy or None,
        timeout_s=options.timeout,
        min_bytes_per_s=options.min_rate,
        wants_time=bool(options.wants_time),
        time_floor_ms=options.time_floor,
        floors=_counters(options.floors),
        committed=_counters(options.committed),
        configurations=_counters(options.configurations),
        bundle=options.bundle,
        group=options.group,
    )
    sys.stdout.buffer.write(dump_answer(check(Path(options.state), wish, clock=from_environment())))
    return 0


def _counters(text: str) -> tuple[tuple[str, int], ...]:
    pairs = (part.partition("=") for part in text.split(",") if part)
    try:
        return tuple((check_name(line, what="Line"), int(counter)) for line, _, counter in pairs)
    except ValueError:
        raise InvalidError(f"{text[:200]!r} is not line=counter,….") from None


if __name__ == "__main__":
    sys.exit(main())
