"""What control and serving process say to each other: JSON, a line each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.config import RuntimeConfig, ServingConfig
from agent.serving.figures import Totals
from protocol.errors import InvalidError

#: A line beyond this is none of ours: 64 lines with their histograms take some 40 KiB.
MAX_LINE_BYTES = 1 << 20


class Task(BaseModel):
    """What a serving process is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    serving: ServingConfig
    runtime: RuntimeConfig
    #: Slots that the update machine keeps; None: `model_dir` is served.
    slots_dir: Path | None = None
    #: A folder with a manifest.json, or one whose folders have one each.
    model_dir: Path | None = None
    #: Where it is remembered what crashed with which model.
    records_dir: Path | None = None
    version: Annotated[str, Field(max_length=200)] = ""

    def to_line(self) -> bytes:
        """The line that `from_line` reads."""
        return self.model_dump_json().encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> "Task":
        """The task in the line. Raises: InvalidError."""
        try:
            return Task.model_validate_json(line)
        except ValidationError as error:
            raise InvalidError(f"The serving process was told {line[:100]!r}: {error}") from None


@dataclass(frozen=True, slots=True)
class Beat:
    """How a serving process is."""

    lines: tuple[Totals, ...]
    #: Seconds that the longest running inference has taken so far.
    busy_s: float
    #: Where it listens.
    address: str


_BEAT = TypeAdapter(Beat)


def parse_said(line: bytes) -> Beat | str:
    """The beat in a line of the serving process, or the error that ended it, in words. Raises: InvalidError."""
    try:
        document = json.loads(line)
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            return str(document["error"])
        return _BEAT.validate_python(document)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"The serving process said {line[:100]!r}: {error}") from None
