"""The keys that the server signs with by itself: of all key files in its folder, those that the newest published root names.

So the publication of a root is the moment at which a new key takes over, in every running process, without a restart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root

from fleet.registry.signing import ONLINE, KeyName, TrustFolders, load_public_key
from fleet.registry.tokens import open_signer
from protocol.errors import ConfigError
from protocol.files import read_bounded

MAX_ROOT_BYTES = 512_000


class OnlineKeys:
    """Opens keys when they are first needed; safe for several threads."""

    def __init__(self, folders: TrustFolders) -> None:
        self._folders = folders
        self._versions: dict[Path, int] = {}
        self._roots: dict[Path, tuple[int, Root]] = {}
        self._signers: dict[tuple[Path, int], Signer] = {}
        self._public: dict[tuple[Path, int], Key] = {}

    def newest_root(self, name: KeyName) -> Root:
        """The newest published root of the key's repository."""
        folder = self._folders.director if name.startswith("director") else self._folders.image
        version = newest_root_version(folder, at_least=self._versions.get(folder, 0))
        self._versions[folder] = version
        known = self._roots.get(folder)
        if known is None or known[0] != version:
            data = read_bounded(folder / f"{version}.root.json", MAX_ROOT_BYTES)
            known = self._roots[folder] = (version, Metadata[Root].from_bytes(data).signed)
        return known[1]

    def key_ids(self, name: KeyName) -> frozenset[str]:
        """The keys that the newest root lets sign this role."""
        return frozenset(self.newest_root(name).roles[role_of(name)].keyids)

    def signers(self, name: KeyName, root: Root | None = None) -> list[Signer]:
        """The keys that sign this role, as many as the role wants, under `root` (the newest one unless given).

        Raises: ConfigError (code "key-missing") when fewer than that are on this machine.
        """
        found = self.find_signers(name, root)
        wanted = (root or self.newest_root(name)).roles[role_of(name)].threshold
        if len(found) < wanted:
            raise ConfigError(
                f"The server has {len(found)} of the {wanted} keys that sign {name}; they belong into {self._folders.online}.",
                hint="Bring them back, or replace them: mooring keys rotate --online. See docs/operations/keys.md, lost online keys.",
                code="key-missing",
            )
        return found[:wanted]

    def missing(self) -> list[KeyName]:
        """Roles that this server cannot sign, because too few of their keys are here."""
        return [
            name
            for name in ONLINE
            if len(self.key_ids(name) & self.files(name).keys()) < self.newest_root(name).roles[role_of(name)].threshold
        ]

    def find_signers(self, name: KeyName, root: Root | None = None) -> list[Signer]:
        """The keys of that role which are here, whether enough or not."""
        named = (root or self.newest_root(name)).roles[role_of(name)].keyids
        return [self._open(path) for keyid, path in self.files(name).items() if keyid in named]

    def files(self, name: KeyName) -> dict[str, Path]:
        """Key files of that role by key id, whether a root names them or not."""
        return {self._public_key(path).keyid: path for path in key_files(self._folders.online, name)}

    def _open(self, path: Path) -> Signer:
        stamp = (path, path.stat().st_mtime_ns)
        if stamp not in self._signers:
            self._signers[stamp] = open_signer(str(path))
        return self._signers[stamp]

    def _public_key(self, path: Path) -> Key:
        stamp = (path, path.stat().st_mtime_ns)
        if stamp not in self._public:
            public = path.with_suffix(".pub")
            self._public[stamp] = load_public_key(public) if public.exists() else self._open(path).public_key
        return self._public[stamp]


def role_of(name: str) -> str:
    """The TUF role that a key of this name signs: "director-targets" signs targets."""
    return name.partition("-")[2]


def key_files(folder: Path, name: str) -> Sequence[Path]:
    """Private keys and key references named after the role: NAME.pem, NAME-anything.pem, NAME.uri."""
    return sorted(
        path for suffix in ("pem", "uri") for pattern in (f"{name}.{suffix}", f"{name}-*.{suffix}") for path in folder.glob(pattern)
    )


def newest_root_version(folder: Path, *, at_least: int = 0) -> int:
    """The version of the newest root in the folder; versions have no gaps. Cheap when nothing changed since `at_least`."""
    version = at_least if at_least and (folder / f"{at_least}.root.json").exists() else 1
    while (folder / f"{version + 1}.root.json").exists():
        version += 1
    return version


def newest_roots(folders: TrustFolders) -> Mapping[str, bytes]:
    """The newest root of each repository as published."""
    return {
        name: read_bounded(folder / f"{newest_root_version(folder)}.root.json", MAX_ROOT_BYTES)
        for name, folder in (("image", folders.image), ("director", folders.director))
    }
