"""The signed configuration on the device: taken on trial, kept when the device still reaches its server and still infers, else given back.

    configuration/pointer, pointer.prev    {committed, trial, offered, returned, floors, seq, crc32}
    configuration/{hex}.json               the files, by digest

Rules: a trial never replaces what was committed before it is committed itself; every move is one atomic pointer; a file is written
before a pointer names it and removed after none does. A return needs no server. What was returned from is refused until it is offered
with a higher attempt.
"""

import json
import logging
import random
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from agent.slots import POINTER, POINTER_PREV, Disk, LocalDisk, disk_error, replace_file
from protocol.canonical import canonical_json, digest_of
from protocol.clock import Clock, to_unix_ms
from protocol.configuration import MAX_DOCUMENT_BYTES, Configuration, Effective, effective, from_bytes
from protocol.errors import (
    AccessError,
    ConflictError,
    DeviceError,
    InvalidError,
    MooringError,
    TransferError,
    TrustError,
    UnavailableError,
)
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, Digest

log = logging.getLogger("mooring.configuration")

#: A pointer is a few hundred bytes; more is damage.
MAX_POINTER_BYTES = 64 * 1024
#: Starts of the agent within one trial; one more and the configuration goes back: it may be what ends the agent.
MAX_STARTS = 3
#: More errors than before: share of inferences, and errors below which nothing is said.
ERROR_MARGIN, FEW_ERRORS = 0.001, 3
#: Frames that a pipeline must have time for in a trial; a slower one is not waited for.
FEWEST_FRAMES = 2
#: Full jitter `U(0, 1.5^n)` seconds after the n-th failed transfer in a row, capped.
BACKOFF_BASE, BACKOFF_CAP_S = 1.5, 600.0
#: Seconds of the agent's clock between two looks when nothing is asked for.
IDLE_S = 3600.0

_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_Digest = Annotated[Digest, StringConstraints(pattern=DIGEST_PATTERN)]
_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
_Text = Annotated[str, StringConstraints(max_length=2000)]


@dataclass(frozen=True, slots=True)
class ConfigurationOffer:
    """A configuration that both repositories name for this device."""

    group: _Name
    rev: _Count
    attempt: _Count
    #: Bytes.
    length: _Count
    sha256: _Digest
    url: str = ""

    def is_same(self, other: "ConfigurationOffer | None") -> bool:
        """Whether it is the same file, however often offered."""
        return other is not None and (self.group, self.rev, self.sha256) == (other.group, other.rev, other.sha256)


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration in force that is not kept yet."""

    offer: ConfigurationOffer
    #: Starts of the agent in this trial.
    starts: _Count = 0
    #: The device reached its server before: it must again.
    had_link: bool = False
    #: Pipelines that inferred before: they must again.
    flowing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Returned:
    """What this device went back from, and why."""

    offer: ConfigurationOffer
    reason: _Text
    text: _Text
    at_ms: _Count


@dataclass(frozen=True, slots=True)
class Pointer:
    """The one fact about the configuration."""

    committed: ConfigurationOffer | None = None
    trial: Trial | None = None
    #: Named by the server, not yet on this device.
    offered: ConfigurationOffer | None = None
    returned: Returned | None = None
    #: Per group the highest revision once committed.
    floors: dict[str, _Count] = field(default_factory=dict)
    seq: _Count = 0

    @property
    def in_force(self) -> ConfigurationOffer | None:
        """The configuration that the device runs by."""
        return self.trial.offer if self.trial else self.committed


# --- the judgment ---


@dataclass(frozen=True, slots=True)
class TrialRules:
    """When a trial is judged; seconds of the agent's clock."""

    #: Earliest verdict in favor.
    settle_s: float = 30.0
    #: Latest verdict.
    trial_s: float = 300.0


