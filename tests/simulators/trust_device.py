"""A device's update check against a server's registry in the same process: the real verifier, fetchers without a network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from protocol.clock import Clock
from protocol.errors import NotFoundError
from protocol.ids import DEFAULT_TENANT, DeviceId, DeviceTypeName, LineName, TenantId
from protocol.trust.updater import Assignment, DeviceFacts, RepositoryAccess, verify_assignment

_BASE = "memory://x/"
CAM, X86 = DeviceId("cam-1"), DeviceTypeName("linux-x86-64")


class ReadFetcher(FetcherInterface):
    """Reads files with a function that raises NotFoundError."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([self._read(url.removeprefix(_BASE))])
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


@dataclass
class TrustDevice:
    """Asks as a device does and keeps what a device keeps."""

    folder: Path
    clock: Clock
    image_root: bytes
    director_root: bytes
    read_image: Callable[[str], bytes]
    read_director: Callable[[str], bytes]
    device: DeviceId = CAM
    tenant: TenantId = DEFAULT_TENANT
    device_type: DeviceTypeName = X86
    runtimes: frozenset[str] = frozenset({"onnx"})
    floors: dict[LineName, int] = field(default_factory=dict)
    committed: dict[LineName, int] = field(default_factory=dict)

    def check(self) -> Assignment:
        """What both repositories agree on. Raises: as `verify_assignment`."""
        found = verify_assignment(
            image=RepositoryAccess(self.folder / "image", _BASE, self.image_root, ReadFetcher(self.read_image)),
            director=RepositoryAccess(self.folder / "director", _BASE, self.director_root, ReadFetcher(self.read_director)),
            facts=DeviceFacts(self.device, self.tenant, self.device_type, self.runtimes, agent_version="0.1.0"),
            now=self.clock.now(),
            time_floor=self.clock.now(),
            floors=self.floors,
            committed=self.committed,
        )
        self.floors = dict(found.floors)
        return found
