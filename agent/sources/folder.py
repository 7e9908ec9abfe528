"""A folder of pictures as a source: in the order of their names, at a fixed pace, once or again and again."""

import threading
from collections.abc import Mapping
from pathlib import Path

from agent.orders import FolderSource
from agent.sources.base import Array, Grabbed, Need, SourceEndedError, SourceLostError
from agent.sources.opencv import Pace, read_picture
from agent.sources.states import Channel
from protocol.clock import Clock

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")
#: A folder with more pictures than this is a mistake; the rest is not shown.
MAX_PICTURES = 1_000_000


def pictures_in(folder: Path) -> list[Path]:
    """What in the folder is named as a picture, by name; at least one. Raises: SourceLostError when it is missing or holds none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise SourceLostError(f"Folder {folder} cannot be listed: {error.strerror}.", hint="Check `path` of the source.") from None
    if not found:
        raise SourceLostError(f"Folder {folder} holds no picture.", hint=f"Wanted files that end with {', '.join(SUFFIXES)}.")
    return found


class PictureFolder:
    """Pictures by name; the list is read when the folder is opened, so that a loop sees new ones."""

    def __init__(self, config: FolderSource, *, clock: Clock) -> None:
        self.repeats = config.loop
        self.text = self.decoder = self.refused = ""
        self._folder = Path(config.path)
        self._interval_s = 1.0 / config.fps
        self._pace = Pace(clock)
        self._paths: list[Path] = []
        self._index = -1
        self._media_s = 0.0

    def suits(self, need: Need | None) -> bool:  # noqa: ARG002 - pictures are as large as they are
        """Whatever the models need."""
        return True

    def open(self) -> None:
        """List the folder. Raises: SourceLostError when it is missing or holds no picture."""
        self._paths, self._index = pictures_in(self._folder)[:MAX_PICTURES], -1

    def grab(self, stop: threading.Event) -> Grabbed | None:
        """The next picture when it is due. Raises: SourceEndedError after the last."""
        if self._index + 1 >= len(self._paths):
            raise SourceEndedError(f"Folder {self._folder} ended after {len(self._paths)} pictures.")
        if not self._pace.wait(self._interval_s, stop):
            return None
        self._index += 1
        self._media_s += self._interval_s
        return Grabbed(self._media_s)

    def retrieve(self, into: Array) -> Array:  # noqa: ARG002 - pictures differ in size, so each comes in its own array
        """The picture, read now. Raises: DecodeError naming the file; the next one may be fine."""
        return read_picture(self._paths[self._index])

    def close(self) -> None:
        """Forget the list."""
        self._paths = []

    def take_channels(self) -> Mapping[str, Channel]:
        """Pictures have none."""
        return {}
