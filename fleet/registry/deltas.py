"""Deltas of releases: which are worth making, making them in a child process, what a device may be offered, taking one back.

Only direct deltas are made: a chain would add states in which a device can be cut. What was made, was not worth it or failed is
remembered per pair of files, so that nothing is tried for ever. A delta is an offer: the device checks the RESULT against what the
image repository's keys signed.
"""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fleet import audit, db, jobs
from fleet.audit import Actor, ActorKind
from fleet.blobs import BlobStore
from fleet.registry import store
from fleet.registry.director import SignedOrder, listed_deltas
from fleet.registry.model import DeltaState, FileRef, Release, ReleaseDelta, Variant
from protocol.clock import Clock
from protocol.delta.container import HEADER_BYTES, NO_BASE, Header
from protocol.errors import MooringError, NotFoundError, TrustError, UnavailableError
from protocol.ids import DeviceId, Digest, LineName, TenantId
from protocol.trust.metadata import DeltaOffer, parse_target_path

#: The job: payload {"line"}.
BUILD_DELTAS = "build_deltas"
#: Files below this travel whole, bytes: a request costs as much as they do.
MIN_BYTES = 2048
#: A reason is kept up to here, characters.
MAX_REASON = 1000
#: Of what an encoder says is read at most, bytes.
_MAX_SAID = 1 << 20
_POLL_S = 0.05
LOOP = Actor(ActorKind.LOOP, "deltas")


@dataclass(frozen=True, slots=True)
class DeltaRules:
    """How much is made, and what making it may cost; the settings `deltas.*`."""

    #: Bases per file: those that most devices have.
    bases: int = 3
    #: Percent of the devices from which on a base is served beyond that number.
    share_percent: float = 5.0
    #: Limits of one child: seconds of wall clock, seconds of CPU, MiB of address space; and its niceness.
    timeout_s: float = 1800.0
    cpu_s: int = 900
    memory_mb: int = 4096
    nice: int = 15
    #: Percent of one core that making deltas takes in the long run; after each the worker rests.
    cpu_percent: int = 50

    def rest_s(self, cpu_s: float) -> float:
        """Seconds of rest after so many seconds of CPU."""
        return cpu_s * (100.0 / self.cpu_percent - 1.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """A file that devices shall get, and one that they have; None: no base, the compressed whole."""

    base: FileRef | None
    new: FileRef

    @property
    def base_sha256(self) -> Digest:
        """Digest of the base, `NO_BASE` for none."""
        return self.base.sha256 if self.base is not None else NO_BASE


@dataclass(frozen=True, slots=True)
class Encoded:
    """How a child ended: the CPU it took, and why it made nothing (empty when it did)."""

    cpu_s: float
    error: str = ""


class Encoder(Protocol):
    """Makes a delta file; `encode_in_child` in production."""

    def __call__(self, old: Path | None, new: Path, out: Path) -> Encoded: ...


# --- which are worth making; pure ---


def choose_bases(counts: Mapping[Digest, int], total: int, *, most: int, share_percent: float) -> list[Digest]:
    """Of the digests that devices have, the `most` most frequent and each that at least so many percent of `total` have, frequent first."""
    ranked = sorted(counts, key=lambda digest: (-counts[digest], digest))
    return [digest for place, digest in enumerate(ranked) if place < most or counts[digest] * 100 >= share_percent * max(total, 1)]


def pairs_of(new: Variant, bases: Iterable[Variant]) -> list[Pair]:
    """What is worth making for the variant: of each file but the small ones the compressed whole, then one per base that differs."""
    files = [file for file in new.files if file.length >= MIN_BYTES]
    found = [Pair(None, file) for file in files]
    for base in bases:
        had = {file.name: file for file in base.files}
        found += [Pair(had[file.name], file) for file in files if file.name in had and had[file.name].sha256 != file.sha256]
    return found


def find_variant_with(releases: Iterable[Release], model: Digest, *, runtime: str) -> Variant | None:
    """The variant for the runtime whose model file has this digest; None when no release of ours brought it."""
    variants = (variant for release in releases for variant in release.variants)
    return next((variant for variant in variants if variant.runtime == runtime and variant.model_file.sha256 == model), None)


# --- making them ---


def request(tx: db.Connection, *, tenant: TenantId, line: LineName, now: datetime, delay_s: float = 0.0) -> None:
    """Have the line's deltas looked after: a job, one per line at a time; call it in the transaction that changes what is wanted."""
    jobs.add(tx, tenant=tenant, kind=BUILD_DELTAS, payload={"line": line}, now=now, key=line, delay_s=delay_s, max_attempts=5)


def list_missing(database: db.Database, tenant: TenantId, pairs: Sequence[Pair]) -> list[Pair]:
    """Those of the pairs that nobody tried."""
    with database.reading() as tx:
        known = {(one.base_sha256, one.new_sha256) for one in store.list_deltas_to(tx, tenant, [pair.new.sha256 for pair in pairs])}
    missing: dict[tuple[Digest, Digest], Pair] = {}
    for pair in pairs:
        key = (pair.base_sha256, pair.new.sha256)
        if key not in known:
            missing.setdefault(key, pair)
    return list(missing.values())


def build(database: db.Database, blobs: BlobStore, clock: Clock, *, tenant: TenantId, pair: Pair, encode: Encoder) -> ReleaseDelta:
    """Make one delta, keep its bytes when it is worth it, and remember how it went. Raises: UnavailableError; what `encode` raises."""
    try:
        made = _make(database, blobs, tenant, pair, encode, now=clock.now())
    except (NotFoundError, TrustError) as error:  # a file of the release is lost or damaged in the blob store
        made = ReleaseDelta(
            tenant, pair.base_sha256, pair.new.sha256, DeltaState.FAILED, None, 0, "", 0.0, str(error)[:MAX_REASON], clock.now()
        )
    with database.transaction() as tx:
        store.save_delta(tx, made)
    return made


def _make(database: db.Database, blobs: BlobStore, tenant: TenantId, pair: Pair, encode: Encoder, *, now: datetime) -> ReleaseDelta:
    with tempfile.TemporaryDirectory(prefix="mooring-delta-") as scratch:
        folder = Path(scratch)
        new, out = _bring(blobs, pair.new.sha256, folder / f"new.{pair.new.name}"), folder / "delta"
        old = _bring(blobs, pair.base.sha256, folder / f"old.{pair.base.name}") if pair.base is not None else None
        encoded = encode(old, new, out)
        made = _judge(database, tenant, pair, out, encoded, now=now)
        if made.state is DeltaState.USABLE:
            blobs.put_file(out, expected=Digest(made.sha256))
    return made


def _judge(database: db.Database, tenant: TenantId, pair: Pair, out: Path, encoded: Encoded, *, now: datetime) -> ReleaseDelta:
    def result(state: DeltaState, reason: str, method: int | None = None, length: int = 0, sha256: str = "") -> ReleaseDelta:
        text = reason[:MAX_REASON]
        return ReleaseDelta(tenant, pair.base_sha256, pair.new.sha256, state, method, length, sha256, encoded.cpu_s, text, now)

    if encoded.error:
        return result(DeltaState.FAILED, encoded.error)
    try:
        header = _header_of(out)
    except (OSError, MooringError) as error:
        return result(DeltaState.FAILED, f"The encoder left no delta: {error}")
    if header.new_sha256 != pair.new.sha256 or (header.method != 0 and header.old_sha256 != pair.base_sha256):
        return result(DeltaState.FAILED, f"The encoder made {header.new_sha256} out of {header.old_sha256}.")
    length = out.stat().st_size
    limit = pair.new.length
    if pair.base is not None:
        with database.reading() as tx:
            whole = [one for one in store.list_deltas_to(tx, tenant, [pair.new.sha256]) if one.base_sha256 == NO_BASE]
        limit = min([limit, *(one.length for one in whole if one.state is DeltaState.USABLE)])
    if length >= limit or (pair.base is not None and header.method == 0):
        return result(DeltaState.USELESS, f"{length} bytes; without it {limit} are fetched.", int(header.method), length)
    return result(DeltaState.USABLE, "", int(header.method), length, _digest(out))


def _header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return Header.parse(file.read(HEADER_BYTES))


def _digest(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def _bring(blobs: BlobStore, digest: Digest, path: Path) -> Path:
    seen = hashlib.sha256()
    with path.open("wb") as out:
        for chunk in blobs.chunks(digest):
            seen.update(chunk)
            out.write(chunk)
    if f"sha256:{seen.hexdigest()}" != digest:
        raise TrustError(f"The blob store holds other bytes under {digest}.", hint="Restore it from a backup.", code="blob-corrupt")
    return path


class ChildEncoder:
    """Runs `python -m fleet.registry.delta_encoder OLD NEW OUT` under the rules' limits; `alive` is called while it works."""

    def __init__(self, rules: DeltaRules, *, stop: threading.Event, alive: Callable[[], None] = lambda: None) -> None:
        self._rules, self._stop, self._alive = rules, stop, alive

    def __call__(self, old: Path | None, new: Path, out: Path) -> Encoded:
        """Raises: UnavailableError when the server ends meanwhile, and what `alive` raises: then nothing is remembered."""
        command = [sys.executable, "-m", "fleet.registry.delta_encoder", str(old) if old is not None else "-", str(new), str(out)]
        # what it leaves behind when it is killed goes with our folder
        here = {**os.environ, "TMPDIR": str(out.parent)}
        with (out.parent / "errors").open("w+b") as errors:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=here)
            try:
                _limit(child.pid, self._rules)
                status, cpu_s = self._await(child)
            finally:
                if child.returncode is None:
                    child.kill()
                    child.wait()
            errors.seek(0)
            said = errors.read(_MAX_SAID)[-MAX_REASON:].decode(errors="replace").strip()
        if status == 0:
            return Encoded(cpu_s)
        how = {
            -signal.SIGXCPU: f"used its {self._rules.cpu_s} s of CPU",
            -signal.SIGALRM: f"did not end in {self._rules.timeout_s:g} s",
            -signal.SIGKILL: "was killed; is there too little memory?",
        }.get(status, f"ended with status {status}")
        return Encoded(cpu_s, f"The encoder {how}. {said.splitlines()[-1] if said else ''}".strip())

    def _await(self, child: "subprocess.Popen[bytes]") -> tuple[int, float]:
        """Exit status and seconds of CPU of the child, which is waited for here: only so is its own CPU known."""
        deadline, is_killed = time.monotonic() + self._rules.timeout_s, False
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                return child.returncode, usage.ru_utime + usage.ru_stime
            if time.monotonic() > deadline and not is_killed:
                child.send_signal(signal.SIGALRM)  # it catches none: this names what ended it
                is_killed = True
            if self._stop.wait(_POLL_S):
                raise UnavailableError("The server ends; the delta is made after the next start.", code="stopped")
            self._alive()


def _limit(pid: int, rules: DeltaRules) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, pid, rules.nice)
        resource.prlimit(pid, resource.RLIMIT_CPU, (rules.cpu_s, rules.cpu_s + 5))
        resource.prlimit(pid, resource.RLIMIT_AS, (rules.memory_mb << 20, rules.memory_mb << 20))
    except ProcessLookupError:  # it is over already
        return


