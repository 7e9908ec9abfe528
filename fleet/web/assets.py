"""The console's static files: read once, compressed once, served under names that carry a hash of their content."""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import NotFoundError

FOLDER = Path(__file__).parent / "static"
#: Only these are served; licenses and notes lie beside them.
SUFFIXES = frozenset({".css", ".js", ".svg", ".png", ".ico"})


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is served."""

    url: str
    media_type: str
    etag: str
    body: bytes
    gzipped: bytes


class Assets:
    """All static files by plain name (`mooring.css`, `vendor/htmx.min.js`) and by the hashed name in their URL."""

    def __init__(self, folder: Path = FOLDER, *, prefix: str = "/static/") -> None:
        """Reads the folder; Raises: OSError when it cannot be read."""
        files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
        self._by_name: Mapping[str, Asset] = {path.relative_to(folder).as_posix(): _read(path, folder, prefix) for path in files}
        self._by_url: Mapping[str, Asset] = {asset.url: asset for asset in self._by_name.values()}

    def url(self, name: str) -> str:
        """The URL of a file. Raises: LookupError when the console has no such file: a mistake in a template."""
        return self._by_name[name].url

    def get(self, url: str) -> Asset:
        """The file under a hashed URL. Raises: NotFoundError."""
        asset = self._by_url.get(url)
        if asset is None:
            raise NotFoundError(f"There is no file {url[:200]!r}.")
        return asset

    def sizes(self) -> dict[str, int]:
        """Bytes over the wire, by plain name."""
        return {name: len(asset.gzipped) for name, asset in self._by_name.items()}


def _read(path: Path, folder: Path, prefix: str) -> Asset:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    relative = path.relative_to(folder)
    url = prefix + relative.with_name(f"{path.stem}.{digest[:10]}{path.suffix}").as_posix()
    media_type = mimetypes.types_map.get(path.suffix, "application/octet-stream")
    if path.suffix in {".css", ".js"}:
        media_type = f"text/{'css' if path.suffix == '.css' else 'javascript'}; charset=utf-8"
    return Asset(url, media_type, f'"{digest}"', body, gzip.compress(body, 9, mtime=0))
