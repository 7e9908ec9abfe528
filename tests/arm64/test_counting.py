"""The plugin that `make bench-arm64` counts instructions with counts each of them once, in whatever thread."""

import os
import shutil

import pytest
from arm64.tree import lacking, opened_tree

from benchmarks.bench_arm64 import Counted

pytestmark = pytest.mark.skipif("MOORING_TEST_ARM64" not in os.environ, reason="needs root and an arm64 tree; run by `make test-arm64`")
#: subs x0, x0, #1; b.ne to it; ret: two instructions a turn.
PROGRAM = """
import ctypes, mmap, struct, sys, threading
from benchmarks.bench_arm64 import mark
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(struct.pack("<III", 0xF1000400, 0x54FFFFE1, 0xD65F03C0))
turn = ctypes.CFUNCTYPE(None, ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
def in_a_thread(turns):
    thread = threading.Thread(target=turn, args=(turns,))
    thread.start()
    thread.join()
for call in (turn, in_a_thread):
    call(10)
    mark(0)
    call(10)
    mark(1)
    call(1_000_000)
    mark(2)
    print("next", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("qemu-aarch64") is None, reason="gcc or qemu-user is missing")
def test_a_loop_of_known_length_is_counted():
    if text := lacking():
        pytest.fail(text)
    with opened_tree() as tree:
        alone, in_a_thread, _ = Counted(tree).run("-c", PROGRAM).split("next")
    for said in (alone, in_a_thread):
        first, second, third = (int(line.split()[2]) for line in said.splitlines() if line.startswith("mark"))
        assert (third - second) - (second - first) == pytest.approx(2 * (1_000_000 - 10), rel=0.02)
