"""What may decode a stream, and what OpenCV must be told for it: pure, but for `effective`, which asks a child process once per process.

A decoder of the hardware may be missing, may crash, or may silently not be used; so each is tried on a small stream in a child first.
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum

from agent.children import child_environment

#: Seconds that a try may take: drivers load firmware.
TRY_S = 30.0
#: What a child says at most, in bytes.
MAX_ANSWER = 4096


class Decoder(StrEnum):
    """What decodes."""

    #: FFmpeg on the processor, one thread.
    CPU = "cpu"
    #: VA-API of Intel and AMD graphics.
    VAAPI = "vaapi"
    #: Codecs that Linux drives as V4L2 memory-to-memory devices, as on many ARM boards.
    V4L2M2M = "v4l2m2m"
    #: NVDEC through FFmpeg's cuvid decoders.
    CUDA = "cuda"


#: In the order of "auto".
HARDWARE = (Decoder.VAAPI, Decoder.V4L2M2M, Decoder.CUDA)
#: FFmpeg's names of the decoders of H.264 that are not chosen through OpenCV's own property.
_NAMES = {Decoder.V4L2M2M: "v4l2m2m", Decoder.CUDA: "cuvid"}
#: What FFmpeg leaves undecoded, in OpenCV's words.
_DISCARD = {"all": "", "references": "nonref", "keyframes": "nonkey"}


@dataclass(frozen=True, slots=True)
class Tried:
    """How a decoder did on a small stream."""

    ok: bool
    #: What was seen, in words.
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What decodes, and why nothing better does."""

    decoder: Decoder
    #: In words; empty when what was asked for is used.
    refused: str = ""


def options_of(*, transport: str, decode: str, decoder: Decoder, codec: str = "h264") -> str:
    """The value of OPENCV_FFMPEG_CAPTURE_OPTIONS for one stream: "name;value|name;value"."""
    options = {"rtsp_transport": transport}
    if discard := _DISCARD[decode]:
        options["avdiscard"] = discard
    if decoder in _NAMES:
        options["video_codec"] = f"{codec}_{_NAMES[decoder]}"
    return "|".join(f"{name};{value}" for name, value in options.items())


def choose(wanted: str, tried: dict[Decoder, Tried]) -> Choice:
    """The decoder for the setting `hardware`, given how those that it names did; missing ones count as not there. Pure."""
    candidates = HARDWARE if wanted == "auto" else tuple(one for one in HARDWARE if one == wanted)
    for one in candidates:
        if one in tried and tried[one].ok:
            return Choice(one)
    refused = "; ".join(f"{one}: {tried[one].text if one in tried else 'not tried'}" for one in candidates)
    return Choice(Decoder.CPU, refused)


class Tries:
    """Tries each decoder once; any thread. A stream that waits for a try delays nobody but itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tried: dict[Decoder, Tried] = {}

    def effective(self, wanted: str) -> Choice:
        """What decodes when the setting `hardware` is this. "none" asks nobody."""
        if wanted == "none":
            return Choice(Decoder.CPU)
        with self._lock:
            for one in HARDWARE if wanted == "auto" else (Decoder(wanted),):
                if one not in self._tried:
                    self._tried[one] = try_in_child(one)
                if self._tried[one].ok:
                    break
            return choose(wanted, self._tried)


def try_in_child(decoder: Decoder, *, timeout_s: float = TRY_S) -> Tried:
    """How the decoder does in a process of its own, whatever becomes of that process."""
    command = [sys.executable, "-m", "agent.sources.decoder_trial", decoder]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return Tried(ok=False, text=f"did not answer within {timeout_s:g} s")
    except OSError as error:
        return Tried(ok=False, text=f"could not be tried: {error.strerror}")
    if done.returncode < 0:
        return Tried(ok=False, text=f"its driver died by signal {-done.returncode}")
    return read_answer(done.stdout)


def read_answer(answer: bytes) -> Tried:
    """What the child said; anything else than one short JSON object of ours is a failure."""
    try:
        document = json.loads(answer[:MAX_ANSWER])
        return Tried(ok=document["ok"] is True, text=str(document["text"])[:500])
    except (ValueError, KeyError, TypeError):
        return Tried(ok=False, text=f"its answer cannot be read: {answer[:100]!r}")


TRIES = Tries()