@dataclass(frozen=True, slots=True)
class LineCounts:
    """What one line did since its model was activated."""

    inferences: int
    errors: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What the control loop sees at one moment."""

    #: Seconds of the agent's clock.
    now_s: float
    is_connected: bool
    #: When the broker last acknowledged a message of ours, on the same clock; None: not since the start.
    proved_s: float | None
    #: Per pipeline that is configured now: predictions since the agent started, and its `max_fps`.
    predictions: Mapping[str, int] = field(default_factory=dict)
    max_fps: Mapping[str, float] = field(default_factory=dict)
    #: Pipelines that inferred lately.
    flowing: frozenset[str] = frozenset()
    lines: Mapping[str, LineCounts] = field(default_factory=dict)


class Judgment(StrEnum):
    """What becomes of a trial."""

    WAIT = "wait"
    COMMIT = "commit"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgment with its reason; `reason` is a stable code."""

    judgment: Judgment
    reason: str = ""
    text: str = ""


def judge(trial: Trial, *, first: Observed, now: Observed, rules: TrialRules) -> Verdict:
    """What becomes of the trial that took force at `first`. Pure.

    The link is proved by an acknowledgement that came after the device had settled: a connection that only looks open proves nothing.
    """
    elapsed = now.now_s - first.now_s
    for line, counts in now.lines.items():
        before = first.lines.get(line, LineCounts(0, 0, 0))
        if counts.crashes > before.crashes:
            return Verdict(Judgment.RETURN, "inference_crashed", f"The inference process died over line {line}.")
        errors, done = counts.errors - before.errors, counts.inferences - before.inferences
        usual = before.errors / before.inferences if before.inferences else 0.0
        if errors >= FEW_ERRORS and done > 0 and errors / done > usual + ERROR_MARGIN:
            return Verdict(Judgment.RETURN, "inference_errors", f"{errors} of {done} inferences of line {line} failed.")
    if elapsed < rules.settle_s:
        return Verdict(Judgment.WAIT)
    is_linked = not trial.had_link or (now.proved_s is not None and now.proved_s >= first.now_s + rules.settle_s)
    awaited = [name for name in trial.flowing if name in now.max_fps and not _is_slow(now.max_fps[name], rules)]
    silent = [name for name in awaited if now.predictions.get(name, 0) <= first.predictions.get(name, 0)]
    if is_linked and not silent:
        return Verdict(Judgment.COMMIT)
    if elapsed < rules.trial_s:
        return Verdict(Judgment.WAIT)
    if not is_linked:
        return Verdict(Judgment.RETURN, "link_lost", f"The server was not reached for {elapsed:.0f} s after the change.")
    return Verdict(Judgment.RETURN, "frames_stopped", f"No inference on {', '.join(silent)} for {elapsed:.0f} s after the change.")


def _is_slow(max_fps: float, rules: TrialRules) -> bool:
    return 0 < max_fps * rules.trial_s < FEWEST_FRAMES


# --- the keeper ---


