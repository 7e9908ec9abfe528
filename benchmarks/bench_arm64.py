"""Guest instructions per inferred frame on arm64, ours beside the bare loops: a stand-in for CPU time until a board is there.

Runs in the arm64 tree of the tests under qemu-user with a plugin that counts executed instructions (`bench_arm64_count.c`), so it needs
root, gcc, qemu-user and what `make test-arm64` needs; it says what is missing. An instruction is not a cycle: one of NEON counts as much as
one of Python's. Counts hardly depend on the load of the machine.

`python -m benchmarks.bench_arm64 inside ours|bare|fed SLOT FRAMES` is one measured process in the tree: it marks the count before the
first frame and after every FRAMES of them, so that start, imports and warming are left out.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import ROOT, Row, compare, write

if TYPE_CHECKING:
    from arm64.tree import Tree

#: Names in `benchmarks.agent.slots`, frames between two marks, and the bound that `bench-agent` has for CPU time.
MODELS = (("vww_96_int8", 100, "<= 1.25"), ("vww_96_float", 100, "<= 1.25"), ("mbs_v1", 100, "<= 1.25"), ("mobilenet_v2", 20, "<= 1.03"))
MODES = ("ours", "bare", "fed")
#: Stretches of frames between marks, each a round of its own.
STRETCHES = 3
WARM_FRAMES = 20
#: What the plugin listens to: close of minus this and the number of the mark.
MARK = 1_000_000
POLL_S = 0.2
_MARKED = re.compile(r"^mark (\d+) (\d+)$", re.MULTILINE)


def mark(number: int) -> None:
    """Ask the plugin for the count so far."""
    with contextlib.suppress(OSError):  # EBADF, which is what it is for
        os.close(-MARK - number)


def run_ours(slot: Path, frames: int) -> list[int]:
    """The production pipeline, its predictions read by a process that is not counted; returns the frames inferred at each mark."""
    from agent.inference.link import Link
    from benchmarks.agent.per_frame import pipeline_on

    link = Link(_read_elsewhere())
    with pipeline_on(slot, fps=0, link=link) as pipeline:
        marked: list[int] = []
        for number in range(STRETCHES + 1):
            wanted = WARM_FRAMES + number * frames
            while (seen := pipeline.count().inferred) < wanted:
                time.sleep(POLL_S)
            mark(number)
            marked.append(seen)
    link.close()
    return marked


def run_bare(slot: Path, frames: int, *, is_fed: bool) -> list[int]:
    """Set, invoke, get on the same back end, with preprocessing of fresh frames before it or not; returns the frames at each mark."""
    from agent.config import RuntimeConfig
    from benchmarks.agent.per_frame import bare_call, random_frame
    from runtime.base import BackendOptions
    from runtime.loader import load_first, read_slot
    from runtime.preprocess import Preprocessor, compile_plan

    manifest = read_slot(slot)
    call = bare_call(load_first(slot, manifest, BackendOptions(threads=RuntimeConfig().threads)).backend, manifest.model_file)
    preprocessor, picture = Preprocessor(compile_plan(manifest)), random_frame()
    marked = []
    for number in range(STRETCHES + 1):
        for _ in range(frames if number else WARM_FRAMES):
            if is_fed:
                preprocessor.run(picture)
            call()
        mark(number)
        marked.append(WARM_FRAMES + number * frames)
    return marked


def _read_elsewhere() -> socket.socket:
    """One end of a pair whose other end a process of its own empties until it is hung up. Before the first thread: it forks."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        while there.recv(65_536):
            pass
        os._exit(0)
    there.close()
    return here


def inside(mode: str, slot: Path, frames: int) -> None:
    """One measured process; prints the frames at each mark."""
    marked = run_ours(slot, frames) if mode == "ours" else run_bare(slot, frames, is_fed=mode == "fed")
    print(json.dumps(marked))


class Counted:
    """The emulator with its plugin, laid into the tree with the libraries of the host that it needs."""

    def __init__(self, tree: "Tree") -> None:
        self._tree = tree
        self._folder = tree.shared / "qemu"
        self._folder.mkdir()
        program = Path(str(shutil.which("qemu-aarch64")))
        self._loader = ""
        for library in _libraries(program):
            shutil.copy(library, self._folder)
            self._loader = library.name if library.name.startswith("ld-") else self._loader
        shutil.copy(program, self._folder / "qemu")
        source = ROOT / "benchmarks" / "bench_arm64_count.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", self._folder / "count.so", source], check=True)

    def run(self, *arguments: str) -> str:
        """What a Python process of the tree says, errors and counts included. Raises: RuntimeError with its last words."""
        at = self._tree.inside(self._folder)
        emulator = [f"{at}/{self._loader}", "--library-path", at, f"{at}/qemu", "-plugin", f"{at}/count.so"]
        return self._tree.run(*emulator, "/usr/bin/python3", *arguments, with_errors=True)

    def per_frame(self, mode: str, slot: Path, frames: int) -> list[float]:
        """Instructions per frame between each two marks."""
        said = self.run("-m", "benchmarks.bench_arm64", "inside", mode, self._tree.inside(slot), str(frames))
        counts = {int(number): int(count) for number, count in _MARKED.findall(said)}
        marked = next(json.loads(line) for line in said.splitlines() if line.startswith("["))
        pairs = [(counts[number + 1] - counts[number], marked[number + 1] - marked[number]) for number in range(STRETCHES)]
        return [count / inferred for count, inferred in pairs]


def _libraries(program: Path) -> Iterator[Path]:
    found = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for line in found.splitlines():
        match = re.search(r"(/\S+) \(0x", line)
        if match:
            yield Path(match[1])


def rows_in(tree: "Tree") -> list[Row]:
    """Every model, ours beside both bare loops."""
    from benchmarks.agent import slots

    counted = Counted(tree)
    rows = []
    for name, frames, target in MODELS:
        slot = slots.make_slot(tree.shared / name, slots.MODELS[name])
        figures = {mode: counted.per_frame(mode, slot, frames) for mode in MODES}
        for mode, label in (("bare", f"bare {name}"), ("fed", f"{name} and preprocessing")):
            what = f"arm64 instructions per frame, {name}" + (", of fed" if mode == "fed" else "")
            rows.append(compare(what, ours=figures["ours"], peer=figures[mode], peer_name=label, unit="instructions", target=target))
    return rows


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests"))
    from arm64.tree import lacking, opened_tree

    from benchmarks.agent.slots import DATA

    absent = [
        f"{program} (apt install {package})"
        for program, package in (("qemu-aarch64", "qemu-user"), ("gcc", "gcc"))
        if not shutil.which(program)
    ]
    text = lacking() or ", ".join(absent) or ("" if (DATA / "models").is_dir() else f"{DATA} (set MOORING_DATA)")
    if text:
        print(f"bench-arm64: skipped, missing: {text}")
        return 0
    with opened_tree() as tree:
        rows = rows_in(tree)
    write("arm64", rows, headline=[row.what for row in rows if not row.what.endswith("of fed")], details={"load": list(os.getloadavg())})
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        sys.exit(0)
    sys.exit(main())
