"""The other delta tools at their best levels, each run in a process of its own whose CPU time and peak memory are read from the kernel.

A tool that is not installed is named with the reason; the benchmark goes on without it. Tools that are Python libraries live in the
benchmark's own environment (.venv-bench) and are driven by this file's `main`, run with that environment's Python.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
#: 27: the largest window of zstd that a decoder takes without being asked; more than every file here.
ZSTD_LEVEL = ("--ultra", "-22", "--long=27")
TIMEOUT_S = 900
#: A small parent that forks, so that the child's peak memory starts at its own few MB and not at the benchmark's.
RUNNER = """
import json, os, sys
child = os.fork()
if child == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, use = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), use.ru_utime + use.ru_stime, use.ru_maxrss / 1024]))
"""


class PeerError(Exception):
    """A tool left with an error, or did not give the new file back."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one run took: CPU seconds of user and system, peak memory in MiB (never below the 9 MiB of its parent)."""

    cpu_s: float
    memory_mib: float


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of a tool; {old}, {new}, {delta}, {out} stand for files."""

    name: str
    encode: tuple[str, ...]
    decode: tuple[str, ...]
    #: Larger new files are not tried: minutes of CPU for a setting that is far from the smallest.
    most_bytes: int = 1 << 40


@dataclass(frozen=True, slots=True)
class Peer:
    """One tool with the settings that may be its best; `missing` says why it cannot run here."""

    name: str
    version: str
    variants: tuple[Variant, ...]
    missing: str = ""
    #: The four that every delta is compared with.
    is_generic: bool = True


@dataclass(frozen=True, slots=True)
class Trial:
    """One delta made and applied by a tool: bytes, and what both ways took."""

    variant: str
    size: int
    encode: Use
    decode: Use


def run(command: Sequence[str]) -> Use:
    """Run a program to its end.

    Raises: PeerError when it leaves with an error.
    """
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUNNER, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if result.returncode:
        raise PeerError(f"{command[0]} could not be started: {result.stderr.strip()[-300:]}")
    code, cpu_s, memory_mib = json.loads(result.stdout)
    if code:
        raise PeerError(f"{' '.join(command)} left with {code}: {result.stderr.strip()[-300:]}")
    return Use(cpu_s, memory_mib)


def attempt(variant: Variant, old: Path, new: Path, folder: Path) -> Trial:
    """Make and apply one delta with files of its own and compare the result.

    Raises: PeerError.
    """
    delta, out = folder / "delta", folder / "out"
    delta.unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    names = {"old": str(old), "new": str(new), "delta": str(delta), "out": str(out)}
    encode = run([part.format(**names) for part in variant.encode])
    decode = run([part.format(**names) for part in variant.decode])
    if out.read_bytes() != new.read_bytes():
        raise PeerError(f"{variant.name}: the decoded file differs from {new.name}")
    return Trial(variant.name, delta.stat().st_size, encode, decode)


def full_size(new: Path, folder: Path) -> int:
    """Bytes of the smallest full download: zstd at its highest level."""
    packed = folder / "full"
    if shutil.which("zstd") is None:
        import zstandard

        return len(zstandard.ZstdCompressor(level=22).compress(new.read_bytes()))
    run(["zstd", "-q", "-f", *ZSTD_LEVEL, str(new), "-o", str(packed)])
    return packed.stat().st_size


def find_peers() -> tuple[Peer, ...]:
    """Every tool, present or not, in the order of the tables."""
    return (_bsdiff(), _xdelta3(), _zstd(), _detools(), _hdiffpatch())


def find_float_peers() -> tuple[Peer, ...]:
    """What is compared on float models besides."""
    return (_zipnn(),)


def _bsdiff() -> Peer:
    variant = Variant("bzip2", ("bsdiff", "{old}", "{new}", "{delta}"), ("bspatch", "{old}", "{out}", "{delta}"))
    return _program("bsdiff", "bsdiff", (variant,))


def _xdelta3() -> Peer:
    window = ("-B", str(1 << 26), "-W", str(1 << 24), "-A", "-n")
    variants = tuple(
        Variant(
            f"-9 -S {second}",
            ("xdelta3", "-e", "-f", "-9", "-S", second, *window, "-s", "{old}", "{new}", "{delta}"),
            ("xdelta3", "-d", "-f", "-B", str(1 << 26), "-s", "{old}", "{delta}", "{out}"),
        )
        for second in ("lzma", "djw")
    )
    return _program("xdelta3", "xdelta3", variants)


def _zstd() -> Peer:
    variant = Variant(
        " ".join(("--patch-from", *ZSTD_LEVEL)),
        ("zstd", "-q", "-f", *ZSTD_LEVEL, "--patch-from={old}", "{new}", "-o", "{delta}"),
        ("zstd", "-q", "-f", "-d", "--long=27", "--patch-from={old}", "{delta}", "-o", "{out}"),
    )
    return _program("zstd --patch-from", "zstd", (variant,))


def _detools() -> Peer:
    settings = {
        "lzma": ("-c", "lzma"),
        "heatshrink": ("-c", "heatshrink", "--heatshrink-window-sz2", "14", "--heatshrink-lookahead-sz2", "8"),
        "hdiffpatch lzma": ("-c", "lzma", "-t", "hdiffpatch", "-a", "hdiffpatch"),
    }
    tool = (str(BENCH_PYTHON), "-m", "detools")
    variants = tuple(
        Variant(
            name,
            (*tool, "create_patch", *options, "{old}", "{new}", "{delta}"),
            (*tool, "apply_patch", "{old}", "{delta}", "{out}"),
            most_bytes=1 << 19 if name == "heatshrink" else 1 << 40,
        )
        for name, options in settings.items()
    )
    return _library("detools", "detools", variants)


def _hdiffpatch() -> Peer:
    variants = tuple(_driven("hdiffpatch", name) for name in ("BrotliConfig", "LzmaConfig"))
    return _library("HDiffPatch", "hdiffpatch", variants, is_generic=False)


def _zipnn() -> Peer:
    variants = tuple(_driven("zipnn", name) for name in ("float32", "float16"))
    return _library("ZipNN", "zipnn", variants, is_generic=False)


def _driven(library: str, setting: str) -> Variant:
    """A library called through this file."""
    tool = (str(BENCH_PYTHON), "-W", "ignore", str(Path(__file__).resolve()), library, setting)
    return Variant(setting, (*tool, "encode", "{old}", "{new}", "{delta}"), (*tool, "decode", "{old}", "{delta}", "{out}"))


def _program(name: str, program: str, variants: tuple[Variant, ...]) -> Peer:
    if shutil.which(program) is None:
        return Peer(name, "", (), f"the program {program} is not installed (benchmarks/delta_pairs/install-peers)")
    return Peer(name, _package_version(program), variants)


def _package_version(package: str) -> str:
    """The Debian package's version, where there is one."""
    if shutil.which("dpkg-query") is None:
        return ""
    result = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _library(name: str, package: str, variants: tuple[Variant, ...], *, is_generic: bool = True) -> Peer:
    if not BENCH_PYTHON.exists():
        return Peer(name, "", (), "the environment .venv-bench is missing (make bench-delta makes it)", is_generic)
    program = f"import {package}; from importlib.metadata import version; print(version({package!r}))"
    result = subprocess.run([BENCH_PYTHON, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    if result.returncode:
        return Peer(name, "", (), f"{package} does not import: {result.stderr.strip().splitlines()[-1]}", is_generic)
    return Peer(name, result.stdout.strip(), variants, is_generic=is_generic)


# --- run with the benchmark's own Python: the libraries that have no program ---


def main() -> int:
    """`peers.py LIBRARY SETTING encode OLD NEW DELTA` or `… decode OLD DELTA OUT`."""
    library, setting, way = sys.argv[1:4]
    old, source, result = (Path(name) for name in sys.argv[4:7])
    work = {"hdiffpatch": _drive_hdiffpatch, "zipnn": _drive_zipnn}[library]
    result.write_bytes(work(setting, way, old.read_bytes(), source.read_bytes()))
    return 0


def _drive_hdiffpatch(setting: str, way: str, old: bytes, data: bytes) -> bytes:
    import hdiffpatch

    if way == "decode":
        return bytes(hdiffpatch.apply(old, data))
    return bytes(hdiffpatch.diff(old, data, getattr(hdiffpatch, setting).best_compression(), validate=False))


def _drive_zipnn(setting: str, way: str, old: bytes, data: bytes) -> bytes:
    from zipnn import ZipNN

    tool = ZipNN(input_format="byte", bytearray_dtype=setting, delta_compressed_type="byte", zstd_level=22)
    if way == "decode":
        return bytes(tool.decompress(bytearray(data), delta_second_data=bytearray(old)))
    return bytes(tool.compress(bytearray(data), delta_second_data=bytearray(old)))


if __name__ == "__main__":
    sys.exit(main())
