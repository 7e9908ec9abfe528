"""Which folder each line is served from: the active slot, found anew when its pointer changes, or a folder of the user's own."""

from collections.abc import Callable
from pathlib import Path

from agent.serving.messages import Task
from agent.serving.models import Shelf, read_key
from agent.slots import POINTER, POINTER_PREV, Slots
from protocol.errors import InvalidError, MooringError
from protocol.ids import LineName
from runtime.loader import MANIFEST_NAME

#: Seconds of system time after which a line that does not load is tried again although nothing changed.
RETRY_S = 60.0
MAX_LINES = 64

#: Lines with their folders now, None where a line has no active release; and a mark that changes when that may.
Folders = Callable[[], dict[str, tuple[Path | None, object]]]


class Follower:
    """Brings a shelf up to date; looks at a line only when its mark changed, or once in a while when it does not load."""

    def __init__(self, folders: Folders, *, lines: tuple[str, ...]) -> None:
        self._folders, self._lines = folders, lines
        self._seen: dict[str, object] = {}
        self._retry_s: dict[str, float] = {}

    def follow(self, shelf: Shelf, now_s: float) -> bool:
        """Load what is active now and was not; returns whether anything was tried. `now_s`: seconds of a clock that never falls."""
        found, is_changed = self._folders(), False
        for line in self._lines or sorted({*found, *shelf.entries()}):
            folder, mark = found.get(line, (None, None))
            is_settled = line in self._seen and self._seen[line] == mark
            if is_settled and now_s < self._retry_s.get(line, float("inf")):
                continue
            self._seen[line], is_changed = mark, True
            if folder is None:
                shelf.take_away(line, f"The line {line} has no active release.")
            else:
                shelf.put(line, folder)
            entry = shelf.entry(line)
            is_failing = folder is not None and (entry is None or entry.model is None)
            self._retry_s[line] = now_s + RETRY_S if is_failing else float("inf")
        return is_changed


def find_folders(task: Task) -> Folders:
    """Where the task's models lie."""
    if task.model_dir is not None:
        return _fixed(task.model_dir)
    if task.slots_dir is None:
        raise InvalidError("Neither slots nor a folder with models was named.")
    return _active_slots(task.slots_dir)


def _active_slots(root: Path) -> Folders:
    slots = Slots(root)
    known: dict[str, tuple[Path | None, object]] = {}

    def folders() -> dict[str, tuple[Path | None, object]]:
        for line in slots.lines()[:MAX_LINES]:
            mark = _mark(root / line)
            if line not in known or known[line][1] != mark:
                active = slots.active(LineName(line))
                known[line] = (None if active is None else active.folder, mark)
        return dict(known)

    return folders


def _mark(folder: Path) -> object:
    """Changes whenever a pointer file is replaced: each replacement is a new inode or a new time."""
    marks: list[tuple[int, int] | None] = []
    for name in (POINTER, POINTER_PREV):
        try:
            found = (folder / name).stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((found.st_ino, found.st_mtime_ns))
    return tuple(marks)


def _fixed(root: Path) -> Folders:
    """The folder itself, or those below it, by the line that each manifest names. Raises: InvalidError."""
    folders = [root] if (root / MANIFEST_NAME).is_file() else sorted(path.parent for path in root.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise InvalidError(f"{root} has no {MANIFEST_NAME}, and no folder with one.", hint="Name the folder of a released model.")
    found: dict[str, tuple[Path | None, object]] = {}
    for folder in folders[:MAX_LINES]:
        try:
            line = read_key(folder)[1].line
        except (MooringError, OSError) as error:
            raise InvalidError(f"{folder / MANIFEST_NAME} cannot be used: {error}") from None
        if line in found:
            raise InvalidError(f"{folder} and {found[line][0]} hold models of one line, {line}.", hint="Keep one of them there.")
        found[line] = (folder, 0)
    return lambda: found
