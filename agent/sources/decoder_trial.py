"""`python -m agent.sources.decoder_trial NAME`: tries one decoder on three frames of red and prints {"ok": ..., "text": ...}.

Run by `decoders`, in a process of its own because a driver that is broken may take its process along.
"""

import base64
import json
import os
import sys

from agent.sources.base import SourceLostError
from agent.sources.decoders import Decoder, options_of
from agent.sources.opencv import Opening, load_cv2

#: Three frames of 320 x 240 red pixels, H.264 main profile; small decoders refuse smaller pictures.
_SAMPLE = base64.b64decode(
    "AAAAAWdNQBamEQUH7ARAAAADAEAAAAUDxYuEYAAAAAFo6EMCUsgAAAFliIIH//6EH8ClLwEdhSh052y1bskJJXdp+YA2wiJCfAAQexwsGUBFzViQFRAABVBIuNIioW3G"
    "fX0rqQAAAAFBmh2Id/+HAAAs4AAAAAFBmivwQZMphDf/AAADAFTB"
)
_RED_BGR = (0, 0, 253)
#: How far a level of color may be from the one that FFmpeg decodes on the processor.
_TOLERANCE = 12


def trial(decoder: Decoder) -> tuple[bool, str]:
    """Whether the decoder gives red frames and is really used, and what was seen."""
    cv2 = load_cv2()
    sample = os.memfd_create("mooring-sample")
    os.write(sample, _SAMPLE)
    opening = Opening(cv2.CAP_FFMPEG, options_of(transport="tcp", decode="all", decoder=decoder), is_vaapi=decoder is Decoder.VAAPI)
    try:
        capture = opening.open(f"/proc/self/fd/{sample}")
    except SourceLostError:
        return False, "it cannot be opened: no device, no permission, or this OpenCV was built without it"
    seen, pixels = capture.read()
    if not seen or pixels is None:
        return False, "it opens and gives no frame"
    mean = pixels.mean(axis=(0, 1))
    if any(abs(have - want) > _TOLERANCE for have, want in zip(mean, _RED_BGR, strict=True)):
        return False, f"it gives wrong pixels: {[round(float(level)) for level in mean]} in place of {list(_RED_BGR)}"
    if decoder is Decoder.VAAPI and capture.get(cv2.CAP_PROP_HW_ACCELERATION) != cv2.VIDEO_ACCELERATION_VAAPI:
        return False, "it is not used: the processor decodes instead"
    return True, f"{pixels.shape[1]}x{pixels.shape[0]} decoded"


if __name__ == "__main__":
    is_ok, said = trial(Decoder(sys.argv[1]))
    sys.stdout.write(json.dumps({"ok": is_ok, "text": said}))
    sys.stdout.flush()
    os._exit(0)  # not sys.exit: a driver's own threads must not keep the process
