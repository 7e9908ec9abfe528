"""How every target runs: its limits, its seeds, where inputs that break it go. A target lets nothing escape but the errors it names."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
#: Simulators stand in for the network; they live beside the tests.
SIMULATORS = ROOT / "tests"
DEFAULT_SECONDS = 600
#: Largest resident memory of the fuzzing process, MiB: interpreter, libraries, instrumentation and the corpus included.
RSS_LIMIT_MB = 512
#: Seconds that one input may take.
TIMEOUT_S = 10


def start(name: str, run: Callable[[bytes], None], *, max_bytes: int, dictionary: bool = False, sweep: Iterable[bytes] = ()) -> None:
    """Run all of `sweep`, then fuzz for MOORING_FUZZ_SECONDS; ends the process, with a status other than 0 when an input broke something.

    New inputs are kept under build/fuzz/NAME/corpus, breaking ones beside it. Options of libFuzzer on the command line win.
    """
    work = ROOT / "build" / "fuzz" / name
    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    swept = work / "sweep"
    shutil.rmtree(swept, ignore_errors=True)
    swept.mkdir()
    for index, data in enumerate(sweep):
        (swept / f"{index}").write_bytes(data)
    options = [
        f"-max_total_time={os.environ.get('MOORING_FUZZ_SECONDS', DEFAULT_SECONDS)}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={TIMEOUT_S}",
        f"-max_len={max_bytes}",
        f"-artifact_prefix={work}/",
        "-print_final_stats=1",
    ]
    if dictionary:
        options.append(f"-dict={ROOT / 'fuzz' / 'seeds' / f'{name}.dict'}")
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus), str(ROOT / "fuzz" / "seeds" / name), str(swept)], run)
    atheris.Fuzz()


def scratch_folder(name: str) -> Path:
    """An empty folder in memory where there is one: a target writes files and syncs them thousands of times a second.

    libFuzzer ends its process without tidying, so the next run does.
    """
    memory = Path("/dev/shm")  # noqa: S108 - only a folder of this user is used in it
    folder = (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())) / f"fuzz-{name}-{os.getuid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder
