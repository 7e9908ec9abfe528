"""RTSP and HTTP streams: the smaller of two that suffices, the decoder that is asked for and works, JPEG decoded no larger than needed.

OpenCV is reached through `opencv`. User names and passwords stand inside stream URLs: texts name the masked URL only.
"""

import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from agent.orders import STREAM_SCHEMES, StreamSource, mask
from agent.sources.base import Array, DecodeError, Grabbed, Need, SourceLostError
from agent.sources.decoders import TRIES, Choice, Decoder, Tries, options_of
from agent.sources.opencv import OpenedCapture, Opening, decode_jpeg, load_cv2
from protocol.clock import Clock

#: Milliseconds until an unreachable peer is given up, and until a silent one is.
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 10_000
#: FFmpeg's names of codecs by the four characters that OpenCV tells.
_CODECS = {"h264": "h264", "H264": "h264", "avc1": "h264", "hevc": "hevc", "HEVC": "hevc", "hev1": "hevc", "hvc1": "hevc", "MJPG": "mjpeg"}
#: By how much a JPEG can be decoded smaller, the most first.
_REDUCTIONS = (8, 4, 2)


class Stream(OpenedCapture):
    """An RTSP or HTTP stream, and the smaller one of the same camera beside it, if there is one."""

    def __init__(
        self,
        config: StreamSource,
        *,
        clock: Clock,
        open_timeout_ms: int = OPEN_TIMEOUT_MS,
        read_timeout_ms: int = READ_TIMEOUT_MS,
        tries: Tries = TRIES,
    ) -> None:
        super().__init__(str(mask(config.url)))
        self._config = config
        self._open_timeout_ms = open_timeout_ms
        self._read_timeout_ms = read_timeout_ms
        self._clock = clock
        self._tries = tries
        self._need: Need | None = None
        #: Which one is open, and the size of the smaller one once it is known; None also when it cannot be opened.
        self._is_sub = False
        self._sub_size: tuple[int, int] | None = None
        self._has_sub = config.sub_url is not None
        self._size = (0, 0)
        #: Frames come as JPEG and are decoded by us.
        self._is_jpeg = False
        self._choice = Choice(Decoder.CPU)
        self._codecs: dict[str, str] = {}

    def suits(self, need: Need | None) -> bool:
        """Whether the stream that is open is the smaller one that has enough pixels."""
        self._need = need
        return self._capture is None or not self._has_sub or self._is_sub == self._wants_sub()

    def open(self) -> None:
        """Connect. Raises: SourceLostError naming the masked URL."""
        self._has_sub = self._config.sub_url is not None
        for url in filter(None, (self._config.url, self._config.sub_url)):
            if urlsplit(url).scheme not in STREAM_SCHEMES:
                wanted = ", ".join(f"{scheme}://" for scheme in STREAM_SCHEMES)
                raise SourceLostError(f"{mask(url)} is no stream address.", hint=f"Wanted {wanted}.")
        self.text = ""
        if self._config.sub_url is not None and self._wants_sub():
            try:
                self._connect(self._config.sub_url)
            except SourceLostError as error:
                self._has_sub, self.text = False, f"{error} The main stream is used."
            else:
                self._is_sub, self._sub_size = True, self._size
                if self._wants_sub():
                    self._describe()
                    return
        self._is_sub = False
        self._connect(self._config.url)
        self._describe()

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """The next picture of the stream."""
        if stop.is_set():
            return None
        if not self._capture.grab():
            raise SourceLostError(
                f"{self._name} broke off or was silent for {self._read_timeout_ms / 1000:g} s.", hint="It is opened again by itself."
            )
        return Grabbed(self._clock.monotonic())

    def retrieve(self, into: Array) -> Array:
        """The frame grabbed last; a JPEG is decoded no larger than the models need."""
        if not self._is_jpeg:
            return super().retrieve(into)
        is_there, data = self._capture.retrieve()
        if not is_there or data is None or data.size == 0:
            raise DecodeError(f"A frame of {self._name} is empty.")
        return decode_jpeg(np.asarray(data).reshape(-1), reduction=self._reduction(), name=self._name)

    def _wants_sub(self) -> bool:
        return self._sub_size is None or self._need is None or self._need.is_met_by(*self._sub_size)

    def _reduction(self) -> int:
        width, height = self._size
        need = self._need
        return 1 if need is None else next((by for by in _REDUCTIONS if need.is_met_by(width // by, height // by)), 1)

    def _connect(self, url: str) -> None:
        """Open the URL with the best decoder; a second time when only now it is known what is to be decoded."""
        self._name = str(mask(url))
        choice = self._tries.effective(self._config.hardware)
        self._choice = choice
        if choice.decoder in (Decoder.V4L2M2M, Decoder.CUDA) and url not in self._codecs:
            self._connect_by(url, Decoder.CPU, "")
        codec = self._codecs.get(url, "h264")
        if choice.decoder is not Decoder.CPU and codec not in ("h264", "hevc"):
            self._choice = Choice(Decoder.CPU, f"{choice.decoder}: decodes no {codec}")
        elif choice.decoder is not Decoder.CPU:
            try:
                self._connect_by(url, choice.decoder, codec)
            except SourceLostError:
                self._choice = Choice(Decoder.CPU, f"{choice.decoder}: does not open this stream")
            else:
                return
        self._connect_by(url, Decoder.CPU, "")

    def _connect_by(self, url: str, decoder: Decoder, codec: str) -> None:
        cv2 = load_cv2()
        opening = Opening(
            cv2.CAP_FFMPEG,
            options_of(transport=self._config.transport, decode=self._config.decode, decoder=decoder, codec=codec),
            parameters=(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, self._open_timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, self._read_timeout_ms),
            is_vaapi=decoder is Decoder.VAAPI,
        )
        self._open(url, opening, hint="Check address, credentials and that the camera streams.")
        self._codecs[url] = _codec_of(self._capture.get(cv2.CAP_PROP_FOURCC))
        self._size = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self._is_jpeg = self._codecs[url] == "mjpeg" and bool(self._capture.set(cv2.CAP_PROP_FORMAT, -1))

    def _describe(self) -> None:
        codec = self._codecs[self._config.sub_url if self._is_sub and self._config.sub_url else self._config.url]
        parts = [f"{self._choice.decoder}: {codec} {self._size[0]}x{self._size[1]}"]
        parts += ["sub-stream"] if self._is_sub else []
        parts += [self._config.decode] if self._config.decode != "all" and codec != "mjpeg" else []
        parts += ["JPEG decoded as small as the models allow"] if self._is_jpeg else []
        self.decoder, self.refused = ", ".join(parts), self._choice.refused


def _codec_of(fourcc: Any) -> str:
    name = int(fourcc).to_bytes(4, "little", signed=False).decode("latin-1") if 0 < fourcc < 2**32 else "?"
    return _CODECS.get(name, name.strip("\0 ").lower() or "?")
