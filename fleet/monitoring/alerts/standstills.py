"""People are told when a part of the server stands still, and when it works again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fleet import db, parts
from fleet.monitoring.alerts import announcing, store
from fleet.monitoring.alerts.model import SERVER_STANDS_STILL, SERVER_WORKS, Alert
from fleet.parts import CONSEQUENCES, Standstill
from protocol.ids import TenantId

#: How long whoever tells must have seen it himself: after a night off, a server finds that nothing has worked for hours, and then it does.
SEEN_FOR = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Seen:
    """When a standstill was seen first and last, with no long pause between two looks."""

    first: datetime
    last: datetime


def tell(tx: db.Connection, tenant: TenantId, seen: Mapping[str, Seen], *, now: datetime, system_now: datetime) -> dict[str, Seen]:
    """Announce what began, and what a process says to work again; returns what was seen, to be given back as `seen` at the next look.

    `system_now` is what the parts' stamps are compared with (`db.clock`), `now` the server's clock. Once per standstill, and within an hour
    of the one before not at all until the hour is over.
    """
    found = {one.part: one for one in parts.list_standstills(tx, tenant, now=system_now)}
    working = parts.list_working(tx, tenant, now=system_now)
    looks = {part: Seen(_first(seen.get(part), system_now), system_now) for part in found}
    for part in CONSEQUENCES:
        told = store.find_told(tx, tenant, f"server/{part}")
        is_told = told is not None and told[1]
        if part in working and is_told:
            announcing.announce_over(tx, tenant, _over(part, now=now), now=now)
        elif part in found and not is_told and system_now - looks[part].first >= SEEN_FOR:
            announcing.announce_open(tx, tenant, _open(found[part], now=now), now=now)
    return looks


def _first(before: Seen | None, now: datetime) -> datetime:
    """When it was seen first: now after a pause, as of a machine that slept, or of one that had not this role for a while."""
    return before.first if before is not None and timedelta() <= now - before.last <= SEEN_FOR else now


def _open(one: Standstill, *, now: datetime) -> Alert:
    return Alert(
        id=f"server-{one.part}-{now:%Y%m%dT%H%M%S}-stands-still",
        type=SERVER_STANDS_STILL,
        subject=f"server/{one.part}",
        time=one.since,
        title=f"The server's {one.part} stands still",
        text=f"{one.consequence} {one.text}",
        severity="error",
        data={"part": one.part, "since": one.since.isoformat()},
    )


def _over(part: str, *, now: datetime) -> Alert:
    return Alert(
        id=f"server-{part}-{now:%Y%m%dT%H%M%S}-works",
        type=SERVER_WORKS,
        subject=f"server/{part}",
        time=now,
        title=f"The server's {part} works again",
        text="Nothing is to be done.",
        severity="info",
        data={"part": part},
    )
