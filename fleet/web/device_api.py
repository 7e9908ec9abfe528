"""What devices call over HTTPS: INTERFACES 2.1. Every path but enrollment wants the verified certificate of an enrolled device."""

import hashlib
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from fleet import loop
from fleet.devices import enrollment, twins
from fleet.devices.enrollment import TrustRoots
from fleet.devices.model import DeviceIdentity
from fleet.registry import service as registry
from fleet.web import problems
from fleet.web.limits import RateLimit
from fleet.web.listener import PeerCertificate
from fleet.web.ranges import has_etag, requested_range
from fleet.web.services import Services
from protocol.errors import InvalidError, UnauthenticatedError
from protocol.ids import TenantId, check_digest
from protocol.messages import CertificateAnswer, CertificateRequest, DsseEnvelope, EnrollRequest

router = APIRouter()

_IMMUTABLE = "public, max-age=31536000, immutable"
#: The same bytes for ever, and for who asked alone: no shared cache keeps a model that only members may read.
_IMMUTABLE_PRIVATE = "private, max-age=31536000, immutable"
_REVALIDATE = "no-cache"
IfNoneMatch = Annotated[str | None, Header()]


def services_of(request: Request) -> Services:
    """What the application was made with."""
    services: Services = request.app.state.services
    return services


def identity_of(request: Request) -> DeviceIdentity:
    """Whose certificate the TLS layer verified. Raises: UnauthenticatedError when there is none, or it is no longer accepted."""
    peer: PeerCertificate | None = request.scope["state"].get("peer")
    if peer is None:
        raise UnauthenticatedError(
            "No client certificate was shown.", hint="Enroll the device: mooring-agent enroll.", code="certificate-missing"
        )
    services = services_of(request)
    return enrollment.authenticate(services.database, device=peer.common_name, serial=peer.serial, now=services.system_now())


def reader_of_blobs(request: Request) -> None:
    """Who may read blobs: members, or everybody who knows a digest when the operator put a CDN before them (device_api.public_blobs)."""
    if not services_of(request).config.device_api.public_blobs:
        identity_of(request)


MEMBERS_ONLY = Depends(identity_of)
Caller = Annotated[DeviceIdentity, Depends(identity_of)]
Given = Annotated[Services, Depends(services_of)]


# --- enrollment: no certificate yet ---


@router.get("/enroll/v1/ca")
def get_authority(services: Given) -> PlainTextResponse:
    """The authority's certificate; the token's pin proves it."""
    return PlainTextResponse(services.authority.ca_pem, headers={"Cache-Control": _REVALIDATE})


@router.post("/enroll/v1")
def enroll(body: EnrollRequest, request: Request, services: Given) -> JSONResponse:
    """Use an invitation up and become a member."""
    limit: RateLimit = request.app.state.enroll_limit
    limit.take(request.client.host if request.client else "")

    def trust_roots(_tenant: TenantId) -> TrustRoots:
        return TrustRoots(services.registry.image.bootstrap, services.registry.director.bootstrap)

    answer = enrollment.enroll(
        services.database,
        services.authority,
        body,
        broker=services.broker,
        trust_roots=trust_roots,
        now=services.system_now(),
    )
    return JSONResponse(answer.model_dump(mode="json"), headers={"Cache-Control": "no-store"})


# --- members only ---


@router.post("/device/v1/certificate")
def renew_certificate(body: CertificateRequest, caller: Caller, services: Given) -> CertificateAnswer:
    """A new certificate; the one in use stays valid until the new one is first used."""
    issued = enrollment.renew_certificate(
        services.database, services.authority, identity=caller, csr_pem=body.csr_pem, now=services.system_now()
    )
    return CertificateAnswer(certificate_pem=issued.pem, ca_pem=services.authority.ca_pem)


@router.get("/device/v1/desired")
def get_desired(caller: Caller, services: Given, if_none_match: IfNoneMatch = None) -> Response:
    """The server's half of the twin; unchanged costs the one read that found the caller."""
    etag = twins.desired_etag(caller.desired_rev)
    if has_etag(if_none_match, etag):
        return _not_modified(etag)
    desired = twins.get_desired(services.database, caller.tenant, caller.device)
    headers = {"ETag": twins.desired_etag(desired.rev), "Cache-Control": "private, no-cache"}
    return JSONResponse(desired.model_dump(mode="json", exclude_none=True), headers=headers)


@router.get("/device/v1/director/time")
def get_signed_time(caller: Caller, services: Given, nonce: Annotated[str, Query(max_length=200)]) -> Response:
    """The time, signed by the director for this device and nonce."""
    data = services.registry.director.signed_time(caller.device, nonce, services.clock.now())
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/device/v1/director/{name}")
def get_director_file(name: str, caller: Caller, services: Given, if_none_match: IfNoneMatch = None) -> Response:
    """One file of this device's director metadata."""
    served = registry.director_file(
        services.registry, tenant=caller.tenant, device=caller.device, name=name, source=loop.order_source(caller.tenant)
    )
    etag = f'"{served.etag}"'
    if has_etag(if_none_match, etag):
        return _not_modified(etag)
    return Response(served.data, media_type="application/json", headers={"ETag": etag, "Cache-Control": "private, no-cache"})


@router.get("/image/v1/metadata/{name}", dependencies=[MEMBERS_ONLY])
def get_image_file(name: str, services: Given, if_none_match: IfNoneMatch = None) -> Response:
    """One file of the image repository's metadata; all but the timestamp never change."""
    data = services.registry.image.read(name)
    etag = f'"sha256:{hashlib.sha256(data).hexdigest()}"'
    if has_etag(if_none_match, etag):
        return _not_modified(etag)
    cache = _REVALIDATE if name == "timestamp.json" else _IMMUTABLE
    return Response(data, media_type="application/json", headers={"ETag": etag, "Cache-Control": cache})


@router.get("/blobs/sha256/{hexdigest}", dependencies=[Depends(reader_of_blobs)])
def get_blob(hexdigest: str, request: Request, services: Given, if_none_match: IfNoneMatch = None) -> Response:
    """The bytes of that digest, whole or one range of them."""
    digest = check_digest(f"sha256:{hexdigest}")
    etag = f'"{digest}"'
    size = services.blobs.size(digest)
    cache = _IMMUTABLE if services.config.device_api.public_blobs else _IMMUTABLE_PRIVATE
    headers = {"ETag": etag, "Cache-Control": cache, "Accept-Ranges": "bytes"}
    if has_etag(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    try:
        part = requested_range(request.headers.get("range"), if_range=request.headers.get("if-range"), etag=etag, size=size)
    except InvalidError as error:
        return problems.from_error(request, error, headers={"Content-Range": f"bytes */{size}"})
    start, end = (part.start, part.end) if part else (0, size)
    if part is not None:
        headers["Content-Range"] = part.content_range
    headers["Content-Length"] = str(end - start)
    chunks: Iterator[bytes] = services.blobs.chunks(digest, start=start, end=end)
    return StreamingResponse(chunks, 206 if part else 200, headers, "application/octet-stream")


@router.post("/device/v1/report")
def take_report(body: DsseEnvelope, caller: Caller, services: Given) -> JSONResponse:
    """A version report signed by the device; answered once it is committed."""
    answer = loop.take_report(services.registry, identity=caller, envelope=body, now=services.clock.now())
    return JSONResponse(answer.model_dump(mode="json"))


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "private, no-cache"})
