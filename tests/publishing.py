"""The way of a release of digit models from draft to the image repository, in one process: what people and the signer do."""

from registries import ANNA, BERT, T0

from fleet import loop
from fleet.governance.permissions import Permission
from fleet.registry import service as releases
from fleet.registry.model import ModelVersion
from fleet.registry.service import ReleaseModel
from fleet.registry.signing import load_key, sign_line_role
from protocol.ids import LineName

LINE = LineName("digits")
APPROVER = {str(Permission.APPROVER)}


def create(registry, *models: ModelVersion, version="1.0"):
    return releases.create_release(
        registry, tenant=T0, by=ANNA, line=LINE, version=version, models=[ReleaseModel(model.id) for model in models]
    )


def approve(registry, release, verdict="approved"):
    approval = loop.propose_release(registry, tenant=T0, by=ANNA, line=LINE, version=release.version)
    return loop.decide_approval(
        registry, tenant=T0, approval=approval.approval, verdict=verdict, by=BERT, permissions=APPROVER, reason="looked at it"
    )


def sign_all(registry):
    """What `mooring signer` does."""
    for task in loop.list_signing_tasks(registry, T0):
        request = task.request
        key = load_key(registry.folders.line_key_file(request.line))
        approved = task.approval.digests["content"]
        signed = sign_line_role(request.payload, previous=request.previous, line=request.line, approved=approved, signer=key)
        loop.submit_signature(registry, tenant=T0, by=BERT, request=request.request, signed=signed)


def publish(registry, release):
    approve(registry, release)
    sign_all(registry)
    return loop.publish_release(registry, tenant=T0, by=BERT, line=LINE, version=release.version)
