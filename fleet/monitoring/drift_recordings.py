"""Who made a recording that somebody brings: proven by the key of the device that signed it, or said by the person who brings it.

Nothing of a signed recording is read before its signature holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from fleet.db import Connection
from fleet.devices import store as device_store
from fleet.devices.model import DeviceState
from fleet.devices.pki import load_public_key
from fleet.monitoring.drift_model import ReferenceSource
from protocol.canonical import digest_of
from protocol.clock import from_unix_ms, to_unix_ms
from protocol.errors import InvalidError, TrustError
from protocol.ids import DeviceId, TenantId
from protocol.recordings import RecordingFile, RecordingStatement, read_recording, verify_recording
from protocol.sketches.codec import MAX_AHEAD_MS


@dataclass(frozen=True, slots=True)
class Brought:
    """What the one who brings a recording says of it."""

    #: The device that the reference is for.
    device: DeviceId
    #: The device that recorded, when it is another one.
    recorded_by: DeviceId | None = None
    #: Nobody signed it: the one who brings it vouches for it.
    is_unsigned: bool = False


@dataclass(frozen=True, slots=True)
class Proven:
    """A recording that may be learned from."""

    #: As protocol.sketches.recording writes it.
    body: bytes
    source: ReferenceSource
    #: What the audit entry says of it.
    detail: Mapping[str, str]


_AGAIN = "Copy the file again, bytes as they are; or record again: mooring-agent drift record -o FILE."
_ASK = "Record again and bring that file; ask who had this one in between: it is not what the device wrote."
#: What to do about what `protocol` refuses, by its code: only whoever brings a file to a server knows commands.
_ADVICE: Mapping[str, str] = {
    "malformed": _AGAIN,
    "unknown-version": "Wanted a file that `mooring-agent drift record` wrote; one of a newer agent wants a newer server.",
    "too-large": "Record less: mooring-agent drift record --days 28 --pipeline P -o FILE.",
    "recording-key": "A device has a new key after it enrolled anew: record again on it.",
    "recording-signature": _ASK,
    "recording-type": _ASK,
    "recording-form": _ASK,
    "recording-changed": _ASK,
}


@contextmanager
def advised() -> Iterator[None]:
    """What is refused in the block says what to do about it, where it says nothing."""
    try:
        yield
    except (InvalidError, TrustError) as error:
        error.hint = error.hint or _ADVICE.get(error.code)
        raise


def prove(tx: Connection, data: bytes, brought: Brought, *, tenant: TenantId, now: datetime) -> Proven:
    """The recording in this file, when it is what the one who brings it says.

    Raises: TrustError: signed for another tenant (recording-tenant), by a device that is unknown here, with another key than is known of it
    (recording-key), or revoked (recording-revoked), not by its key (recording-signature, recording-type, recording-form), as other bytes
    (recording-changed), or in the future (recording-future). InvalidError: not signed and not said to be so (recording-unsigned), the other
    way round (recording-signed), of another device than was said (recording-device), or no recording at all.
    """
    if brought.is_unsigned and brought.recorded_by is not None:
        raise InvalidError(f"A recording that nobody signed cannot be shown to be of {brought.recorded_by}.", hint="Leave out --from.")
    file = read_recording(data)
    if file.claimed is None:
        return _unsigned(file, brought)
    if brought.is_unsigned:
        raise InvalidError(
            f"The recording has a signature, of {file.claimed.device}.",
            code="recording-signed",
            hint="Leave out --unsigned: it is verified.",
        )
    if file.claimed.tenant != tenant:
        raise TrustError(
            f"The recording was signed for tenant {file.claimed.tenant}; wanted {tenant}.",
            code="recording-tenant",
            hint="Its device belongs to another server or tenant: bring it there, or record on a device of this one.",
        )
    _check_device(file.claimed, brought)
    statement = verify_recording(_key_of(tx, tenant, DeviceId(file.claimed.device)), file)
    if statement.recorded_at > to_unix_ms(now) + MAX_AHEAD_MS:
        raise TrustError(
            f"The recording was signed at {from_unix_ms(statement.recorded_at):%Y-%m-%d %H:%M} UTC, and now is {now:%Y-%m-%d %H:%M}; "
            "wanted one of the past.",
            code="recording-future",
            hint="Set the clock of whichever of device and server is wrong; after the device's was, record again.",
        )
    detail = {
        "recorded_by": statement.device,
        "recorded_at": from_unix_ms(statement.recorded_at).isoformat(),
        "recording": statement.sha256,
    }
    return Proven(file.body, ReferenceSource.SIGNED_RECORDING, detail)


def _unsigned(file: RecordingFile, brought: Brought) -> Proven:
    if not brought.is_unsigned:
        raise InvalidError(
            "Nobody signed the recording, so nothing shows where it comes from.",
            code="recording-unsigned",
            hint="Record with `mooring-agent drift record`, which signs; or vouch for it yourself: --unsigned, with a reason.",
        )
    return Proven(file.body, ReferenceSource.RECORDING, {"signature": "none", "recording": digest_of(file.body)})


def _check_device(claimed: RecordingStatement, brought: Brought) -> None:
    """Raises: InvalidError when the recording is of another device than was said."""
    wanted = brought.recorded_by or brought.device
    if claimed.device != wanted:
        raise InvalidError(
            f"The recording is of {claimed.device}; wanted one of {wanted}.",
            code="recording-device",
            hint=f"Leave out --from: {brought.device} recorded it itself."
            if claimed.device == brought.device
            else f"Say so when what {claimed.device} saw is to be normal for {brought.device}: --from {claimed.device}.",
        )


def _key_of(tx: Connection, tenant: TenantId, name: DeviceId) -> ec.EllipticCurvePublicKey:
    """The key that the inventory has of the device. Raises: TrustError when it has none, or the device is revoked."""
    found = device_store.find_device(tx, tenant, name)
    if found is None:
        raise TrustError(
            f"No key is known of {name}, which signed the recording.",
            code="recording-key",
            hint=f"Enroll {name} here and record again, or record on a device that is.",
        )
    if found.state is DeviceState.REVOKED:
        raise TrustError(
            f"{name}, which signed the recording, is revoked: whoever has its key may have signed.",
            code="recording-revoked",
            hint=f"Let {name} enroll again and record again.",
        )
    try:
        return load_public_key(found.public_key)
    except InvalidError as error:
        raise TrustError(f"The key that is known of {name} cannot be read.", code="recording-key") from error
