"""What the control process says about itself: state topics when they change, its status to whoever asks, a line for systemd."""

import threading
from dataclasses import asdict
from typing import Any

from agent.database.outbox import Draft
from agent.identity import describe_hardware
from agent.reporting import info_body, model_body, reported_body
from agent.wiring import Parts


class Telling:
    """`tick` is called by the control loop; the rest from any thread."""

    def __init__(self, parts: Parts, configuring: threading.RLock) -> None:
        """`configuring`: held while what is in force becomes another."""
        self._parts, self._configuring = parts, configuring
        self._started, self._hardware = parts.clock.monotonic(), describe_hardware()
        self._told_conditions, self._told_drift = -1, -1
        self._told_info = dict[str, Any]()

    def tell_settings(self) -> None:
        """What is in force is another, or the link is to be proved: `reported` is due."""
        self._told_conditions = -1

    def tick(self) -> list[Draft]:
        """The rows of the states that changed; the newest of each is all that counts."""
        parts, drafts = self._parts, list[Draft]()
        if parts.line_news.take():
            drafts.append(Draft("model", (), model_body(parts.machine)))
        if parts.conditions.revision != self._told_conditions:
            self._told_conditions = parts.conditions.revision
            drafts.append(Draft("reported", (), self._reported()))
        if parts.drift.revision != self._told_drift:
            self._told_drift = parts.drift.revision
            drafts.append(Draft("drift", (), parts.drift.body()))
        if (info := self._info()) != self._told_info:
            self._told_info = info
            drafts.append(Draft("info", (), info))
        return drafts

    def status(self) -> dict[str, Any]:
        """What `mooring-agent status` shows."""
        parts, joined = self._parts, self._parts.joined
        return {
            "device": joined.identity.device if joined else None,
            "tenant": joined.identity.tenant if joined else None,
            "version": parts.version,
            "uptime_s": round(parts.clock.monotonic() - self._started, 1),
            "connected": bool(joined and joined.uplink.is_connected),
            "inference": parts.inference.state.value,
            "desired_rev": parts.twin.in_force.rev,
            "configuration": self._configuration(),
            "pipelines": [asdict(one) for one in parts.measuring.stats],
            "lines": [parts.machine.state_of(line).model_dump() for line in parts.machine.lines()],
            "slots": [slot.model_dump() for slot in (*parts.machine.slot_reports(), *parts.candidates.slot_reports())],
            "candidates": parts.candidates.rows(),
            "conditions": parts.condition_rows(),
            "serving": self._serving(),
            "drift": parts.drift.figures(),
            "budget": parts.budgets.figures(),
            "outbox": self.outbox(),
            "reports_sent": joined.reporter.sent if joined else 0,
        }

    def outbox(self) -> dict[str, Any]:
        """What `mooring-agent outbox` shows."""
        store = self._parts.store
        return {"epoch": store.epoch, "ring_dropped": self._parts.ring_dropped(), **asdict(store.counts())}

    def in_words(self) -> str:
        """How it goes, in a line."""
        parts, active = self._parts, self._parts.conditions.active()
        link = "connected" if parts.joined and parts.joined.uplink.is_connected else "not connected"
        wrong = f"; {active[0].code}: {active[0].text[:80]}" if active else ""
        return f"{len(parts.twin.in_force.config.pipelines)} pipelines, inference {parts.inference.state.value}, {link}{wrong}"

    def _reported(self) -> dict[str, Any]:
        told, signed = self._parts.twin.in_force, self._configuration()
        active = self._parts.conditions.active()
        return reported_body(desired_rev=told.rev, config=told.config, errors=told.errors, conditions=active, configuration=signed)

    def _configuration(self) -> dict[str, Any] | None:
        """None: the device is not enrolled."""
        joined = self._parts.joined
        if joined is None:
            return None
        with self._configuring:
            return joined.trials.body()

    def _serving(self) -> dict[str, Any] | None:
        """None: nothing is to be served."""
        serving = self._parts.serving
        if serving is None:
            return None
        lines = [
            {"line": one.line, "release": one.release, "text": one.text, **one.counts(), "lat_ms_p99": one.percentile_ms(0.99)}
            for one in serving.totals()
        ]
        return {"address": serving.address, "lines": lines}

    def _info(self) -> dict[str, Any]:
        parts = self._parts
        return info_body(
            device_type=parts.device_type or "unknown",
            hardware=self._hardware,
            agent_version=parts.version,
            runtimes=parts.runtimes.found or [],
            stats=parts.measuring.stats,
        )
