"""Devices that answer commands, behind the server's own interface; and a picture that is one."""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from protocol.errors import ConflictError, UnavailableError
from protocol.ids import DeviceId, TenantId


def jpeg(width: int = 64, height: int = 48) -> bytes:
    """A gray picture."""
    is_made, data = cv2.imencode(".jpg", np.full((height, width, 3), 128, np.uint8))
    assert is_made
    return data.tobytes()


@dataclass
class CallSimulator:
    """What each device answers; those without an answer are silent, those with a text say no."""

    answers: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def call(self, tenant: TenantId, device: DeviceId, method: str, args: dict[str, Any]) -> dict[str, Any]:
        del tenant
        self.asked.append((device, method, args))
        match self.answers.get(device):
            case None:
                raise UnavailableError(f"{device} did not answer.", code="device-silent")
            case str() as reason:
                raise ConflictError(f"{device} says no: {reason}", code="device-refused")
            case found:
                return found