class SignedConfiguration:
    """Keeps the configuration below one folder. `offer` may be called by any thread, `fetch_pending` by one, `tick` by the control loop."""

    def __init__(
        self, folder: Path, *, clock: Clock, tenant: str, device: str, rules: TrialRules | None = None, disk: Disk | None = None
    ) -> None:
        """Take up what was remembered; a trial goes on from its beginning, or ends when it was begun too often. Raises: DeviceError."""
        self._folder, self._clock, self._rules = folder, clock, rules or TrialRules()
        self._tenant, self._device = tenant, device
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._lock, self._wake = threading.RLock(), threading.Event()
        self._first: Observed | None = None
        self._ready: ConfigurationOffer | None = None
        self._failures = 0
        #: Why the last transfer or write failed; empty when none did.
        self.trouble = ""
        #: Nothing that was remembered could be read: what the server said before must be asked for again.
        self.is_lost = False
        #: Grows when something else is in force, and with everything worth telling.
        self.revision, self.told = 0, 0
        self.in_force = Effective({}, {}, {})
        self._pointer = self._before = Pointer()
        with _translated():
            self._pointer, self._before = self._load()
            self._resume()

    @property
    def pointer(self) -> Pointer:
        """What is remembered."""
        return self._pointer

    @property
    def is_busy(self) -> bool:
        """Whether `tick` has something to do."""
        return self._ready is not None or self._pointer.trial is not None

    def floors(self) -> dict[str, int]:
        """Per group the revision once committed: nothing older of it is taken."""
        return dict(self._pointer.floors)

    # --- what the server names ---

    def offer(self, offer: ConfigurationOffer | None) -> None:
        """Both repositories name this configuration for the device; None: it keeps what it has. Remembered durably. Raises: DeviceError."""
        if offer is None:
            return
        with self._lock, _translated():
            pointer, trial = self._pointer, self._pointer.trial
            is_kept = offer.is_same(pointer.committed)
            if is_kept and trial is not None:
                self._return("superseded", "The server names the configuration that was kept before.", is_blocked=False)
                return
            wanted = None if is_kept or self._is_refused(offer) or (trial and offer.is_same(trial.offer)) else offer
            if wanted != pointer.offered:
                self._move(replace(pointer, offered=wanted))
                self._ready = None
                self._wake.set()

    def _is_refused(self, offer: ConfigurationOffer) -> bool:
        returned, floor = self._pointer.returned, self._pointer.floors.get(offer.group, 0)
        return offer.rev < floor or (returned is not None and offer.is_same(returned.offer) and offer.attempt <= returned.offer.attempt)

    def run(self, stop: threading.Event, fetch: Callable[[ConfigurationOffer], bytes]) -> None:
        """Bring what is offered until `stop` is set; call `wake` after setting it."""
        while not stop.is_set():
            pause_s = self.fetch_pending(fetch)
            self._clock.wait(self._wake, pause_s)
            self._wake.clear()

    def wake(self) -> None:
        """Look soon."""
        self._wake.set()

    def fetch_pending(self, fetch: Callable[[ConfigurationOffer], bytes]) -> float:
        """Bring the offered file onto this device, checked; returns the seconds to wait before the next look.

        `fetch` raises TransferError, AccessError or ConflictError (again later, later each time), TrustError, InvalidError.
        """
        offer = self._pointer.offered
        if offer is None or offer.is_same(self._ready):
            return IDLE_S
        try:
            data = self._read(self._file(offer))
            is_here = _fits(data, offer)
            if not is_here:
                data = _intact(fetch(offer), offer)
            self._check(data, offer)
            if not is_here:
                self._keep_file(offer, data)
            self._failures, self.trouble = 0, ""
            with self._lock:
                self._ready = offer if offer == self._pointer.offered else None
        except (TrustError, InvalidError) as error:
            self._refuse(offer, error)
        except (TransferError, AccessError, ConflictError, OSError, DeviceError) as error:
            self.trouble = str(error)[:2000]
            return self._pause(error)
        return IDLE_S

    def _check(self, data: bytes, offer: ConfigurationOffer) -> None:
        found = from_bytes(data)
        if (found.tenant, found.group, found.rev) != (self._tenant, offer.group, offer.rev):
            raise InvalidError(
                f"The file is for {found.tenant}/{found.group}/{found.rev}; wanted {self._tenant}/{offer.group}/{offer.rev}.",
                code="wrong-group",
            )

    def _keep_file(self, offer: ConfigurationOffer, data: bytes) -> None:
        self._disk.make_folder(self._folder)
        replace_file(self._disk, self._file(offer), data)

    def _refuse(self, offer: ConfigurationOffer, error: MooringError) -> None:
        with self._lock, _translated():
            if self._pointer.offered == offer:
                self._move(replace(self._pointer, offered=None, returned=self._returned(offer, error.code, str(error))))
                self._tidy()

    def _pause(self, error: Exception) -> float:
        self._failures += 1
        self.told += 1
        asked = error.retry_after_s if isinstance(error, UnavailableError) else None
        wait_s = random.uniform(0.0, min(BACKOFF_CAP_S, BACKOFF_BASE ** min(self._failures, 64)))  # noqa: S311 - spreads, guards no secret
        return max(wait_s, min(asked or 0.0, BACKOFF_CAP_S))

    # --- the trial ---

    def tick(self, observed: Observed) -> bool:
        """Begin, keep or end a trial; returns whether something else is in force now. Raises: DeviceError: nothing moved, again later."""
        before = self.revision
        with self._lock, _translated():
            if self._ready is not None and self._ready == self._pointer.offered:
                self._begin(self._ready, observed)
            elif self._pointer.trial is not None:
                self._watch(self._pointer.trial, observed)
        return self.revision != before

    def wants_proof(self, observed: Observed) -> bool:
        """Whether a message to the broker is wanted now, whose acknowledgement proves that the link works under the trial."""
        trial, first = self._pointer.trial, self._first
        if trial is None or first is None or not trial.had_link or observed.now_s < first.now_s + self._rules.settle_s:
            return False
        return observed.proved_s is None or observed.proved_s < first.now_s + self._rules.settle_s

    def _begin(self, offer: ConfigurationOffer, observed: Observed) -> None:
        if self._document(offer) is None:  # it was here when it was fetched
            self._ready = None
            self._wake.set()
            return
        trial = Trial(offer, starts=1, had_link=observed.is_connected, flowing=tuple(sorted(observed.flowing)))
        self._move(replace(self._pointer, trial=trial, offered=None))
        self._ready, self._first = None, observed
        self._take_force()
        log.info("configuration.trial group=%s rev=%d", offer.group, offer.rev)

    def _watch(self, trial: Trial, observed: Observed) -> None:
        if self._first is None:  # after a restart: from the beginning
            self._first = observed
        verdict = judge(trial, first=self._first, now=observed, rules=self._rules)
        if verdict.judgment is Judgment.COMMIT:
            self._commit(trial)
        elif verdict.judgment is Judgment.RETURN:
            self._return(verdict.reason, verdict.text)

    def _commit(self, trial: Trial) -> None:
        offer, pointer = trial.offer, self._pointer
        floors = {**pointer.floors, offer.group: max(offer.rev, pointer.floors.get(offer.group, 0))}
        self._move(replace(pointer, committed=offer, trial=None, returned=None, floors=floors))
        self._first = None
        log.info("configuration.committed group=%s rev=%d", offer.group, offer.rev)
        self._tidy()

    def _return(self, reason: str, text: str, *, is_blocked: bool = True) -> None:
        pointer, trial = self._pointer, self._pointer.trial
        if trial is None:
            return
        returned = self._returned(trial.offer, reason, text) if is_blocked else pointer.returned
        self._move(replace(pointer, trial=None, offered=None if not is_blocked else pointer.offered, returned=returned))
        self._first = None
        self._take_force()
        log.warning("configuration.returned group=%s rev=%d reason=%s", trial.offer.group, trial.offer.rev, reason)
        self._tidy()

    def _returned(self, offer: ConfigurationOffer, reason: str, text: str) -> Returned:
        return Returned(offer, reason[:200], text[:2000], max(0, to_unix_ms(self._clock.now())))

    # --- after a start ---

    def _resume(self) -> None:
        committed, trial = self._pointer.committed, self._pointer.trial
        if committed is not None and self._document(committed) is None:
            log.error("configuration.damaged group=%s rev=%d", committed.group, committed.rev)
            self._move(replace(self._pointer, committed=None, offered=self._pointer.offered or committed))
        if trial is not None:
            if self._document(trial.offer) is None:
                self._return("damaged", "The file of the trial could not be read.")
            elif trial.starts >= MAX_STARTS:
                self._return("restarts", f"The agent started {trial.starts} times without coming to a verdict.")
            else:
                self._move(replace(self._pointer, trial=replace(trial, starts=trial.starts + 1)))
        self._take_force()
        self._tidy()

    def _take_force(self) -> None:
        offer = self._pointer.in_force
        document = None if offer is None else self._document(offer)
        self.in_force = Effective({}, {}, {}) if document is None else effective(document, self._device)
        self.revision += 1

    def _document(self, offer: ConfigurationOffer) -> Configuration | None:
        data = self._read(self._file(offer))
        try:
            return from_bytes(data) if _fits(data, offer) else None
        except InvalidError:
            return None

    # --- files ---

    def _file(self, offer: ConfigurationOffer) -> Path:
        return self._folder / f"{offer.sha256.removeprefix('sha256:')}.json"

    def _read(self, path: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        data = b""
        try:
            for chunk in self._disk.read_chunks(path):
                data += chunk
                if len(data) > limit:
                    return b""
        except (FileNotFoundError, NotADirectoryError):
            return b""
        return data

    def _move(self, new: Pointer) -> None:
        """Make the pointer this one, durably; memory follows only then."""
        self._disk.make_folder(self._folder)
        new = replace(new, seq=self._pointer.seq + 1)
        if self._pointer.seq:
            replace_file(self._disk, self._folder / POINTER_PREV, _sealed(self._pointer))
        replace_file(self._disk, self._folder / POINTER, _sealed(new))
        self._before, self._pointer = self._pointer, new
        self.told += 1

    def _load(self) -> tuple[Pointer, Pointer]:
        """The pointer and the one before it, which a damaged one falls back to."""
        names = self._disk.sizes(self._folder)
        # after a cut both are whole, and the files of both are there
        found = [_parse(self._read(self._folder / name, MAX_POINTER_BYTES)) for name in (POINTER, POINTER_PREV)]
        whole = [pointer for pointer in found if pointer is not None]
        self.is_lost = not whole and POINTER in names
        return (whole[0], whole[-1]) if whole else (Pointer(), Pointer())

    def _tidy(self) -> None:
        """Remove the files that neither pointer names, and one that was refused. What cannot be removed stays until the next time."""
        now, before = self._pointer, self._before
        named = [now.committed, now.in_force, now.offered, before.committed, before.in_force]
        if before.offered is not None and (now.returned is None or not before.offered.is_same(now.returned.offer)):
            named.append(before.offered)
        wanted = {one.sha256 for one in named if one is not None}
        keep = {POINTER, POINTER_PREV, *(f"{digest.removeprefix('sha256:')}.json" for digest in wanted)}
        try:
            gone = [name for name in self._disk.sizes(self._folder) if name not in keep]
            for name in gone:
                self._disk.remove(self._folder / name)
            if gone:
                self._disk.sync_folder(self._folder)
        except OSError as error:
            self.trouble = f"Old files could not be removed: {error}"[:2000]


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the disk says into our words."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, "the configuration") from error


def _intact(data: bytes, offer: ConfigurationOffer) -> bytes:
    """The bytes. Raises: TransferError when they are not the signed ones: a cache or a proxy spoiled them, which blocks no revision."""
    if not _fits(data, offer):
        raise TransferError(
            f"The file came with {len(data)} bytes and {digest_of(data)}; signed were {offer.length} and {offer.sha256}.",
            code="hash_mismatch",
        )
    return data


def _fits(data: bytes, offer: ConfigurationOffer) -> bool:
    return len(data) == offer.length and digest_of(data) == offer.sha256


_POINTER: TypeAdapter[Pointer] = TypeAdapter(Pointer)


def _sealed(pointer: Pointer) -> bytes:
    fields = json.loads(_POINTER.dump_json(pointer))
    return canonical_json({**fields, "crc32": zlib.crc32(canonical_json(fields))})


def _parse(data: bytes) -> Pointer | None:
    try:
        fields = json.loads(data)
        seal = fields.pop("crc32")
        return _POINTER.validate_python(fields) if zlib.crc32(canonical_json(fields)) == seal else None
    except (ValueError, KeyError, AttributeError, TypeError, ValidationError, MooringError, RecursionError):
        return None
