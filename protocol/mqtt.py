"""paho's MQTT client, whose network thread does not die unheard.

An exception in the library's own thread (its queue of packets, which it walks through while another thread adds to it; a listener of
ours that fails; in versions before 2.2 a packet that it cannot read) ends that thread: nothing is received any more, keep-alive is dead
as well, and nobody is told, since to all others the connection looks as before. Here such a connection ends like one that was lost.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

log = logging.getLogger("mooring.mqtt")

#: Before it connects again after a failure of the library, in seconds: what it failed at may be sent to it once more.
PAUSE_S = 2.0


class Client(mqtt.Client):
    """An MQTT 5 client with manual acknowledgement, to be run by `loop_start` and `loop_stop`.

    `on_failed` is called on the network thread with the exception that ended the connection, in place of `on_disconnect`; then the client
    connects again, or with `reconnect_on_failure=False` its thread ends.
    """

    def __init__(self, client_id: str, *, on_failed: Callable[[Exception], None], **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, manual_ack=True, **options)
        self._on_failed = on_failed
        self._comes_back = bool(options.get("reconnect_on_failure", True))
        self._is_over = threading.Event()

    def loop_start(self) -> MQTTErrorCode:
        """As in the library."""
        self._is_over.clear()
        return super().loop_start()

    def loop_stop(self) -> MQTTErrorCode:
        """As in the library."""
        self._is_over.set()
        return super().loop_stop()

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:  # noqa: FBT001, FBT002 - theirs
        """As in the library, which calls it on the thread that `loop_start` makes, but an exception is a lost connection."""
        is_broken = False
        while True:
            try:
                if is_broken:
                    self._drop()
                return super().loop_forever(timeout, retry_first_connection)
            except Exception as error:
                log.exception("mqtt_client_failed client=%s", self._client_id.decode())
                is_broken = True
                self._on_failed(error)
                if not self._comes_back or self._is_over.wait(PAUSE_S):
                    return MQTTErrorCode.MQTT_ERR_UNKNOWN

    def _drop(self) -> None:
        """Leave the broken connection, with what was half read of it, for a new one; `loop_forever` tries again when that fails."""
        try:
            self.reconnect()
        except OSError as error:
            log.info("mqtt_client_unreachable client=%s error=%s", self._client_id.decode(), error)
