"""What Linux says about a process."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether the process lives; one that ended and was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def has_open(pid: int, path: Path) -> bool:
    """Whether the process holds the file open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink() == path:
                return True
        except FileNotFoundError:
            continue
    return False


def session_members(session: int) -> set[int]:
    """Ids of the living processes of a session (setsid); those that ended and were not waited for do not live."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.add(int(folder.name))
    return found
