"""Code that only the start needed is given back, and nothing that was written is."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.leftovers import PERIOD_S, SETTLE_S, Leftovers, clean_mappings

ONLY_GLIBC = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library is not glibc, whose malloc this is about"
)
#: Fields as proc_pid_smaps(5) prints them, in its order, others left out.
FIELDS = (
    "Size:  8 kB\nRss:  {rss} kB\nPss:  8 kB\nAnonymous:  {anonymous} kB\nSwap:  {swap} kB\nSwapPss:  {swap} kB\nVmFlags: rd mr mw me\n"
)


def entry(head: str, *, rss: int = 8, anonymous: int = 0, swap: int = 0) -> str:
    return head + "\n" + FIELDS.format(rss=rss, anonymous=anonymous, swap=swap)


def found(*entries: str) -> list[tuple[int, int, str, int]]:
    return [(one.start, one.length, one.path, one.resident) for one in clean_mappings("".join(entries).splitlines(keepends=True))]


def test_code_and_constants_of_a_library_are_clean_mappings() -> None:
    code = entry("7f0000002000-7f0000004000 r-xp 00002000 fe:00 77  /usr/lib/libx.so.1", rss=4)
    constants = entry("7f0000004000-7f0000006000 r--p 00004000 fe:00 77  /usr/lib/libx.so.1", rss=8)
    assert found(code, constants) == [
        (0x7F0000002000, 0x2000, "/usr/lib/libx.so.1", 4096),
        (0x7F0000004000, 0x2000, "/usr/lib/libx.so.1", 8192),
    ]


@pytest.mark.parametrize(
    ("head", "anonymous"),
    [
        pytest.param("7f0000002000-7f0000004000 r--p 00002000 fe:00 77  /usr/lib/libx.so.1", 4, id="relocated, then protected"),
        pytest.param("7f0000002000-7f0000004000 rw-p 00002000 fe:00 77  /usr/lib/libx.so.1", 0, id="variables"),
        pytest.param("7f0000002000-7f0000004000 rwxp 00002000 fe:00 77  /usr/lib/libx.so.1", 0, id="code that may be written"),
        pytest.param("7f0000002000-7f0000004000 r--s 00002000 fe:00 77  /usr/lib/libx.so.1", 0, id="shared"),
        pytest.param("7f0000002000-7f0000004000 r--p 00000000 00:00 0", 0, id="no file"),
        pytest.param("7f0000002000-7f0000004000 r-xp 00000000 00:00 0  [vdso]", 0, id="the kernel's"),
    ],
)
def test_what_was_or_may_be_written_is_left_alone(head: str, anonymous: int) -> None:
    assert found(entry(head, anonymous=anonymous)) == []


def test_what_was_written_and_swapped_out_is_left_alone():
    """Compressed swap is usual on small boards; dropping such a page would undo what the loader wrote."""
    assert found(entry("7f0000002000-7f0000004000 r--p 00002000 fe:00 77  /usr/lib/libx.so.1", rss=0, swap=4)) == []


def test_a_field_of_one_mapping_is_not_taken_for_the_next_ones() -> None:
    written = entry("7f0000002000-7f0000004000 rw-p 00002000 fe:00 77  /usr/lib/libx.so.1", anonymous=0)
    code = entry("7f0000004000-7f0000006000 r-xp 00004000 fe:00 77  /usr/lib/libx.so.1", rss=4)
    assert [path for _, _, path, _ in found(code, written)] == ["/usr/lib/libx.so.1"]
    assert found(written, code) == [(0x7F0000004000, 0x2000, "/usr/lib/libx.so.1", 4096)]


#: What a process says of itself: memory in bytes before and after, what it answers before and after.
PROGRAM = """
import json, sys
from pathlib import Path
import cv2, numpy as np
from agent.leftovers import Leftovers

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def answer():
    picture = (np.arange(480 * 640 * 3, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8).reshape(480, 640, 3)
    small = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_LINEAR)
    spectrum = np.fft.rfft(small[..., 0].ravel())
    return [int(small.astype(np.int64).sum()), float(np.linalg.norm(spectrum)), cv2.imencode(".jpg", small)[1].size]

