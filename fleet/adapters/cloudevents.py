"""An alert as a CloudEvent 1.0 in structured mode (JSON format), and its signature. Pure.

Signed as Standard Webhooks does: HMAC-SHA256 over "id.timestamp.body", base64, with the version before it.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from fleet.monitoring.alerts.announcing import cloud_event
from fleet.monitoring.alerts.model import Alert
from protocol.ids import TenantId

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
#: A body beyond this is cut down to what names the event, bytes.
MAX_BODY = 64 * 1024


def body_of(alert: Alert, tenant: TenantId, *, link: str = "") -> bytes:
    """The event's bytes; data that is too long is left out, and said to be."""
    event = cloud_event(alert, tenant, link=link)
    body = _json(event)
    if len(body) <= MAX_BODY:
        return body
    kept = {name: event["data"][name] for name in ("title", "text", "severity", "link") if name in event["data"]}
    return _json({**event, "data": {**kept, "is_cut": True}})


def _json(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`; `secret` is "whsec_" and base64, `timestamp` seconds."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers_of(secret: str, *, message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """What goes before the body."""
    return {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(len(body)),
        "User-Agent": "mooring-webhook/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, message_id=message_id, timestamp=timestamp, body=body),
    }
