"""Models, lines, releases and what waits for a line's key."""

import base64
import binascii
import json
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from pydantic import Field

from fleet import loop
from fleet.loop import DeltaView, SigningTask
from fleet.registry import ceremony, renewals, service
from fleet.registry.drafts import ModelDraft, parse_draft
from fleet.registry.evaluation import MAX_FILE_BYTES as MAX_EVALUATION_BYTES
from fleet.registry.model import FileRef, Line, ModelVersion, Release, Variant
from fleet.registry.renewals import Renewal
from fleet.registry.service import Registry, ReleaseModel
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.errors import InvalidError
from protocol.ids import DeviceTypeName, LineName, ReleaseVersion
from runtime.golden import MAX_GOLDEN_BYTES

router = APIRouter(tags=["models and releases"], route_class=IdempotentRoute)
Reads = Annotated[Caller, Depends(require("releases:read"))]
Writes = Annotated[Caller, Depends(require("releases:write"))]
Signs = Annotated[Caller, Depends(require("releases:sign"))]
MAX_MANIFEST_CHARACTERS = 1 << 20
_CHUNK = 1 << 20
#: Methods of the delta container, in words.
METHOD_NAMES = {0: "compressed", 1: "patch", 2: "onnx tensors", 3: "tflite tensors"}


class ModelOfRelease(Body):
    """One model version that a release takes, and whom it is for."""

    model_id: ShortText
    variant: ShortText = ""
    device_types: Annotated[tuple[ShortText, ...], Field(max_length=100)] = ()
    firmware_min: ShortText = ""
    agent_min: ShortText = ""


class NewRelease(Body):
    """A release to compose."""

    line: ShortText
    version: ShortText
    models: Annotated[list[ModelOfRelease], Field(min_length=1, max_length=32)]
    note: Reason = ""


class Signature(Body):
    """The signed role metadata, base64 of the exact bytes."""

    signed: Annotated[str, Field(max_length=8_000_000)]


# --- models ---


