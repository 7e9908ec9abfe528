"""The one error tree. A family says who must act; `code` is stable, stored and sent; the text names what was seen and what was wanted.

MooringError
├── TrustError           hostile or stale data: nothing is installed, the operator is told
├── TransferError        the network or the peer: retry later
│   └── UnavailableError     the peer said it cannot serve now (`retry_after_s`)
├── DeviceError          this device cannot do it: disk, camera, runtime, clock
├── InvalidError         the caller sent something malformed: mend the input
├── ConflictError        the user: the state does not allow it
│   ├── NotFoundError        no such thing, or not yours to see
│   └── StaleRevisionError   somebody changed it in between: read again
├── AccessError          the caller may not: log in (`UnauthenticatedError`) or ask for the permission (`ForbiddenError`)
│   ├── UnauthenticatedError
│   └── ForbiddenError
└── ConfigError          the operator: a setting is wrong; names key, value and what is allowed
"""


class MooringError(Exception):
    """Base of all errors that a caller may handle. `str(error)` is for people; `code` is for programs."""

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        #: What the reader can do about it, a full sentence, or None when the message already says so.
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class TrustError(MooringError):
    code = "trust"


class TransferError(MooringError):
    code = "transfer"


class UnavailableError(TransferError):
    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        #: Seconds the peer asked to wait, or None when it did not say.
        self.retry_after_s = retry_after_s


class DeviceError(MooringError):
    code = "device"


class InvalidError(MooringError):
    code = "invalid"


class ConflictError(MooringError):
    code = "conflict"


class NotFoundError(ConflictError):
    code = "not-found"


class StaleRevisionError(ConflictError):
    code = "precondition-failed"


class AccessError(MooringError):
    code = "forbidden"


class UnauthenticatedError(AccessError):
    code = "unauthenticated"


class ForbiddenError(AccessError):
    code = "forbidden"


class ConfigError(MooringError):
    code = "config"
