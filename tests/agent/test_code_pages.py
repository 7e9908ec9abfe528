"""Code that only the start needed is given back, and nothing that was written is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.code_pages import PERIOD_S, SETTLE_S, CodePages, clean_mappings

#: Fields as proc_pid_smaps(5) prints them, in its order, others left out.
FIELDS = "Size:  8 kB\nRss:  {rss} kB\nPss:  8 kB\nPrivate_Dirty:  0 kB\nAnonymous:  {anonymous} kB\nVmFlags: rd mr mw me\n"


def entry(head: str, *, rss: int = 8, anonymous: int = 0) -> str:
    return head + "\n" + FIELDS.format(rss=rss, anonymous=anonymous)


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
from agent.code_pages import CodePages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def answer():
    picture = (np.arange(480 * 640 * 3, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8).reshape(480, 640, 3)
    small = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_LINEAR)
    spectrum = np.fft.rfft(small[..., 0].ravel())
    return [int(small.astype(np.int64).sum()), float(np.linalg.norm(spectrum)), cv2.imencode(".jpg", small)[1].size]

first, before = answer(), resident()
pages = CodePages(lambda: 0.0)
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
    assert said["given"] >= said["before"] - said["after"]
    assert said["given_again"] < said["given"]  # what is in use is all that came back


def test_a_file_that_is_only_mapped_stays_in_memory(tmp_path: Path) -> None:
    """A model's weights are read again for each frame; and who mapped a file may unmap it at any time."""
    program = """
import mmap, sys
from pathlib import Path
from agent.code_pages import CodePages
with open(sys.argv[1], "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
total = sum(weights[::4096])
CodePages(lambda: 0.0).give_back()
head = next(part for part in Path("/proc/self/smaps").read_text().split("VmFlags") if sys.argv[1] in part)
print(next(line for line in head.splitlines() if line.startswith("Rss:")).split()[1])
"""
    weights = tmp_path / "weights.so.bin"
    weights.write_bytes(b"\x01" * 2**20)
    result = subprocess.run([sys.executable, "-c", program, str(weights)], capture_output=True, text=True, check=True)
    assert int(result.stdout) == 1024


class Counting(CodePages):
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
