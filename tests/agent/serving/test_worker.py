"""What must be right before anything is served: address, token, certificate; and long answers are packed."""

import gzip
import stat
import zlib

import pytest
from simulators.authority import Authority

from agent.config import ServingConfig
from agent.listening import ListenAddress, parse_listen
from agent.serving.api import pack
from agent.serving.http import parse_head
from agent.serving.tensors import Body
from agent.serving.worker import listening_on, open_listener, read_token, tls_of
from agent.settings.loading import changed_serving, load_config
from protocol.errors import ConfigError, DeviceError


@pytest.mark.parametrize(
    ("text", "address", "is_local"),
    [
        ("127.0.0.1:8000", ListenAddress("127.0.0.1", 8000), True),
        ("127.1.2.3:0", ListenAddress("127.1.2.3", 0), True),
        ("[::1]:8000", ListenAddress("::1", 8000), True),
        ("192.0.2.1:8443", ListenAddress("192.0.2.1", 8443), False),
        ("[::]:8443", ListenAddress("::", 8443), False),
        ("unix:/run/x/oip.sock", ListenAddress(path="/run/x/oip.sock"), True),
    ],
)
def test_addresses_are_read(text, address, is_local):
    assert (parse_listen(text), parse_listen(text).is_local) == (address, is_local)


@pytest.mark.parametrize(
    "text", ["8000", "localhost:8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "unix:x", "unix:/" + "x" * 200]
)
def test_what_is_no_address_stops_the_start(text):
    with pytest.raises(ConfigError, match=r"serving"):
        load_config(flags={"serving.listen": text})


def test_beyond_this_machine_certificate_and_token_are_wanted(tmp_path):
    with pytest.raises(ConfigError, match="wanted certificate, key and token_file"):
        load_config(flags={"serving.listen": "192.0.2.1:8443", "serving.certificate": "/c", "serving.key": "/k"})
    with pytest.raises(ConfigError, match="only one of certificate and key"):
        load_config(flags={"serving.listen": "127.0.0.1:8000", "serving.certificate": "/c"})
    with pytest.raises(ConfigError, match="beyond this machine"):
        changed_serving(ServingConfig(), {"listen": "[::]:8000"})
    guarded = {"listen": "[::]:8443", "certificate": tmp_path, "key": tmp_path, "token_file": tmp_path}
    assert changed_serving(ServingConfig(), guarded).token_file == tmp_path


@pytest.mark.parametrize("content", [b"short", b"x" * 2000, b"with a space inside", "grüße-grüße-grüße".encode(), None])
def test_a_token_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"serving\.token_file"):
        read_token(path)


def test_a_token_is_the_line_in_its_file(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert read_token(tmp_path / "token") == b"0123456789abcdef"
    assert read_token(None) == b""


def test_certificate_and_key_must_belong_together(tmp_path):
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "a")
    _, other = authority.issue(tmp_path, "b")
    assert tls_of(ServingConfig(certificate=certificate, key=key)) is not None
    with pytest.raises(ConfigError, match=r"serving\.key"):
        tls_of(ServingConfig(certificate=certificate, key=other))
    assert tls_of(ServingConfig()) is None


def test_an_address_that_is_taken_is_named(tmp_path):
    with open_listener(ListenAddress("127.0.0.1", 0)) as listener:
        listener.listen()
        where = listening_on(listener)
        with pytest.raises(DeviceError, match=where):
            open_listener(parse_listen(where))
    with pytest.raises(DeviceError, match="no-such-folder"):
        open_listener(ListenAddress(path=str(tmp_path / "no-such-folder" / "socket")))


def test_a_unix_socket_is_for_user_and_group_and_replaces_one_that_was_left(tmp_path):
    path = tmp_path / "socket"
    open_listener(ListenAddress(path=str(path))).close()
    with open_listener(ListenAddress(path=str(path))) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        listener.listen()
        with pytest.raises(DeviceError, match="Another program"):
            open_listener(ListenAddress(path=str(path)))


@pytest.mark.parametrize(
    ("accepted", "unpack"), [(b"gzip", gzip.decompress), (b"br, deflate", zlib.decompress), (b"deflate, gzip", gzip.decompress)]
)
def test_long_answers_are_packed_for_who_takes_them(accepted, unpack):
    head = parse_head(b"POST /v2 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: " + accepted)
    answer = pack(head, Body(b"{}", (bytes(5000),)))
    assert unpack(bytes(answer.parts[0])) == b"{}" + bytes(5000)
    assert ("Inference-Header-Content-Length", "2") in answer.headers  # counts what is unpacked


@pytest.mark.parametrize(("accepted", "size"), [(b"gzip", 100), (b"br", 5000), (b"gzip;q=0", 5000), (b"identity", 5000)])
def test_short_answers_and_those_of_clients_that_do_not_take_it_are_sent_as_they_are(accepted, size):
    head = parse_head(b"POST /v2 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: " + accepted)
    assert pack(head, Body(b"{}", (bytes(size),))).parts == (b"{}", bytes(size))
