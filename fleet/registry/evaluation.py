"""Evaluation data as somebody brings it: an .npz file, or a packed folder of pictures with labels.csv; read with every size bounded.

frames   uint8 [n, height, width] gray or [n, height, width, 3] RGB;   or   windows   float [n, readings, fields]
labels   optional: whole numbers (places in the manifest's labels) or the labels themselves, [n]
places   optional: where each one is from: a camera, a yard, whole numbers or texts, [n]
"""

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from protocol.errors import InvalidError
from runtime.base import Array
from runtime.manifest import ClassificationManifest, ModelManifest
from runtime.preprocess import decode_picture

#: Frames or windows: fewer tell too little for 32 bins, more tell nothing new.
MIN_ROWS, MAX_ROWS = 128, 5000
#: Of the file, of all its content unpacked, and of one picture of a folder.
MAX_FILE_BYTES, MAX_CONTENT_BYTES, MAX_PICTURE_BYTES = 512 << 20, 1 << 30, 32 << 20
#: Places or devices that the data are from: more would say little each.
MAX_PLACES = 40
LABELS_FILE = "labels.csv"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_MAX_LABELS_BYTES = 4 << 20
_MAX_ENTRIES = 2 * MAX_ROWS
_MAX_PLACE_NAME, _MAX_DIGITS = 63, 9
_HINT = "Bring more of what the device will see; how: docs/drift.md."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Frames (uint8, height x width x 3 in BGR, or height x width) or windows (float32, readings x fields), one after the other."""

    count: int
    items: Iterator[Array]
    #: Places in the manifest's labels; None: not labelled.
    truth: tuple[int, ...] | None
    #: Which place or device each one is from; None: not said.
    places: tuple[str, ...] | None = None


@contextmanager
def open_evaluation(path: Path, manifest: ModelManifest) -> Iterator[Evaluation]:
    """The data in the file, for as long as the block runs; items can be gone through once.

    Raises: InvalidError naming what was seen, what was wanted and what to do, also while going through the items.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise InvalidError(
            "The evaluation data are neither an .npz file nor a packed folder.",
            hint="Wanted numpy.savez(…, frames=…) or a folder of pictures.",
        ) from None
    with archive:
        _check_content(archive)
        names = set(archive.namelist())
        if any(name.endswith(".npy") for name in names) and not any(name.lower().endswith(PICTURE_SUFFIXES) for name in names):
            yield _of_arrays(archive, names, manifest)
        else:
            yield _of_pictures(archive, manifest)


