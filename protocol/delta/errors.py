"""What is wrong with a delta, or with the old file it is put on."""

from protocol.errors import DeviceError


class DeltaError(DeviceError):
    """The delta cannot be applied here: it is damaged, hostile, too large for this device, or made for another old file."""

    code = "delta_failed"
