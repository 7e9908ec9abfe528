"""A TUF repository in memory, standing behind python-tuf's fetcher interface: tests edit the world, publish, then act.

Modeled on the idea of python-tuf's own repository simulator: real metadata, real signatures, no network, no file system.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient.fetcher import FetcherInterface

from protocol.canonical import canonical_json

BASE_URL = "memory://repository/"


@dataclass
class Role:
    """A role's content and who signs it next time."""

    signed: Root | Timestamp | Snapshot | Targets
    signers: list[CryptoSigner]


class RepositorySimulator(FetcherInterface):
    """One repository. Change `root`, `targets`, `snapshot`, `timestamp`, `delegated`, then `publish()`; `files` is what it serves."""

    def __init__(self, *, now: datetime, valid: timedelta = timedelta(days=30)) -> None:
        self.expires = (now + valid).replace(microsecond=0)
        self.signers = {name: [CryptoSigner.generate_ed25519()] for name in ("root", "timestamp", "snapshot", "targets")}
        self.root = Root(expires=self.expires, consistent_snapshot=True)
        for name, signers in self.signers.items():
            self.root.add_key(signers[0].public_key, name)
        self.targets = Targets(expires=self.expires)
        self.snapshot = Snapshot(expires=self.expires)
        self.timestamp = Timestamp(expires=self.expires)
        self.delegated: dict[str, Targets] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        #: File names whose answer never ends.
        self.endless: set[str] = set()
        #: File names that come too slowly.
        self.stalled: set[str] = set()
        #: File names during which the link breaks.
        self.dropped: set[str] = set()
        #: HTTP status to answer with, by file name.
        self.broken: dict[str, int] = {}
        self.publish_root()
        self.publish(bump=False)

    @property
    def bootstrap(self) -> bytes:
        """The first root: what a device is born with."""
        return self.files["1.root.json"]

    def delegate(self, name: str, *patterns: str, parent: Targets | None = None, signer: CryptoSigner | None = None) -> Targets:
        """Add a terminating delegation with a key of its own; returns the new role's content."""
        signer = signer or CryptoSigner.generate_ed25519()
        self.signers.setdefault(name, [signer])
        parent = parent or self.targets
        if parent.delegations is None:
            parent.delegations = Delegations({}, {})
        assert parent.delegations.roles is not None
        parent.delegations.roles[name] = DelegatedRole(name, [], 1, True, paths=list(patterns))
        parent.add_key(signer.public_key, name)
        return self.delegated.setdefault(name, Targets(expires=self.expires))

    def publish_root(self) -> None:
        """Sign and serve the current root version."""
        self.files[f"{self.root.version}.root.json"] = self.sign(self.root, *self.signers["root"])

    def rotate_root(self) -> None:
        """Serve the next root version, signed by the old and the new holders."""
        old = self.signers["root"]
        self.root.version += 1
        self.files[f"{self.root.version}.root.json"] = self.sign(self.root, *old)

    def replace_key(self, role: str) -> CryptoSigner:
        """Give a top-level role a new key through a new root; returns the stolen one."""
        stolen = self.signers[role][0]
        fresh = CryptoSigner.generate_ed25519()
        self.root.revoke_key(stolen.public_key.keyid, role)
        self.root.add_key(fresh.public_key, role)
        if role == "root":
            self.signers[role] = [stolen, fresh]
            self.rotate_root()
            self.signers[role] = [fresh]
        else:
            self.signers[role] = [fresh]
            self.rotate_root()
        return stolen

    def publish(self, *, bump: bool = True, bind: bool = True) -> None:
        """Sign everything below root and serve it as one consistent snapshot. `bind=False` leaves the digests out of the snapshot."""
        roles: dict[str, Targets] = {"targets": self.targets, **self.delegated}
        for name, role in roles.items():
            role.version += 1 if bump else 0
            data = self.sign(role, *self.signers[name])
            self.files[f"{role.version}.{name}.json"] = data
            self.snapshot.meta[f"{name}.json"] = MetaFile.from_data(role.version, data, ["sha256"]) if bind else MetaFile(role.version)
        self.publish_snapshot(bump=bump)

    def publish_snapshot(self, *, bump: bool = True) -> None:
        """Sign and serve the snapshot as it stands, and a timestamp that names it."""
        self.snapshot.version += 1 if bump else 0
        data = self.sign(self.snapshot, *self.signers["snapshot"])
        self.files[f"{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.publish_timestamp(bump=bump)

    def publish_timestamp(self, *, bump: bool = True) -> None:
        """Sign and serve the timestamp as it stands."""
        self.timestamp.version += 1 if bump else 0
        self.files["timestamp.json"] = self.sign(self.timestamp, *self.signers["timestamp"])

    def sign(self, signed: Any, *signers: CryptoSigner) -> bytes:
        """The metadata as bytes with those signatures."""
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def signed_time(self, device: str, nonce: str, now_ms: Any, *, signer: CryptoSigner | None = None) -> bytes:
        """The answer to GET /device/v1/director/time."""
        body = {"_type": "mooring-time", "device": device, "nonce": nonce, "now": now_ms}
        signature: Signature = (signer or self.signers["timestamp"][0]).sign(canonical_json(body))
        return json.dumps({"signed": body, "signatures": [signature.to_dict()]}).encode()

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(BASE_URL)
        self.requests.append(name)
        if name in self.stalled:
            raise SlowRetrievalError(f"{name}: under 1 kB/s for 60 s")
        if name in self.dropped:
            raise DownloadError(f"{name}: connection reset")
        if name in self.endless:
            return iter(lambda: b" " * 65_536, b"")
        if name in self.broken:
            raise DownloadHTTPError("as the test wished", self.broken[name])
        if name not in self.files:
            raise DownloadHTTPError(f"no {name}", 404)
        return iter([self.files[name]])


def target(path: str, data: bytes, fields: Mapping[str, Any] | None = None) -> TargetFile:
    """A target file with sha256 only, with our fields when given."""
    made = TargetFile.from_data(path, data, ["sha256"])
    if fields is not None:
        made.unrecognized_fields["custom"] = dict(fields)
    return made
