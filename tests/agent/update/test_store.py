"""The tables of updates in the agent's one file."""

from datetime import UTC, datetime, timedelta

from agent.store import Store
from agent.update.store import BlockedRow, UpdateRow, UpdateStepRow, UpdateStore
from protocol.clock import SystemClock

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_what_updates_remember_survives_a_restart(tmp_path):
    row = UpdateRow("u-1", "digits", "1.1", 2, "a-1", 1, "downloading", 3, "a", "", "", "{}", NOW)
    blocked = BlockedRow("digits", "1.2", 1, "self_test_failed", "3 of 8", NOW, ("sha256:" + "0" * 64,))
    with Store(tmp_path / "outbox.db", clock=SystemClock()) as file:
        store = UpdateStore(file)
        assert store.load_update("digits") is None
        store.save_update(row)
        for index in range(205):
            step = UpdateStepRow("u-1", "digits", "1.1", f"s{index}", NOW + timedelta(seconds=index))
            store.add_step(step)
        store.block(blocked)
    with Store(tmp_path / "outbox.db", clock=SystemClock()) as file:
        store = UpdateStore(file)
        assert store.load_update("digits") == row
        assert store.list_updates() == [row]
        assert store.list_steps("digits", 2) == [
            UpdateStepRow("u-1", "digits", "1.1", f"s{i}", NOW + timedelta(seconds=i)) for i in (203, 204)
        ]
        assert len(store.list_steps("digits", 1000)) == 200
        assert store.list_blocked() == [blocked]
        store.unblock("digits", "1.2")
        assert store.list_blocked() == []
