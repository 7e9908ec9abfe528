"""Which parts of the server work: each process says so of each of its parts, and what keeps one from it; people see what stands still.

Stamps are of system time: an accelerated clock makes nobody late.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from fleet import db
from protocol.ids import TenantId

#: How often a process says how its parts are, in seconds: while all work, and while one does not. One not heard of for so long is gone.
BEAT_S, TROUBLED_BEAT_S, LATE = 10.0, 2.0, timedelta(seconds=45)
#: A part stands still when it has not worked for so long: connections break and come back, processes are started again.
GRACE = timedelta(seconds=30)
#: Rounds are over within seconds; a part whose round takes so long hangs.
LONG_ROUND = timedelta(minutes=2)
JUST_BEGUN = "It has just begun."
GONE = "No process of the server that does this has been heard of."
MAX_TEXT = 500

#: What it means for people that a part stands still.
CONSEQUENCES: Mapping[str, str] = {
    "ingest": "What devices say is not stored; they keep it and send it later.",
    "controller": "Campaigns, alarms, rules and commands to devices stand still.",
    "worker": "Changes of groups do not reach their devices.",
    "alerts": "Nobody is told of alerts by webhook or mail.",
    "deltas": "No deltas are made; devices download whole models.",
}

server_parts = sa.Table(
    "server_parts",
    db.metadata,
    db.tenant_column(),
    sa.Column("part", sa.String(63), primary_key=True),
    # host and process id
    sa.Column("process", sa.String(200), primary_key=True),
    sa.Column("said_at", db.utc, nullable=False),
    # empty: it works
    sa.Column("trouble", sa.Text, nullable=False),
    sa.Column("began_at", db.utc, nullable=False),
    # when it was last known to work; null: never
    sa.Column("worked_at", db.utc),
)


@dataclass(frozen=True, slots=True)
class PartState:
    """How a part of one process is."""

    #: What keeps it from working; empty: it works.
    trouble: str
    began_at: datetime
    #: When it was last known to work; None: not since it began.
    worked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standstill:
    """A part that works in no process of the server."""

    part: str
    since: datetime
    #: Why, as far as the server knows.
    text: str

    @property
    def consequence(self) -> str:
        """What that means for people."""
        return CONSEQUENCES.get(self.part, "")


class Pulse:
    """How the parts of this process are, as far as they and their supervisor say; may be asked and told from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, PartState] = {}
        self._rounds: dict[str, datetime] = {}
        self._failures: dict[str, str] = {}
        self._looks: dict[str, Callable[[], str]] = {}

    def begin(self, part: str, *, now: datetime) -> None:
        """The part is one of this process from now on; whether it works is not known yet."""
        with self._lock:
            self._states.setdefault(part, PartState(JUST_BEGUN, now))

    def watch(self, part: str, look: Callable[[], str]) -> None:
        """`look` says what keeps the part from its work although its rounds go on; empty: nothing."""
        with self._lock:
            self._looks[part] = look

    def worked(self, part: str, *, now: datetime) -> None:
        """The part has done a round of its work, or found that there is none."""
        with self._lock:
            self._rounds[part] = now
            self._failures.pop(part, None)

    def failed(self, part: str, text: str) -> None:
        """The part ended with an error, and is started again."""
        with self._lock:
            self._failures[part] = text
            self._looks.pop(part, None)

    def states(self, *, now: datetime) -> dict[str, PartState]:
        """How each part is now."""
        with self._lock:
            looks = dict(self._looks)
        seen = {part: look() for part, look in looks.items()}
        with self._lock:
            for part, before in self._states.items():
                trouble = self._failures.get(part) or seen.get(part) or _word_of_rounds(self._rounds.get(part), now)
                self._states[part] = PartState(trouble[:MAX_TEXT], before.began_at, before.worked_at if trouble else now)
            return dict(self._states)


def _word_of_rounds(last: datetime | None, now: datetime) -> str:
    if last is None:
        return JUST_BEGUN
    return f"It has not ended a round of its work since {last:%Y-%m-%d %H:%M:%S} UTC." if now - last > LONG_ROUND else ""


def report(tx: db.Connection, tenant: TenantId, process: str, states: Mapping[str, PartState], *, now: datetime) -> None:
    """Keep how the parts of a process are, in place of what it said before."""
    rows = [{"tenant": tenant, "part": part, "process": process, "said_at": now, **asdict(state)} for part, state in states.items()]
    db.upsert(tx, server_parts, rows)


def list_standstills(tx: db.Connection, tenant: TenantId, *, now: datetime) -> list[Standstill]:
    """The parts that have worked in no process for longer than breaks take, by name; none that was never heard of.

    `now` and the moments of `report` are of one clock, `db.clock`: processes on several hosts have several.
    """
    found = []
    for part, said in sorted(_rows(tx, tenant).items()):
        if any(_works(row, now) for row in said):
            continue
        since = max((row["worked_at"] for row in said if row["worked_at"]), default=min(row["began_at"] for row in said))
        heard_of = [row for row in said if _is_heard(row, now)]
        text = max(heard_of, key=lambda row: row["said_at"])["trouble"] if heard_of else GONE
        if now - since > GRACE:
            found.append(Standstill(part, since, text))
    return found


def list_working(tx: db.Connection, tenant: TenantId, *, now: datetime) -> set[str]:
    """The parts of which a process says that they work."""
    return {part for part, said in _rows(tx, tenant).items() if any(_works(row, now) for row in said)}


def _rows(tx: db.Connection, tenant: TenantId) -> dict[str, list[sa.RowMapping]]:
    rows: dict[str, list[sa.RowMapping]] = defaultdict(list)
    for row in tx.execute(sa.select(server_parts).where(server_parts.c.tenant == tenant)).mappings():
        rows[row["part"]].append(row)
    return rows


def _is_heard(row: sa.RowMapping, now: datetime) -> bool:
    return bool(abs(now - row["said_at"]) <= LATE)  # from the future: the clock was set back


def _works(row: sa.RowMapping, now: datetime) -> bool:
    return not row["trouble"] and _is_heard(row, now)


def forget(tx: db.Connection, tenant: TenantId, part: str) -> None:
    """The part is switched off: that it works nowhere is as it should be. Processes that have it all the same say so again."""
    tx.execute(sa.delete(server_parts).where(server_parts.c.tenant == tenant, server_parts.c.part == part))


def prune(tx: db.Connection, *, before: datetime) -> int:
    """Forget processes not heard of since the moment, but the one heard of last of each part; returns how many rows."""
    later = server_parts.alias()
    is_followed = sa.exists().where(
        later.c.tenant == server_parts.c.tenant, later.c.part == server_parts.c.part, later.c.said_at > server_parts.c.said_at
    )
    return tx.execute(sa.delete(server_parts).where(server_parts.c.said_at < before, is_followed)).rowcount
