"""News of the lines, from the update machines: what ended badly is a condition, and all but progress is reported, signed."""

from collections.abc import Callable

from agent.conditions import Conditions
from agent.reporting import CANDIDATE
from protocol.ids import LineName
from protocol.messages import LineState

#: States of an update that ended without success.
_BAD_ENDS = frozenset({"failed", "rolled_back", "inconsistent"})


class LineNews:
    """`changed` is called on the update thread and `candidate_changed` on that of the candidates; `take` by the control loop."""

    def __init__(self, conditions: Conditions, request_report: Callable[[str], None]) -> None:
        """`request_report`: of the line, or of the candidate beside it, as `agent.reporting.Reporter` names them."""
        self._conditions, self._request_report = conditions, request_report
        self._changed = set[LineName]()
        self._reported: dict[str, LineState] = {}

    def take(self) -> bool:
        """Whether a line changed since this was asked before."""
        changed, self._changed = self._changed, set()
        return bool(changed)

    def changed(self, line: LineName, state: LineState) -> None:
        """What the line has or gets is another."""
        self._changed.add(line)
        self._report(line, state)
        text, found = f"{state.desired}: {state.reason}: {state.text}", []
        if state.state in _BAD_ENDS:
            found = [("update_failed", text[:2000], str(line))]
        elif state.reason == "full_download_refused":
            found = [("full_download_refused", state.text, str(line))]
        self._conditions.replace(f"line {line}", found)

    def candidate_changed(self, line: LineName, state: LineState) -> None:
        """What is beside the line's release is another."""
        self._report(f"{CANDIDATE}{line}", state)

    def _report(self, key: str, state: LineState) -> None:
        told = state.model_copy(update={"progress": 0})
        if self._reported.get(key) != told:
            self._reported[key] = told
            self._request_report(key)
