"""Commands with an answer, over a real broker: the right answer or a reason, one at a time."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from fleet.broker import CALLER, client_tls
from fleet.bus import Bus, BusOptions, Subscription
from fleet.db import Database
from fleet.devices.calls import DeviceCalls
from protocol.clock import SystemClock, to_unix_ms
from protocol.errors import ConflictError, UnavailableError
from protocol.ids import DEFAULT_TENANT, DeviceId
from protocol.messages import RpcRequest

CAM = DeviceId("cam-1")
Answer = Callable[[RpcRequest], list[dict[str, Any] | bytes]]


@pytest.fixture
def open_bus(broker, authority) -> Iterator[Callable[..., Bus]]:
    opened: list[Bus] = []

    def connect(principal: str, subscriptions: tuple[Subscription, ...]) -> Bus:
        tls = client_tls(authority.issue(principal))
        opened.append(Bus(BusOptions(f"mqtts://localhost:{broker.port}", principal, tls, subscriptions)))
        opened[-1].start()
        return opened[-1]

    yield connect
    for bus in opened:
        bus.stop()


@pytest.fixture
def answering(open_bus) -> Iterator[Callable[[Answer], list[RpcRequest]]]:
    """Lets cam-1 answer each command with these replies; gives the commands that it heard."""
    over, threads = threading.Event(), list[threading.Thread]()

    def start(answer: Answer) -> list[RpcRequest]:
        heard: list[RpcRequest] = []
        bus = open_bus(CAM, (Subscription(f"mooring/1/t0/c/{CAM}/#"),))
        assert bus.wait_connected(PATIENCE_S)

        def work() -> None:
            while not over.is_set():
                for message in bus.inbox.take(1, wait_s=0.1, gather_s=0.0):
                    bus.acknowledge([message])
                    assert message.topic == f"mooring/1/t0/c/{CAM}/rpc/snapshot"
                    heard.append(RpcRequest.model_validate_json(message.payload))
                    for reply in answer(heard[-1]):
                        body = (
                            reply
                            if isinstance(reply, bytes)
                            else json.dumps({"v": 1, "ts": 1, "boot": "b", "epoch": "e", **reply}).encode()
                        )
                        bus.publish_and_wait(f"mooring/1/t0/d/{CAM}/rpc-reply", body, timeout_s=PATIENCE_S)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return heard

    yield start
    over.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def lock_file(tmp_path: Path) -> Iterator[Database]:
    """A database that is only asked who may."""
    made = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield made
    made.dispose()


@pytest.fixture
def calls(lock_file, open_bus) -> Callable[..., DeviceCalls]:
    def make(answer_s: float = PATIENCE_S) -> DeviceCalls:
        return DeviceCalls(
            lock_file,
            connect=lambda subscriptions: open_bus(CALLER, subscriptions),
            clock=SystemClock(),
            connect_s=PATIENCE_S,
            answer_s=answer_s,
        )

    return make


pytestmark = pytest.mark.needs_broker


def test_the_answer_to_ones_own_question_comes_back_and_others_are_passed_over(calls, answering):
    def answer(request: RpcRequest) -> list[dict[str, Any] | bytes]:
        return [b"no json", {"id": "late", "ok": True, "result": {"n": 1}}, {"id": request.id, "ok": True, "result": {"n": 2}}]

    heard = answering(answer)
    before_ms = to_unix_ms(SystemClock().now())
    caller = calls()
    assert caller.call(DEFAULT_TENANT, CAM, "snapshot", {"pipeline": "front"}) == {"n": 2}
    assert caller.call(DEFAULT_TENANT, CAM, "snapshot", {}) == {"n": 2}
    assert (heard[0].args, heard[0].id != heard[1].id) == ({"pipeline": "front"}, True)
    assert heard[0].exp > before_ms


def test_a_no_carries_the_devices_reason(calls, answering):
    answering(lambda request: [{"id": request.id, "ok": False, "error": "preview is off for pipeline front"}])
    with pytest.raises(ConflictError, match="cam-1 says no: preview is off for pipeline front"):
        calls().call(DEFAULT_TENANT, CAM, "snapshot", {})


def test_a_device_that_says_nothing_is_not_waited_for_for_ever(calls):
    with pytest.raises(UnavailableError, match=r"cam-1 did not answer within 0\.2 s"):
        calls(answer_s=0.2).call(DEFAULT_TENANT, CAM, "snapshot", {})


def test_one_is_asked_at_a_time(calls, lock_file):
    with lock_file.try_exclusive("calls") as is_held:
        assert is_held
        with pytest.raises(UnavailableError, match="Another device"):
            calls().call(DEFAULT_TENANT, CAM, "snapshot", {})
