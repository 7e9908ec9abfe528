"""Server-sent events: the messages of devices as they are stored, and the parts of a page that changed.

A stream reads; it prolongs no session and ends with it. Nothing waits in a thread: many open pages cost one look each now and then.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import anyio
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from fleet.monitoring.live import Subscription, poll_received
from fleet.monitoring.model import LiveMessage
from fleet.web import auth, rest
from fleet.web.auth import Caller
from fleet.web.services import Services
from protocol.errors import UnavailableError
from protocol.ids import DeviceId

#: Seconds of system time: between two looks for messages, between two renderings of a page, between two signs of life.
WATCH_S, PAGE_S, BEAT_S = 0.25, 1.0, 10.0
#: A browser that lost the stream comes back after so many milliseconds.
RETRY_MS = 3000
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

#: What a page shows now: name of the part → HTML or JSON.
Render = Callable[[], Mapping[str, str]]


def watch(request: Request, caller: Caller, device: DeviceId | None) -> StreamingResponse:
    """Every message that is stored from now on, as JSON, event name "message"."""
    return StreamingResponse(_messages(request, caller, device), media_type="text/event-stream", headers=_HEADERS)


def page_stream(request: Request, render: Render, *, every_s: float = PAGE_S) -> StreamingResponse:
    """The parts of a page whenever they change, each as an event of its own name; with `Last-Event-ID` only what changed since."""
    return StreamingResponse(_parts(request, render, every_s), media_type="text/event-stream", headers=_HEADERS)


def event(name: str, data: str, *, event_id: str | None = None) -> str:
    """One event in the form that goes over the wire."""
    lines = [f"event: {name}", *(f"data: {line}" for line in data.splitlines() or [""])]
    return "\n".join(([f"id: {event_id}"] if event_id else []) + lines) + "\n\n"


async def _messages(request: Request, caller: Caller, device: DeviceId | None) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    services = auth.services_of(request)
    with _source(services, caller, device) as take:
        async for is_beat in _rhythm(request, WATCH_S):
            for message in await run_in_threadpool(take):
                yield event("message", json.dumps(message_json(message)))
            if is_beat:
                yield ": beat\n\n"
    yield event("ended", "{}")


async def _parts(request: Request, render: Render, every_s: float) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    sent = _known(request.headers.get("last-event-id", ""))
    async for is_beat in _rhythm(request, every_s):
        try:
            parts = await run_in_threadpool(render)
        except UnavailableError:
            continue  # the database is away: the page says "stale" when no beat comes either
        fresh = {name: data for name, data in parts.items() if sent.get(name) != _short(data)}
        sent = {name: _short(data) for name, data in parts.items()}
        for name, data in fresh.items():
            yield event(name, data, event_id=",".join(f"{part}={digest}" for part, digest in sent.items()))
        if is_beat:
            yield event("beat", "{}")
    yield event("ended", "{}")


async def _rhythm(request: Request, every_s: float) -> AsyncIterator[bool]:
    """Once per `every_s` until the session is over; true when a sign of life is due."""
    beat_at = anyio.current_time()
    while True:
        is_beat = anyio.current_time() >= beat_at
        if is_beat:
            beat_at = anyio.current_time() + BEAT_S
            if not await run_in_threadpool(auth.is_still_valid, request):
                return
        yield is_beat
        await anyio.sleep(every_s)


@contextmanager
def _source(services: Services, caller: Caller, device: DeviceId | None) -> Iterator[Callable[[], list[LiveMessage]]]:
    """What gives the messages since it was last asked: pushed where this process ingests, else from the database."""
    if services.live.is_fed:
        with services.live.subscribe(caller.tenant, device) as subscription:
            yield lambda: _taken(subscription)
    else:
        after: datetime = services.clock.now()

        def poll() -> list[LiveMessage]:
            nonlocal after
            found, after = poll_received(services.database, caller.tenant, after=after, device=device)
            return found

        yield poll


def _taken(subscription: Subscription) -> list[LiveMessage]:
    return subscription.take(timeout_s=0.0)


def message_json(message: LiveMessage) -> dict[str, Any]:
    """A message as the API answers it."""
    return {"device": message.device, "topic": message.topic, "ts": rest.iso(message.ts), "body": message.body}


def _short(data: str) -> str:
    return hashlib.sha256(data.encode()).hexdigest()[:12]


def _known(event_id: str) -> dict[str, str]:
    """What the browser already has: the id of the last event it saw names every part by its digest."""
    pairs = (item.partition("=") for item in event_id[:2000].split(",") if "=" in item)
    return {name: digest for name, _, digest in pairs}
