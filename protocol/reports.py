"""Version reports, signed with the device's identity key: the only evidence that a campaign counts (UPDATES 1.8)."""

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from protocol import dsse
from protocol.canonical import canonical_json
from protocol.errors import TrustError
from protocol.messages import DsseEnvelope, VersionReport

PAYLOAD_TYPE = "application/vnd.mooring.version-report.v1+json"


def sign_report(key: ec.EllipticCurvePrivateKey, report: VersionReport) -> DsseEnvelope:
    """The report in an envelope signed by the key."""
    return dsse.seal(key, PAYLOAD_TYPE, canonical_json(report.model_dump(mode="json")))


def verify_report(public_key: ec.EllipticCurvePublicKey, envelope: DsseEnvelope) -> VersionReport:
    """The report that the holder of the key signed. Raises: TrustError: another type, no signature by this key, or not a report."""
    payload = dsse.unseal(public_key, envelope, payload_type=PAYLOAD_TYPE, what="version report", code="report")
    try:
        return VersionReport.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrustError(f"The signed version report is malformed at {where or 'its start'}: {first['msg']}.", code="report-form") from None