# --- what a device may be offered ---


def offers_for(tx: db.Connection, tenant: TenantId, new: Variant, bases: Collection[Variant]) -> dict[Digest, tuple[DeltaOffer, ...]]:
    """Per file of the variant the usable deltas for a device that has these bases, the smallest first; small files have none."""
    had = {pair.new.sha256: set[Digest]() for pair in pairs_of(new, ())}
    for pair in pairs_of(new, bases):
        had[pair.new.sha256].add(pair.base_sha256)
    found: dict[Digest, list[DeltaOffer]] = {}
    for one in store.list_deltas_to(tx, tenant, list(had)) if had else ():
        if one.state is DeltaState.USABLE and one.method is not None and one.base_sha256 in had[one.new_sha256]:
            offer = DeltaOffer(base_sha256=one.base_sha256, sha256=one.sha256, length=one.length, method=one.method)
            found.setdefault(one.new_sha256, []).append(offer)
    return {new_sha256: tuple(sorted(offers, key=lambda one: (one.length, one.sha256))) for new_sha256, offers in found.items()}


# --- a device could not use it ---


def withdraw_failed(
    tx: db.Connection,
    *,
    tenant: TenantId,
    device: DeviceId,
    line: LineName,
    order: SignedOrder | None,
    failed: Collection[Digest],
    text: str,
    now: datetime,
) -> list[ReleaseDelta]:
    """Take back those of the failed deltas that the device was offered for the line: what it was not, it cannot take from others.

    Returns them; their bytes are the caller's to delete after the commit.
    """
    listed = listed_deltas(order) if order is not None else {}
    offers = [one for path, found in listed.items() if parse_target_path(path).line == line for one in found]
    meant = {Digest(one.sha256) for one in offers}.intersection(failed)
    reason = f"Device {device} could not use it: {text}"[:MAX_REASON]
    withdrawn = []
    for one in store.list_deltas_made(tx, tenant, meant) if meant else ():
        gone = replace(one, state=DeltaState.WITHDRAWN, reason=reason)
        store.save_delta(tx, gone)
        withdrawn.append(gone)
        detail = {"delta": one.sha256, "base": one.base_sha256, "new": one.new_sha256, "device": device}
        audit.append(tx, tenant=tenant, actor=LOOP, action="delta.withdrawn", subject=f"line/{line}", now=now, reason=reason, detail=detail)
    return withdrawn
