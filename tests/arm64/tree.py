"""An arm64 Debian tree with the agent's wheels and our sources, and programs run in it: emulated where this machine is no arm64.

Made of what `deploy/build-arm64` makes its image of, kept unpacked below ~/.cache/mooring/arm64. Needs root.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mooring" / "arm64"
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
}
#: Tags of wheels for arm64, as `deploy/build-arm64` fetches them.
TAGS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
#: Where the tree keeps the wheels, and one run its files.
PACKAGES, RUNS = "opt/arm64/packages", "srv/arm64"
SOURCES = ("agent", "runtime", "protocol", "benchmarks", "examples", "tests/arm64")


def lacking() -> str:
    """What keeps arm64 programs from running in a tree on this machine, and how to get it; empty: nothing."""
    if os.geteuid() != 0:
        return "arm64: root is needed (chroot and private mounts)."
    absent = sorted(package for program, package in PROGRAMS.items() if shutil.which(program) is None)
    if absent and platform.machine() != "aarch64":
        return f"arm64: {', '.join(absent)} missing (apt install mmdebstrap arch-test qemu-user-static binfmt-support)."
    return ""


class Tree:
    """A tree in which commands run with our sources and one folder of their own."""

    def __init__(self, root: Path, place: Path) -> None:
        self._root, self._place = root, place
        #: The folder that host and tree share, as the host sees it.
        self.shared = place / "shared"
        self.shared.mkdir(parents=True)
        for name in SOURCES:
            shutil.copytree(ROOT / name, place / "code" / name, ignore=shutil.ignore_patterns("__pycache__", "results"))

    def inside(self, path: Path) -> str:
        """A path of the host as programs in the tree see it. Raises: ValueError for one outside."""
        return f"/{path.relative_to(self._root)}"

    def run(self, *command: str, environment: Mapping[str, str] | None = None, with_errors: bool = False) -> str:
        """Standard output (and error) of a program in the tree, in the folder of our sources. Raises: RuntimeError with its last words."""
        code = self.inside(self._place / "code")
        told = {"PYTHONPATH": f"{code}:{code}/tests:/{PACKAGES}", "OMP_NUM_THREADS": "1", **(environment or {})}
        check = [str(ROOT / "firmware-images" / "check-tree"), str(self._root)]
        pairs = [f"{name}={value}" for name, value in told.items()]
        return _said([*check, "/usr/bin/env", "-C", code, *pairs, *command], with_errors=with_errors)

    def python(self, *arguments: str) -> str:
        """Standard output of the tree's Python. Raises: RuntimeError with its last words."""
        return self.run("/usr/bin/python3", *arguments)


@contextmanager
def opened_tree() -> Iterator[Tree]:
    """A tree with our sources as they are now, until the end of the block. Raises: RuntimeError when it cannot be made."""
    if text := lacking():
        raise RuntimeError(text)
    root = _made()
    runs = root / RUNS
    runs.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=runs))
    try:
        yield Tree(root, place)
    finally:
        shutil.rmtree(place)


def _made() -> Path:
    """The unpacked tree of today's list of wheels, made where it is missing (minutes the first time)."""
    base, wheels = map(Path, _said([str(ROOT / "deploy" / "build-arm64"), "--base-only"]).split()[-2:])
    key = hashlib.sha256(f"{base.stat().st_size} {base.stat().st_mtime_ns} {wheels.name}".encode()).hexdigest()[:16]
    root = CACHE / f"tree-{key}"
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="part.", dir=CACHE))
        _said(["tar", "-C", str(part), "--numeric-owner", "-xf", str(base)])
        _install(wheels, part / PACKAGES)
        part.chmod(0o755)
        part.rename(root)
    return root


def _install(wheels: Path, target: Path) -> None:
    tags = [f"--platform={tag}_aarch64" for tag in TAGS]
    fixed = ["--quiet", "--no-deps", "--no-index", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *tags]
    _said([sys.executable, "-m", "pip", "install", *fixed, f"--target={target}", *map(str, sorted(wheels.glob("*.whl")))])


def _said(command: Sequence[str], *, with_errors: bool = False) -> str:
    """What a program writes to standard output (and error). Raises: RuntimeError with its last words."""
    errors = subprocess.STDOUT if with_errors else subprocess.PIPE
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode != 0:
        words = done.stdout if with_errors else done.stderr
        raise RuntimeError(f"{' '.join(command)[:300]} ended with status {done.returncode}: {words[-2000:]}")
    return done.stdout
