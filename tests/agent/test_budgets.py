"""A day's account: it survives restarts, rolls over with the day, and says when to be frugal."""

import socket
import threading
from datetime import UTC, datetime

import httpx
import pytest
from simulators.clock import FakeClock
from waiting import wait_until

from agent.budgets import KEEP_S, STRETCHES, Budgets, Level, Spent, level_of, parse_spent
from agent.conditions import Conditions
from agent.config import BudgetConfig, TelemetryConfig
from agent.duties.measuring import Measuring, Sources
from agent.store import Store
from agent.traffic import Meter, Traffic

MB = 2**20


class Device:
    """What outlives the process: the store and the clock."""

    def __init__(self, **limits: float) -> None:
        self.kept: dict[str, str] = {}
        self.saves = 0
        self.clock = FakeClock(datetime(2026, 11, 1, 12, tzinfo=UTC))
        self.limits = BudgetConfig.model_validate(limits)

    def start(self) -> Budgets:
        return Budgets(load=self.kept.get, save=self._save, clock=self.clock, limits=self.limits)

    def _save(self, name: str, value: str) -> None:
        self.saves += 1
        self.kept[name] = value


def observe(budgets: Budgets, *, sent: int = 0, received: int = 0, written: int | None = 0, is_time_known: bool = True) -> Budgets:
    budgets.observe(sent=sent, received=received, written=written, is_time_known=is_time_known)
    return budgets


def test_totals_become_the_days_use():
    budgets = observe(Device().start(), sent=10, received=20, written=5)
    observe(budgets, sent=15, received=20, written=9)
    assert budgets.today == Spent("2026-11-01", sent=15, received=20, written=9)


def test_a_restart_goes_on_with_the_day():
    device = Device()
    first = observe(device.start(), sent=10, written=7)
    first.keep()
    assert observe(device.start(), sent=3, written=2).today == Spent("2026-11-01", sent=13, written=9)


def test_a_new_day_begins_with_nothing():
    device = Device()
    budgets = observe(device.start(), sent=10, written=7)
    device.clock.advance(days=1)
    assert observe(budgets, sent=12, written=8).today == Spent("2026-11-02", sent=2, written=1)
    assert parse_spent(device.kept["budget.day"]).day == "2026-11-02"


def test_a_clock_that_is_known_to_be_wrong_begins_no_day():
    device = Device()
    observe(device.start(), sent=10).keep()
    device.clock = FakeClock(datetime(1970, 1, 1, tzinfo=UTC))
    budgets = observe(device.start(), sent=5, is_time_known=False)
    assert budgets.today == Spent("2026-11-01", sent=15)
    assert observe(budgets, sent=5).today == Spent("1970-01-01")  # once it counts as right, it decides


def test_figures_are_kept_every_few_minutes_only():
    device = Device()
    budgets = observe(device.start())
    for count in range(100):
        device.clock.advance(KEEP_S / 50)
        observe(budgets, sent=count)
    assert 2 <= device.saves <= 4


def test_totals_that_fall_for_a_moment_are_not_counted_twice():
    budgets = observe(Device().start(), written=100)
    observe(budgets, written=40)  # a child ended and was not waited for yet
    observe(budgets, written=None)  # /proc could not be read
    assert observe(budgets, written=101).today.written == 101


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"day": 3}', '{"sent": -1}', '{"sent": 1.5}', '{"sent": true}', '{"other": 1}'])
def test_figures_that_cannot_be_read_are_none(text):
    assert parse_spent(text) == Spent()


@pytest.mark.parametrize(
    ("used", "limit", "level"),
    [(10**12, 0, Level.FREE), (79, 100, Level.FREE), (80, 100, Level.NEAR), (99, 100, Level.NEAR), (100, 100, Level.SPENT)],
)
def test_levels(used, limit, level):
    assert level_of(used, limit) is level