def pack_folder(folder: Path, target: IO[bytes]) -> int:
    """Write the folder's pictures and labels.csv as one archive; returns how many pictures. Raises: InvalidError; OSError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES)
    if not MIN_ROWS <= len(files) <= MAX_ROWS:
        raise _wrong_count(len(files), f"pictures ({', '.join(PICTURE_SUFFIXES)}) in {folder}")
    labels = folder / LABELS_FILE
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in (*files, *([labels] if labels.is_file() else [])):
            archive.write(path, path.relative_to(folder).as_posix())
    return len(files)


def _check_content(archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > _MAX_ENTRIES or total > MAX_CONTENT_BYTES:
        raise InvalidError(
            f"The evaluation data hold {len(entries)} files of {total} bytes; at most {_MAX_ENTRIES} of {MAX_CONTENT_BYTES} are looked at.",
            hint="Take a part of it, or smaller pictures.",
        )


# --- arrays ---


def _of_arrays(archive: zipfile.ZipFile, names: set[str], manifest: ModelManifest) -> Evaluation:
    wanted = "frames" if manifest.preprocess is not None else "windows"
    if f"{wanted}.npy" not in names:
        raise InvalidError(
            f"The evaluation data have {', '.join(sorted(names))[:200]}; this model takes {wanted}: wanted an array of that name.",
            hint=f"Write numpy.savez(FILE, {wanted}=…, labels=…); how: docs/drift.md.",
        )
    array = _array(archive, wanted)
    if not MIN_ROWS <= len(array) <= MAX_ROWS:
        raise _wrong_count(len(array), wanted)
    truth = _truth(_array(archive, "labels").tolist(), len(array), manifest) if "labels.npy" in names else None
    places = _places(_array(archive, "places").tolist(), len(array)) if "places.npy" in names else None
    if wanted == "windows":
        return Evaluation(len(array), iter(_checked_windows(array, manifest)), truth, places)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or 0 in array.shape:
        raise InvalidError(
            f"frames is {array.dtype.name}{list(array.shape)}; wanted uint8 [n, height, width] or [n, height, width, 3] in RGB."
        )
    if array.ndim == 4:
        array = array[:, :, :, 0] if array.shape[3] == 1 else array[:, :, :, ::-1]
    return Evaluation(len(array), (np.ascontiguousarray(frame) for frame in array), truth, places)


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    try:
        with archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise InvalidError(f"The array {name} cannot be read: {str(error)[:200]}.", hint="Write it with numpy.savez again.") from None
    if array.ndim == 0:
        raise InvalidError(f"{name} is a single value; wanted one entry per frame or window.")
    return np.asarray(array)


def _checked_windows(array: Array, manifest: ModelManifest) -> Array:
    window = manifest.window
    if window is None:
        raise RuntimeError("a manifest has preprocess or window")
    shape = (window.length, len(window.fields))
    if array.dtype.kind != "f" or array.shape[1:] != shape:
        raise InvalidError(
            f"windows is {array.dtype.name}{list(array.shape)}; wanted floats [n, {shape[0]}, {shape[1]}]: "
            f"readings of {', '.join(window.fields)}."
        )
    return array.astype(np.float32)


# --- pictures ---


def _of_pictures(archive: zipfile.ZipFile, manifest: ModelManifest) -> Evaluation:
    if manifest.preprocess is None:
        raise InvalidError("The evaluation data are pictures; this model takes windows of readings: wanted an .npz file with windows.")
    names = sorted(name for name in archive.namelist() if name.lower().endswith(PICTURE_SUFFIXES))
    if not MIN_ROWS <= len(names) <= MAX_ROWS:
        raise _wrong_count(len(names), f"pictures ({', '.join(PICTURE_SUFFIXES)})")
    truth = places = None
    if LABELS_FILE in archive.namelist():
        labels = _labels_of(archive)
        lacking = [name for name in names if name not in labels]
        if lacking:
            raise InvalidError(
                f"{LABELS_FILE} has no line for {lacking[0][:120]!r} and {len(lacking) - 1} others.",
                hint=f"Wanted a line 'file,label' for each of the {len(names)} pictures, or no {LABELS_FILE}.",
            )
        truth = _truth([labels[name][0] for name in names], len(names), manifest)
        said = [labels[name][1] for name in names]
        places = _places(said, len(names)) if any(said) else None
    return Evaluation(len(names), (_picture(archive, name) for name in names), truth, places)


def _labels_of(archive: zipfile.ZipFile) -> dict[str, tuple[str, str]]:
    """Label and place ("": not said) of each file."""
    if archive.getinfo(LABELS_FILE).file_size > _MAX_LABELS_BYTES:
        raise InvalidError(f"{LABELS_FILE} has more than {_MAX_LABELS_BYTES} bytes.")
    text = archive.read(LABELS_FILE).decode("utf-8-sig", errors="replace")
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:
        raise InvalidError(f"{LABELS_FILE} is no table: {str(error)[:120]}.", hint="Wanted lines 'file,label'.") from None
    if any(len(row) < 2 for row in rows):
        raise InvalidError(f"{LABELS_FILE} has a line with one field; wanted 'file,label', or 'file,label,place'.")
    return {row[0].strip(): (row[1].strip(), row[2].strip() if len(row) > 2 else "") for row in rows}


def _picture(archive: zipfile.ZipFile, name: str) -> Array:
    if archive.getinfo(name).file_size > MAX_PICTURE_BYTES:
        raise InvalidError(f"Picture {name[:120]!r} has more than {MAX_PICTURE_BYTES} bytes.", hint="Bring it smaller.")
    try:
        data = archive.read(name)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise InvalidError(f"Picture {name[:120]!r} cannot be unpacked: {str(error)[:120]}.") from None
    return decode_picture(data, what=f"Picture {name[:120]!r}")


# --- labels ---


def _truth(values: Sequence[Any], count: int, manifest: ModelManifest) -> tuple[int, ...] | None:
    if len(values) != count:
        raise InvalidError(f"There are {len(values)} labels for {count} frames or windows; wanted one each.")
    if not isinstance(manifest, ClassificationManifest):
        return None  # what right means is known of classes only (DRIFT 6)
    known = {label: index for index, label in enumerate(manifest.postprocess.labels)}
    return tuple(_place(value, known) for value in values)


def _place(value: Any, known: dict[str, int]) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(known):
            return value
        raise InvalidError(f"Label {value} is no place among the manifest's {len(known)} labels; wanted 0 to {len(known) - 1}.")
    if isinstance(value, str) and value in known:
        return known[value]
    # a table has no numbers, only texts: one is a place where no label is itself a number
    if isinstance(value, str) and value.isdecimal() and len(value) <= _MAX_DIGITS and not any(label.isdecimal() for label in known):
        return _place(int(value), known)
    raise InvalidError(
        f"Label {str(value)[:80]!r} is not among the manifest's labels.",
        hint=f"Wanted one of {', '.join(list(known)[:20])}, or its place as a whole number from 0.",
    )


def _places(values: Sequence[Any], count: int) -> tuple[str, ...]:
    """Names of the places or devices. Raises: InvalidError."""
    if len(values) != count:
        raise InvalidError(f"There are {len(values)} places for {count} frames or windows; wanted one each.")
    names = tuple(str(value) if isinstance(value, int) else value for value in values)
    wrong = next((name for name in names if not isinstance(name, str) or not 1 <= len(name) <= _MAX_PLACE_NAME), None)
    if wrong is not None:
        raise InvalidError(f"Place {str(wrong)[:80]!r}; wanted a whole number, or a name of 1 to {_MAX_PLACE_NAME} characters, for each.")
    if len(set(names)) > MAX_PLACES:
        raise InvalidError(
            f"There are {len(set(names))} places; wanted at most {MAX_PLACES}.", hint="Give places that look alike one name."
        )
    return names


def _wrong_count(count: int, what: str) -> InvalidError:
    return InvalidError(
        f"There are {count} {what}; wanted {MIN_ROWS} to {MAX_ROWS}.",
        code="too-little-data" if count < MIN_ROWS else None,
        hint=_HINT if count < MIN_ROWS else "Take a part of them.",
    )
