"""An alert as a CloudEvent 1.0 in structured mode (JSON format), and its signature. Pure.

Signed as Standard Webhooks does: HMAC-SHA256 over "id.timestamp.body", base64, with the version before it.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

from fleet.monitoring.alerts.model import Alert
from protocol.ids import TenantId

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
#: A body beyond this is cut down to what names the event, bytes.
MAX_BODY = 64 * 1024


def body_of(alert: Alert, tenant: TenantId) -> bytes:
    """The event's bytes; data that is too long is left out, and said to be."""
    about = {"title": alert.title[:500], "text": alert.text[:4000], "severity": alert.severity}
    event = {
        "specversion": "1.0",
        "id": alert.id,
        "source": f"/mooring/{tenant}",
        "type": alert.type,
        "subject": alert.subject,
        "time": alert.time.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": {**about, **alert.data},
    }
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    if len(body) <= MAX_BODY:
        return body
    return json.dumps({**event, "data": {**about, "is_cut": True}}, ensure_ascii=False, separators=(",", ":")).encode()


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
