"""Commands that a device answers at once: `c/{device}/rpc/{method}` out, `d/{device}/rpc-reply` back. One at a time over all processes."""

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import ValidationError

from fleet.bus import Bus, Incoming, Subscription
from fleet.db import Database
from protocol.clock import Clock, to_unix_ms
from protocol.errors import ConflictError, UnavailableError
from protocol.ids import DeviceId, TenantId
from protocol.messages import RpcReply, RpcRequest
from protocol.topics import DEFAULT_PREFIX, command_topic, device_topic

#: Seconds of system time for the connection to the broker, and for the answer; the broker forgets the command after the latter.
CONNECT_S, ANSWER_S = 10.0, 30.0


class Calls(Protocol):
    """Asks devices."""

    def call(self, tenant: TenantId, device: DeviceId, method: str, args: dict[str, Any]) -> dict[str, Any]:
        """What the device answers. Raises: ConflictError with the device's reason; UnavailableError when none came."""
        ...


class DeviceCalls:
    """Asks over a connection of its own for each command, so that any number of processes may, one after the other."""

    def __init__(
        self,
        database: Database,
        *,
        connect: Callable[[tuple[Subscription, ...]], Bus],
        clock: Clock,
        prefix: str = DEFAULT_PREFIX,
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._database, self._connect, self._clock = database, connect, clock
        self._prefix, self._connect_s, self._answer_s = prefix, connect_s, answer_s

    def call(self, tenant: TenantId, device: DeviceId, method: str, args: dict[str, Any]) -> dict[str, Any]:
        """What the device answers. Raises: ConflictError with the device's reason; UnavailableError when none came."""
        with self._database.try_exclusive("calls") as is_ours:
            if not is_ours:
                raise UnavailableError("Another device is being asked.", retry_after_s=self._answer_s, code="busy")
            replies = device_topic(tenant, device, "rpc-reply", prefix=self._prefix)
            bus = self._connect((Subscription(replies),))
            with contextlib.ExitStack() as stack:
                stack.callback(bus.stop)
                if not bus.wait_connected(self._connect_s):
                    raise UnavailableError(f"The broker lets nobody ask devices: {bus.refusal or 'no connection'}.")
                return self._ask(bus, command_topic(tenant, device, "rpc", method, prefix=self._prefix), args, who=device)

    def _ask(self, bus: Bus, topic: str, args: dict[str, Any], *, who: str) -> dict[str, Any]:
        until_ms = to_unix_ms(self._clock.now()) + round(self._answer_s * 1000 * self._clock.speed)
        request = RpcRequest(id=secrets.token_hex(16), exp=until_ms, args=args)
        body = request.model_dump_json().encode()
        bus.publish_and_wait(topic, body, expiry_s=max(1, round(self._answer_s)), schema="rpc.1", timeout_s=self._connect_s)
        deadline = time.monotonic() + self._answer_s
        while (left := deadline - time.monotonic()) > 0:
            for message in bus.inbox.take(16, wait_s=left, gather_s=0.0):
                bus.acknowledge([message])
                reply = _reply(message)
                if reply is None or reply.id != request.id:
                    continue  # somebody else's, or late
                if not reply.ok:
                    raise ConflictError(f"{who} says no: {reply.error or 'without a reason'}", code="device-refused")
                return reply.result or {}
        raise UnavailableError(f"{who} did not answer within {self._answer_s:g} s.", code="device-silent")


def _reply(message: Incoming) -> RpcReply | None:
    try:
        return RpcReply.model_validate_json(message.payload)
    except ValidationError:
        return None
