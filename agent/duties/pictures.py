"""Pictures of pipelines that allow previews: shown to whoever asks, told to the server, kept nowhere."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from agent.database.outbox import Draft
from agent.events.bodies import event_body
from agent.inference.snapshots import Snapshots
from protocol.errors import InvalidError
from protocol.snapshots import SnapshotRequest

log = logging.getLogger("mooring.service")

#: Type of the event that tells that somebody looked.
PREVIEW_TAKEN = "mooring.preview.taken.v1"


class Pictures:
    """Asked for on the threads of the control socket and of the uplink."""

    def __init__(self, snapshots: Snapshots, *, source: str, keep: Callable[[Sequence[Draft]], None]) -> None:
        """`source`: of events about this device. `keep`: stores rows."""
        self._snapshots, self._source, self._keep = snapshots, source, keep

    def take(self, pipeline: str, *, by_server: bool = False) -> dict[str, Any]:
        """A picture of the pipeline's next frame. Raises: MooringError when it allows none, or none comes."""
        taken = self._snapshots.take(str(pipeline), with_zones=not by_server)  # the console draws them itself
        asked_by, size = "the server" if by_server else "somebody at the device", len(taken.picture())
        log.info("preview.taken pipeline=%s asked_by=%s bytes=%d", pipeline, asked_by, size)
        data = {"pipeline": pipeline, "asked_by": asked_by, "bytes": size}
        self._keep([Draft("event", (), event_body(PREVIEW_TAKEN, source=self._source, data=data, subject=pipeline))])
        return taken.model_dump(mode="json")

    def take_for_server(self, args: dict[str, Any]) -> dict[str, Any]:
        """As `take`, asked for by the server's command. Raises: also InvalidError."""
        try:
            request = SnapshotRequest.model_validate(args)
        except ValidationError as error:
            raise InvalidError(f"The request names no pipeline: {error.errors(include_url=False)[0]['msg']}.") from None
        return self.take(request.pipeline, by_server=True)
