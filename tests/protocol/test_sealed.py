"""A sealed secret opens for its device and name only, and hostile text is an error of ours."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import sealed
from protocol.errors import InvalidError, MooringError, TrustError
from protocol.ids import DeviceId

KEY = sealed.new_sealing_key()
PUBLIC = sealed.sealing_public_key(KEY)
CONTEXT = sealed.secret_context(DeviceId("cam-1"), "camera")


@given(st.binary(max_size=300))
def test_what_was_sealed_opens(secret):
    assert sealed.open_sealed(KEY, sealed.seal(PUBLIC, secret, context=CONTEXT), context=CONTEXT) == secret


def test_two_sealings_of_one_secret_differ():
    assert sealed.seal(PUBLIC, b"x", context=CONTEXT) != sealed.seal(PUBLIC, b"x", context=CONTEXT)


@pytest.mark.parametrize(("device", "name"), [("cam-2", "camera"), ("cam-1", "broker"), ("cam-1/camera", "")])
def test_a_text_copied_to_another_device_or_name_does_not_open(device, name):
    text = sealed.seal(PUBLIC, b"admin:secret", context=CONTEXT)
    with pytest.raises(TrustError, match="does not open"):
        sealed.open_sealed(KEY, text, context=sealed.secret_context(DeviceId(device), name))


def test_another_key_does_not_open_it():
    with pytest.raises(TrustError):
        sealed.open_sealed(sealed.new_sealing_key(), sealed.seal(PUBLIC, b"x", context=CONTEXT), context=CONTEXT)


@given(st.integers(0, 47), st.integers(1, 255))
def test_any_changed_byte_is_refused(index, change):
    data = bytearray(base64.b64decode(sealed.seal(PUBLIC, b"", context=CONTEXT)))
    data[index] ^= change
    with pytest.raises(MooringError):
        sealed.open_sealed(KEY, base64.b64encode(bytes(data)).decode(), context=CONTEXT)


@given(st.text(max_size=200))
def test_hostile_text_is_an_error_of_ours(text):
    with pytest.raises(MooringError):
        sealed.open_sealed(KEY, text, context=CONTEXT)


def test_sizes_are_limited():
    with pytest.raises(InvalidError, match="at most 8192"):
        sealed.seal(PUBLIC, b"x" * 8193, context=CONTEXT)
    with pytest.raises(InvalidError, match="characters"):
        sealed.open_sealed(KEY, "A" * 20_000, context=CONTEXT)
    longest = b"x" * sealed.MAX_SECRET_BYTES
    assert sealed.open_sealed(KEY, sealed.seal(PUBLIC, longest, context=CONTEXT), context=CONTEXT) == longest


@pytest.mark.parametrize("key", [b"", b"x" * 31, b"x" * 33])
def test_keys_of_another_length_are_refused(key):
    with pytest.raises(InvalidError, match="wanted 32"):
        sealed.seal(key, b"x", context=CONTEXT)
    with pytest.raises(InvalidError, match="wanted 32"):
        sealed.sealing_public_key(key)


def test_a_key_of_low_order_is_refused():
    with pytest.raises(InvalidError, match="X25519"):
        sealed.seal(bytes(32), b"x", context=CONTEXT)
