"""A plain TUF client, for suites that test clients from outside: `python -m agent.update.tuf_cli`. Devices never run it.

It is the device's `StrictUpdater` over the device's fetcher, with one setting of its own (ADR 0020): a snapshot may leave out the digests
of delegated roles, because public repositories do. It speaks the command line that theupdateframework/tuf-conformance asks of a client.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile
    from tuf.ngclient.fetcher import FetcherInterface

    from protocol.trust.updater import StrictUpdater

#: What python-tuf allows a root to have, bytes.
MAX_ROOT_BYTES = 512_000
#: Largest target, bytes: as the largest file of a release.
MAX_TARGET_BYTES = 2 << 30
#: Seconds without an answer.
TIMEOUT_S = 30.0


def init(metadata_dir: Path, root: Path) -> None:
    """Keep the root that everything else is judged by. No request is made and nothing is judged yet. Raises: InvalidError; OSError."""
    from protocol.files import read_bounded, write_atomically

    data = read_bounded(root, MAX_ROOT_BYTES)
    bootstrap = _bootstrap(metadata_dir)
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(bootstrap, data)
    write_atomically(metadata_dir / "root.json", data)


def refresh(metadata_dir: Path, metadata_url: str) -> None:
    """Bring root, timestamp, snapshot and targets up to date. Raises: tuf's RepositoryError, DownloadError; OSError."""
    with _open_fetcher() as fetcher:
        _updater(metadata_dir, metadata_url, fetcher).refresh()


def download(metadata_dir: Path, metadata_url: str, names: Sequence[str], base_url: str, folder: Path) -> None:
    """Refresh, then look up and fetch the targets in this order, in one session. A target that is there already is not fetched again.

    Raises: as `refresh`; InvalidError for a name that the repository does not know, or a target that is too large.
    """
    from protocol.errors import InvalidError

    with _open_fetcher() as fetcher:
        updater = _updater(metadata_dir, metadata_url, fetcher)
        updater.refresh()
        for name in names:
            found = updater.get_targetinfo(name)
            if found is None:
                raise InvalidError(f"The repository knows no target {name!r}.")
            if found.length > MAX_TARGET_BYTES:
                raise InvalidError(f"Target {name!r} has {found.length} bytes; at most {MAX_TARGET_BYTES} are allowed.")
            path = folder / _file_name(name)
            if not _is_there(path, found):
                url = f"{base_url.rstrip('/')}/{_served_path(found, hashed=bool(updater.root().consistent_snapshot))}"
                _fetch(fetcher, url, found, path)


def _bootstrap(metadata_dir: Path) -> Path:
    # in a folder of its own: root.json beside it follows the newest root
    return metadata_dir / "bootstrap" / "root.json"


def _updater(metadata_dir: Path, metadata_url: str, fetcher: "FetcherInterface") -> "StrictUpdater":
    from protocol.clock import SystemClock
    from protocol.files import read_bounded
    from protocol.trust.updater import RepositoryAccess, StrictUpdater

    root = read_bounded(_bootstrap(metadata_dir), MAX_ROOT_BYTES)
    access = RepositoryAccess(metadata_dir, metadata_url, root, fetcher)
    return StrictUpdater(access, reference_time=SystemClock().now(), demand_snapshot_hashes=False)


@contextmanager
def _open_fetcher() -> Iterator["FetcherInterface"]:
    import httpx

    from agent.update.fetch import open_tuf_fetcher

    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers={"Accept-Encoding": "identity"}) as client:
        yield open_tuf_fetcher(client)


def _file_name(target_path: str) -> str:
    name = quote(target_path, safe="")
    return name if name.strip(".") else name.replace(".", "%2E")


def _served_path(target: "TargetFile", *, hashed: bool) -> str:
    if not hashed:
        return target.path
    folder, slash, name = target.path.rpartition("/")
    return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"


def _is_there(path: Path, target: "TargetFile") -> bool:
    from tuf.api.exceptions import LengthOrHashMismatchError

    try:
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (FileNotFoundError, LengthOrHashMismatchError):
        return False
    return True


def _fetch(fetcher: "FetcherInterface", url: str, target: "TargetFile", path: Path) -> None:
    from protocol.files import write_atomically

    with fetcher.download_file(url, target.length) as received:
        target.verify_length_and_hashes(received)
        received.seek(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, received.read())


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and do it; returns 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    from tuf.api.exceptions import DownloadError, RepositoryError

    from protocol.errors import MooringError

    try:
        match options.command:
            case "init":
                init(options.metadata_dir, options.root)
            case "refresh":
                refresh(options.metadata_dir, options.metadata_url)
            case _:
                download(options.metadata_dir, options.metadata_url, options.target_name, options.target_base_url, options.target_dir)
    except (RepositoryError, DownloadError, MooringError, OSError, ValueError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.update.tuf_cli", description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True, help="where trusted metadata is kept")
    parser.add_argument("--metadata-url", default="", help="where the repository serves metadata")
    parser.add_argument("--target-name", action="append", default=[], help="target to download; may be given several times")
    parser.add_argument("--target-base-url", default="", help="where the repository serves targets")
    parser.add_argument("--target-dir", type=Path, default=Path(), help="where targets are kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="trust this root").add_argument("root", type=Path, metavar="ROOT")
    commands.add_parser("refresh", help="bring the top-level metadata up to date")
    commands.add_parser("download", help="fetch targets, verified")
    return parser


if __name__ == "__main__":
    sys.exit(main())