@pytest.mark.parametrize(
    ("sent", "written", "stretch", "held", "is_frugal", "conditions"),
    [
        (0, 0, STRETCHES[0], set(), False, []),
        (800, 0, STRETCHES[1], set(), True, ["budget_bytes"]),
        (1000, 0, STRETCHES[1], {"tel"}, True, ["budget_bytes"]),
        (0, 0.81, STRETCHES[1], set(), False, ["budget_writes"]),
        (0, 1.0, STRETCHES[2], set(), False, ["budget_writes"]),
        (1000, 1.0, STRETCHES[2], {"tel"}, True, ["budget_bytes", "budget_writes"]),
    ],
)
def test_what_runs_short_makes_the_device_frugal(sent, written, stretch, held, is_frugal, conditions):
    budgets = observe(Device(bytes_per_day=1000, writes_per_day_mb=1).start(), sent=sent, written=int(written * MB))
    assert (budgets.stretch, budgets.held_streams, budgets.is_frugal) == (stretch, held, is_frugal)
    assert [code for code, _, _ in budgets.findings()] == conditions


def test_a_limit_that_is_raised_frees_at_once():
    budgets = observe(Device(bytes_per_day=1000).start(), sent=1000)
    budgets.limits = BudgetConfig(bytes_per_day=10_000)
    assert (budgets.held_streams, budgets.findings()) == (frozenset(), [])


# --- bytes of connections ---


def test_a_meter_counts_what_a_connection_carried_also_after_its_end():
    traffic = Traffic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        meter = Meter(traffic, ours.fileno())
        ours.sendall(bytes(1000))
        assert len(theirs.recv(1000, socket.MSG_WAITALL)) == 1000
        theirs.sendall(bytes(300))
        assert len(ours.recv(300, socket.MSG_WAITALL)) == 300
        wait_until(lambda: meter.look() or traffic.totals() == (1000, 300), what="the counts")
        ours.close()
        theirs.close()
        meter.close()
        meter.close()
    sent, received = traffic.totals()
    assert (sent, received - 300 in (0, 1)) == (1000, True)  # the kernel counts the other's end as a byte


def test_an_http_clients_connections_are_counted():
    traffic, body = Traffic(), bytes(5000)

    def answer(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as lines:
            while line := lines.readline():
                if line == b"\r\n":
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(trust_env=False) as client, traffic.counting(client):
            for _ in range(3):
                assert client.get(url).content == body
        thread.join()
    sent, received = traffic.totals()
    assert 15_000 < received < 15_400
    assert 150 < sent < 1500


def test_what_is_no_tcp_connection_counts_nothing():
    traffic = Traffic()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        meter = Meter(traffic, ours.fileno())
        ours.sendall(b"x")
        meter.close()
    Meter(traffic, 999_999).close()
    assert traffic.totals() == (0, 0)


def test_after_a_restart_figures_and_a_spent_budget_are_known_as_soon_as_windows_usually_end(tmp_path):
    device, asked = Device(writes_per_day_mb=1), []
    observe(device.start(), written=2 * MB).keep()
    clock, conditions, telemetry = device.clock, Conditions(device.clock), TelemetryConfig()
    sources = Sources(pipelines=lambda: asked.append(clock.monotonic()) or [], served=list, ring_dropped=int, lost_predictions=int)
    with Store(tmp_path / "outbox.db", clock=clock) as store:
        measuring = Measuring(sources, store=store, conditions=conditions, budgets=device.start(), traffic=Traffic(), clock=clock)
        clock.advance(max(telemetry.perf_s, telemetry.sys_s))
        rows = measuring.tick(telemetry, tmp_path)
        assert [row.stream for row in rows] == ["tel"]
        assert len(asked) == 1
        assert [one.code for one in conditions.active()] == ["budget_writes"]
        clock.advance(2 * telemetry.sys_s)
        assert measuring.tick(telemetry, tmp_path) == []  # from then on windows are as much longer as the budget wants
        clock.advance(STRETCHES[Level.SPENT] * telemetry.sys_s)
        assert len(measuring.tick(telemetry, tmp_path)) == 1
        assert len(asked) == 2
