"""People are told when a part of the server stands still, and when it works again."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from fleet import db, parts
from fleet.monitoring.alerts import announcing, store
from fleet.monitoring.alerts.model import SERVER_STANDS_STILL, SERVER_WORKS, Alert
from fleet.parts import CONSEQUENCES, Standstill
from protocol.ids import TenantId

#: How long whoever tells must have seen it himself: after a night off, a server finds that nothing has worked for hours, and then it does.
SEEN_FOR = timedelta(seconds=60)


def tell(tx: db.Connection, tenant: TenantId, seen: Mapping[str, datetime], *, now: datetime, system_now: datetime) -> dict[str, datetime]:
    """Announce what began and what is over; returns since when each standstill has been seen, to be given back as `seen` at the next look.

    `system_now` is what the parts' stamps are compared with, `now` the server's clock. Once per standstill, and within an hour of the one
    before not at all until the hour is over.
    """
    found = {one.part: one for one in parts.list_standstills(tx, tenant, now=system_now)}
    since = {part: seen.get(part, system_now) for part in found}
    for part in CONSEQUENCES:
        told = store.find_told(tx, tenant, f"server/{part}")
        is_told = told is not None and told[1]
        if part not in found and is_told:
            announcing.announce_over(tx, tenant, _over(part, now=now), now=now)
        elif part in found and not is_told and system_now - since[part] >= SEEN_FOR:
            announcing.announce_open(tx, tenant, _open(found[part], now=now), now=now)
    return since


def _open(one: Standstill, *, now: datetime) -> Alert:
    return Alert(
        id=f"server-{one.part}-{now:%Y%m%dT%H%M%S}-stands-still",
        type=SERVER_STANDS_STILL,
        subject=f"server/{one.part}",
        time=now,
        title=f"The server's {one.part} stands still",
        text=f"{one.consequence} Since {one.since:%Y-%m-%d %H:%M:%S} UTC. {one.text}",
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
