"""The image repository's role `policy`: which files of device configuration it lists, and what its key signs.

Of each group the two newest revisions stay listed: a stolen director key cannot bring back an older one, and a device that asks between
publication and its new assignment still finds what the director named. Its key signs only what governance approved, recomputed from the
payload itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile, Targets

from fleet.registry.repository import ImageRepository, RoleFile, SignedRole
from fleet.registry.signing import (
    KeyName,
    TrustFolders,
    content_digest,
    create_role_key,
    is_encrypted,
    load_key,
    load_public_key,
    parse_role,
    parse_signed_before,
)
from protocol.errors import ConflictError, TrustError
from protocol.ids import Digest
from protocol.trust.metadata import POLICY_ROLE, PolicyTargetFields, configuration_path, read_fields, write_fields

#: Revisions of one group that stay listed.
KEPT_REVISIONS = 2


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One group's configuration as the role lists it."""

    tenant: str
    group: str
    rev: int
    #: Bytes.
    length: int
    sha256: Digest

    @property
    def role_file(self) -> RoleFile:
        """With path and our fields."""
        custom = write_fields(PolicyTargetFields(tenant=self.tenant, group=self.group, rev=self.rev))
        return RoleFile(configuration_path(self.group, self.rev), self.length, self.sha256, custom)


def policy_digest(files: Iterable[PolicyFile]) -> Digest:
    """What an approval of these files is bound to, and what the holder of the key recomputes."""
    return content_digest(file.role_file.target for file in files)


def ensure_policy_role(image: ImageRepository, folders: TrustFolders, *, now: datetime) -> None:
    """Open the role where the offline keys of a demo lie beside the server. Raises: ConflictError (code "role-closed") elsewhere."""
    if image.has_role(POLICY_ROLE):
        return
    targets = folders.key_file(KeyName.IMAGE_TARGETS)
    if not targets.exists() or is_encrypted(targets):
        raise ConflictError("The policy role is not open.", hint="Bring the offline keys and run: mooring keys policy", code="role-closed")
    path = folders.role_key_file(POLICY_ROLE)
    if not path.exists():
        create_role_key(folders, POLICY_ROLE, passphrase=None)
    image.open_policy([load_public_key(path.with_suffix(".pub"))], signers=[load_key(targets)], now=now)


def highest_rev(image: ImageRepository) -> int:
    """The highest revision that is published: a server whose database came from a backup must not use it again."""
    published = image.role_metadata(POLICY_ROLE)
    return max((file.rev for file in _files_of(parse_role(published, "The published role").signed)), default=0) if published else 0


def next_payload(image: ImageRepository, files: Sequence[PolicyFile], *, now: datetime) -> tuple[bytes, bytes]:
    """What the policy key shall sign to publish these files, and what is published now. Raises: ConflictError when the role is closed."""
    published = image.role_metadata(POLICY_ROLE)
    listed = _files_of(parse_role(published, "The published role").signed) if published else []
    return image.next_policy_role([file.role_file for file in _kept([*listed, *files])], now=now), published


def take_policy_signature(image: ImageRepository, *, payload: bytes, signed: bytes) -> SignedRole:
    """`signed`, which is the payload, with the signatures of the policy keys on either.

    Raises: InvalidError, TrustError, ConflictError as `ImageRepository.take_role_signature`.
    """
    return image.take_role_signature(POLICY_ROLE, "the role policy", payload=payload, signed=signed)


def sign_policy_role(payload: bytes, *, previous: bytes, approved: Digest, signer: Signer, is_previous_checked: bool = False) -> bytes:
    """The policy role's next metadata with this key's signature added; returns the bytes to hand in.

    Reads the payload itself: beyond what was published it may hold exactly the approved files, and leave out only what newer revisions
    of the same group replace. On top of what only the role's other keys signed it signs when the caller checked that
    (`requests.check_published`).
    Raises: TrustError (code "not-approved") naming what nobody approved; InvalidError when it is malformed.
    """
    wanted = parse_role(payload, "The payload")
    before = (
        parse_role(previous, "The published role").signed if previous and is_previous_checked else parse_signed_before(previous, signer)
    )
    before = before or Targets(version=1)
    after = wanted.signed
    version = before.version + 1 if previous else 1
    if after.delegations is not None or after.version != version:
        raise _not_approved(f"has version {after.version}, wanted {version}, or it delegates to other keys")
    added = [target for path, target in after.targets.items() if before.targets.get(path) != target]
    if not added or (found := content_digest(added)) != approved:
        seen = "nothing new" if not added else f"{', '.join(target.path for target in added)[:300]} with digest {found}"
        raise _not_approved(f"holds {seen}; approved was {approved}")
    expected = {file.role_file.path for file in _kept([*_files_of(before), *_files_of(after)])}
    if expected != after.targets.keys():
        raise _not_approved(f"differs in {min(expected ^ after.targets.keys())} from what should stay listed")
    wanted.sign(signer, append=True)
    return wanted.to_bytes()


def _not_approved(what: str) -> TrustError:
    return TrustError(f"The payload for the role {POLICY_ROLE} {what}. Not signed.", code="not-approved")


def _kept(files: Iterable[PolicyFile]) -> list[PolicyFile]:
    by_group: dict[tuple[str, str], dict[int, PolicyFile]] = {}
    for file in files:
        by_group.setdefault((file.tenant, file.group), {})[file.rev] = file
    return [of_group[rev] for of_group in by_group.values() for rev in sorted(of_group)[-KEPT_REVISIONS:]]


def _files_of(role: Targets) -> list[PolicyFile]:
    return [_file_of(target) for target in role.targets.values()]


def _file_of(target: TargetFile) -> PolicyFile:
    fields = read_fields(PolicyTargetFields, target.custom, what=f"Target {target.path}")
    if configuration_path(fields.group, fields.rev) != target.path:
        raise _not_approved(f"lists {target.path} as group {fields.group}, revision {fields.rev}")
    return PolicyFile(fields.tenant, fields.group, fields.rev, target.length, Digest(f"sha256:{target.hashes.get('sha256')}"))