first, before = answer(), resident()
pages = Leftovers(lambda: 0.0)
given = pages.give_back()
after = resident()
again = [answer() for _ in range(3)]
given_again = pages.give_back()
print(json.dumps({"first": first, "again": again, "before": before, "after": after, "given": given, "given_again": given_again}))
"""


def test_a_process_gets_smaller_and_answers_as_before() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    said = json.loads(result.stdout)
    assert said["again"] == [said["first"]] * 3
    assert said["before"] - said["after"] > 8 * 2**20  # OpenCV's and numpy's starts touch more than 15 MiB
    assert said["given"] > 8 * 2**20
    assert said["given_again"] < said["given"]  # what is in use is all that came back


def test_a_file_that_is_only_mapped_stays_in_memory(tmp_path: Path) -> None:
    """A model's weights are read again for each frame; and who mapped a file may unmap it at any time."""
    program = """
import mmap, sys
from pathlib import Path
from agent.leftovers import Leftovers
with open(sys.argv[1], "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
total = sum(weights[::4096])
Leftovers(lambda: 0.0).give_back()
head = next(part for part in Path("/proc/self/smaps").read_text().split("VmFlags") if sys.argv[1] in part)
print(next(line for line in head.splitlines() if line.startswith("Rss:")).split()[1])
"""
    weights = tmp_path / "weights.so.bin"
    weights.write_bytes(b"\x01" * 2**20)
    result = subprocess.run([sys.executable, "-c", program, str(weights)], capture_output=True, text=True, check=True)
    assert int(result.stdout) == 1024


@ONLY_GLIBC
def test_free_memory_between_what_is_in_use_is_given_back():
    program = """
import ctypes
from pathlib import Path
from agent.leftovers import Leftovers

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

malloc = ctypes.CDLL(None)
malloc.malloc.restype, malloc.malloc.argtypes, malloc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
chunks = [malloc.malloc(65_536) for _ in range(400)]
for chunk in chunks:
    ctypes.memset(chunk, 1, 65_536)
for chunk in chunks[::2]:
    malloc.free(chunk)
leftovers = Leftovers(lambda: 0.0)
before = resident()
leftovers.give_back()
kept = all(ctypes.string_at(chunk, 65_536) == b"\\1" * 65_536 for chunk in chunks[1::2])
print(before - resident() if kept else 0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 200 * 60_000


#: Takes and gives back three buffers again and again, on a thread, as a session without an arena does for each frame; prints page faults.
FRAMES = """
import ctypes, resource, sys, threading
from agent.leftovers import keep_what_repeats

malloc = ctypes.CDLL(None)
malloc.malloc.restype, malloc.malloc.argtypes, malloc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE, ROUNDS = 6 << 20, 30

def frames():
    for number in range(ROUNDS):
        if number == 3:
            began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        buffers = [malloc.malloc(SIZE) for _ in range(3)]
        for buffer in buffers:
            ctypes.memset(buffer, 1, SIZE)
        for buffer in buffers:
            malloc.free(buffer)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began) / (ROUNDS - 3))

if sys.argv[1] == "kept":
    keep_what_repeats()
thread = threading.Thread(target=frames)
thread.start()
thread.join()
"""


@ONLY_GLIBC
def test_buffers_of_each_frame_are_not_taken_from_the_kernel_anew():
    def faults(how: str) -> float:
        return float(subprocess.run([sys.executable, "-c", FRAMES, how], capture_output=True, text=True, check=True).stdout)

    assert faults("as it is") > 1000  # 18 MiB are 4,608 pages
    assert faults("kept") < 100


class Counting(Leftovers):
    """Counts instead of looking at memory."""

    times = 0

    def give_back(self) -> int:
        self.times += 1
        return 0


def test_it_is_done_once_what_goes_on_has_begun_and_then_each_hour() -> None:
    now_s = [0.0]
    pages = Counting(lambda: now_s[0])
    seen = []
    for now_s[0] in (0.0, SETTLE_S - 0.1, SETTLE_S, SETTLE_S + 1.0, PERIOD_S, SETTLE_S + PERIOD_S, SETTLE_S + PERIOD_S + 1.0):
        pages.tend()
        seen.append(pages.times)
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_a_change_puts_it_off_until_it_has_settled() -> None:
    now_s = [0.0]
    pages = Counting(lambda: now_s[0])
    now_s[0] = SETTLE_S
    pages.tend()
    now_s[0] = 100.0
    pages.changed()
    pages.tend()
    assert pages.times == 1
    now_s[0] = 100.0 + SETTLE_S
    pages.tend()
    assert pages.times == 2