@router.post("/models")
def import_model(
    request: Request,
    caller: Annotated[Caller, Depends(require("models:write"))],
    file: Annotated[UploadFile, File(description="ONNX or TFLite file")],
    name: Annotated[str, Form(max_length=63)],
    manifest: Annotated[str, Form(max_length=MAX_MANIFEST_CHARACTERS, description="JSON or TOML")],
    golden: Annotated[UploadFile | None, File(description="golden vectors; else made here")] = None,
    evaluation: Annotated[UploadFile | None, File(description="evaluation data, .npz or zip: drift is judged by them")] = None,
    note: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Keep a model file as the next version of a model: inspected in a child process, refused when it does not fit its manifest."""
    services = services_of(request)
    draft = read_draft(manifest)
    goldens = _read(golden, MAX_GOLDEN_BYTES, "golden") if golden is not None else None
    with tempfile.TemporaryDirectory(prefix="mooring-upload-") as folder:
        path, data = Path(folder) / "upload", Path(folder) / "evaluation"
        _copy(file, path, services.config.limits.artifact_mb << 20)
        if evaluation is not None:
            _copy(evaluation, data, MAX_EVALUATION_BYTES, what="The evaluation data")
        imported = service.import_model(
            services.registry,
            tenant=caller.tenant,
            by=caller.actor,
            model=name,
            file=path,
            draft=draft,
            file_name=(file.filename or "file")[:200],
            goldens=goldens,
            evaluation=data if evaluation is not None else None,
            note=note,
        )
    return rest.one(_model_json(imported, services.registry), status=201, location=f"/api/v1/models/{imported.id}")


@router.get("/models")
def list_models(
    request: Request,
    caller: Annotated[Caller, Depends(require("models:read"))],
    page: Annotated[Page, Depends(page_of)],
    name: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Model versions, the newest first."""
    found = service.list_model_versions(services_of(request).registry, caller.tenant, model=name)
    return rest.listed(request, page, page.take(found, lambda one: one.id), key=lambda one: one.id, render=_model_json)


@router.get("/models/{model_id}")
def get_model(request: Request, model_id: str, caller: Annotated[Caller, Depends(require("models:read"))]) -> Response:
    """One model version, e.g. digits-onnx.3; the newest when no version is named."""
    registry = services_of(request).registry
    found = service.get_model_version(registry, caller.tenant, model_id)
    return rest.one(
        {**_model_json(found, registry), "manifest": json.loads(found.draft_json), "tensors": json.loads(found.tensors_json)}, revision=1
    )


@router.get("/lines")
def list_lines(request: Request, caller: Reads, page: Annotated[Page, Depends(page_of)]) -> Response:
    """Model lines by name."""
    found = service.list_lines(services_of(request).registry, caller.tenant)
    return rest.listed(request, page, page.take(found, lambda one: one.line), key=lambda one: one.line, render=_line_json)


# --- releases ---


@router.get("/releases")
def list_releases(
    request: Request,
    caller: Reads,
    page: Annotated[Page, Depends(page_of)],
    line: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """Releases, the newest first."""
    chosen = LineName(line) if line else None
    found = service.list_releases(services_of(request).registry, caller.tenant, line=chosen)
    floors = _floors(request, caller)

    def render(one: Release) -> dict[str, Any]:
        return release_json(one, floors[one.line])

    return rest.listed(request, page, page.take(found, lambda one: one.id), key=lambda one: one.id, render=render)


@router.post("/releases")
def create_release(request: Request, body: NewRelease, caller: Writes) -> Response:
    """Compose a release as a draft."""
    models = [
        ReleaseModel(
            one.model_id,
            tuple(DeviceTypeName(name) for name in one.device_types),
            one.variant,
            one.firmware_min,
            one.agent_min,
        )
        for one in body.models
    ]
    made = service.create_release(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(body.line),
        version=body.version,
        models=models,
        note=body.note,
    )
    return rest.one(
        release_json(made, _floors(request, caller)[made.line]), revision=made.revision, status=201, location=f"/api/v1/releases/{made.id}"
    )


@router.get("/releases/{line}/{version}")
def get_release(request: Request, line: str, version: str, caller: Reads) -> Response:
    """One release."""
    return _release(request, caller, line, version)


@router.get("/releases/{line}/{version}/deltas")
def list_deltas(request: Request, line: str, version: str, caller: Reads) -> Response:
    """What brings the release's files to devices in fewer bytes: from which base, how large, how many devices have that base."""
    found = loop.list_deltas(services_of(request).registry, caller.tenant, LineName(line), ReleaseVersion(version))
    return rest.one({"items": [_delta_json(view) for view in found], "next": None})


@router.post("/releases/{line}/{version}/deltas")
def retry_deltas(request: Request, line: str, version: str, body: ReasonBody, caller: Writes) -> Response:
    """Try again what failed or was withdrawn; it is made in the background."""
    again = loop.retry_deltas(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(line),
        version=ReleaseVersion(version),
        reason=body.reason,
    )
    return rest.one({"again": again}, status=202)


@router.post("/releases/{line}/{version}/propose")
def propose_release(
    request: Request, line: str, version: str, body: ReasonBody, caller: Annotated[Caller, Depends(require("approvals:request"))]
) -> Response:
    """Ask for somebody else's yes to exactly this content."""
    loop.propose_release(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(line),
        version=ReleaseVersion(version),
        reason=body.reason,
    )
    return _release(request, caller, line, version)


@router.post("/releases/{line}/{version}/publish")
def publish_release(request: Request, line: str, version: str, body: ReasonBody, caller: Writes) -> Response:
    """Put the signed release into the image repository. Publishing again changes nothing."""
    loop.publish_release(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(line),
        version=ReleaseVersion(version),
        reason=body.reason,
    )
    return _release(request, caller, line, version)


@router.post("/releases/{line}/{version}/withdraw")
def withdraw_release(request: Request, line: str, version: str, body: ReasonBody, caller: Writes) -> Response:
    """No new campaign takes the release; devices that have it keep it."""
    service.withdraw_release(
        services_of(request).registry,
        tenant=caller.tenant,
        by=caller.actor,
        line=LineName(line),
        version=ReleaseVersion(version),
        reason=body.reason,
    )
    return _release(request, caller, line, version)


# --- signatures ---


@router.get("/signing-requests")
def list_signing_requests(
    request: Request,
    caller: Signs,
    line: Annotated[str | None, Query(max_length=63)] = None,
    version: Annotated[str | None, Query(max_length=63)] = None,
) -> Response:
    """What is approved and waits for a line's key, the oldest first, with the exact bytes to sign."""
    tasks = loop.list_signing_tasks(services_of(request).registry, caller.tenant)
    found = [task for task in tasks if line in {None, task.request.line} and version in {None, task.request.version}]
    return rest.one({"items": [_task_json(task) for task in found], "next": None})


@router.post("/signing-requests/{request_id}")
def submit_signature(request: Request, request_id: str, body: Signature, caller: Signs) -> Response:
    """Hand in the signed metadata; refused when the line's key did not sign exactly what was requested."""
    try:
        signed = base64.b64decode(body.signed, validate=True)
    except binascii.Error as error:
        raise InvalidError("signed is not base64.") from error
    made = loop.submit_signature(services_of(request).registry, tenant=caller.tenant, by=caller.actor, request=request_id, signed=signed)
    return rest.one(release_json(made, _floors(request, caller)[made.line]), revision=made.revision)


@router.get("/published-roles", dependencies=[Depends(require("releases:sign"))])
def show_published_roles(request: Request) -> Response:
    """The chain of roots, the targets and every line's role as published: what a holder checks who signs on top of another's signature."""
    data = ceremony.start(services_of(request).registry, "image").to_bytes()
    return rest.one({"published": base64.b64encode(data).decode()})


@router.get("/line-renewals")
def list_line_renewals(request: Request, caller: Signs, line: Annotated[str | None, Query(max_length=63)] = None) -> Response:
    """Lines whose signature ends within 60 days (or the one named), with the exact bytes that their key signs again."""
    named = LineName(line) if line is not None else None
    found = renewals.list_renewals(services_of(request).registry, caller.tenant, line=named)
    return rest.one({"items": [_renewal_json(item) for item in found], "next": None})


@router.post("/line-renewals/{line}")
def submit_line_renewal(request: Request, line: str, body: Signature, caller: Signs) -> Response:
    """Hand in the line's role, signed again; refused when it changes more than its expiry."""
    try:
        signed = base64.b64decode(body.signed, validate=True)
    except binascii.Error as error:
        raise InvalidError("signed is not base64.") from error
    ends = renewals.submit_renewal(services_of(request).registry, tenant=caller.tenant, by=caller.actor, line=LineName(line), signed=signed)
    return rest.one({"line": line, "expires_at": rest.iso(ends)})


# --- parts ---


def _renewal_json(item: Renewal) -> dict[str, Any]:
    return {
        "line": item.line,
        "expires_at": rest.iso(item.expires_at),
        "payload": base64.b64encode(item.payload).decode(),
        "previous": base64.b64encode(item.previous).decode(),
    }


def read_draft(text: str) -> ModelDraft:
    """What a model's author wrote, JSON or TOML. Raises: InvalidError naming the place."""
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise InvalidError(f"The manifest is neither JSON nor TOML: {error}.") from error
    return parse_draft(document)


def _floors(request: Request, caller: Caller) -> defaultdict[LineName, int]:
    """The floor of each line; 0 for a line that was never raised."""
    return service.floors(services_of(request).registry, caller.tenant)


def release_json(release: Release, floor: int) -> dict[str, Any]:
    """A release as the API answers it. `floor` is its line's: with a lower counter no device installs it any more."""
    return {
        "line": release.line,
        "version": release.version,
        "state": str(release.state),
        "counter": release.counter,
        "is_below_floor": release.counter < floor,
        "content_digest": release.content_digest,
        "note": release.note,
        "approval": release.approval,
        "variants": [_variant_json(variant) for variant in release.variants],
        "created_by": release.created_by,
        "created_at": rest.iso(release.created_at),
        "signed_at": rest.iso(release.signed_at),
        "published_at": rest.iso(release.published_at),
        "revision": release.revision,
    }


def _release(request: Request, caller: Caller, line: str, version: str) -> Response:
    found = service.get_release(services_of(request).registry, caller.tenant, LineName(line), ReleaseVersion(version))
    return rest.one(release_json(found, _floors(request, caller)[found.line]), revision=found.revision)


def _variant_json(variant: Variant) -> dict[str, Any]:
    return {
        "variant": variant.variant,
        "runtime": variant.runtime,
        "task": variant.task,
        "model_id": variant.model_id,
        "device_types": list(variant.device_types),
        "files": [_file_json(file) for file in variant.files],
    }


def _file_json(file: FileRef) -> dict[str, Any]:
    return {"name": file.name, "length": file.length, "sha256": file.sha256}


def _delta_json(view: DeltaView) -> dict[str, Any]:
    delta = view.delta
    return {
        "variant": view.variant,
        "file": view.file.name,
        "file_sha256": delta.new_sha256,
        "file_length": view.file.length,
        "base_release": view.base_release or None,
        "base_sha256": delta.base_sha256 if view.base_release else None,
        "devices": view.devices,
        "state": str(delta.state),
        "method": delta.method,
        "method_name": METHOD_NAMES.get(delta.method) if delta.method is not None else None,
        "length": delta.length,
        "sha256": delta.sha256 or None,
        "ratio": round(view.file.length / delta.length, 2) if delta.length else None,
        "cpu_s": round(delta.cpu_s, 3),
        "reason": delta.reason,
        "made_at": rest.iso(delta.made_at),
    }


def _model_json(model: ModelVersion, registry: Registry | None = None) -> dict[str, Any]:
    """The model version; with a registry also what its reference profile says."""
    return {
        "id": model.id,
        "model": model.model,
        "version": model.version,
        "format": model.format,
        "file": _file_json(model.file),
        "golden": _file_json(model.golden),
        "card": _file_json(model.card),
        "profile": _file_json(model.profile) if model.profile else None,
        **({"evaluation": _evaluation_json(registry, model.profile)} if registry is not None else {}),
        "device_types": list(model.device_types),
        "note": model.note,
        "created_by": model.created_by,
        "created_at": rest.iso(model.created_at),
    }


def _evaluation_json(registry: Registry, profile: FileRef | None) -> dict[str, Any] | None:
    """What drift of the model version is judged by; None: imported without evaluation data."""
    if profile is None:
        return None
    found = service.read_profile(registry, profile)
    accuracy = found.accuracy
    return {
        "grid": found.grid.grid_id.hex(),
        "rows": found.reference.rows,
        "features": [feature.name for feature in found.grid.features],
        "accuracy": round(accuracy.acc0, 4) if accuracy else None,
        "trusted_under": sorted(accuracy.validated()) if accuracy else [],
    }


def _line_json(line: Line) -> dict[str, Any]:
    return {"line": line.line, "next_counter": line.next_counter, "floor": line.floor, "created_at": rest.iso(line.created_at)}


def _task_json(task: SigningTask) -> dict[str, Any]:
    request = task.request
    return {
        "request": request.request,
        "line": request.line,
        "version": request.version,
        "role": request.role,
        "role_version": request.role_version,
        "payload": base64.b64encode(request.payload).decode(),
        "previous": base64.b64encode(request.previous).decode(),
        "content_digest": request.content_digest,
        "approval": request.approval,
        "approved_by": task.approval.decided_by,
        "created_at": rest.iso(request.created_at),
    }


def _copy(upload: UploadFile, path: Path, limit: int, *, what: str = "") -> None:
    size = 0
    with path.open("wb") as out:
        while chunk := upload.file.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                allowed = f"{limit} bytes allowed" if what else f"{limit} bytes allowed (limits.artifact_mb)"
                raise InvalidError(f"{what or 'The file'} is longer than the {allowed}.", code="too-large")
            out.write(chunk)


def _read(upload: UploadFile, limit: int, what: str) -> bytes:
    data = upload.file.read(limit + 1)
    if len(data) > limit:
        raise InvalidError(f"{what} is longer than the {limit} bytes allowed.", code="too-large")
    return data
