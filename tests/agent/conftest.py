"""What tests of the agent share: an authority, an enrolled device, a broker with mutual TLS."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from simulators.authority import Authority
from simulators.mosquitto import Mosquitto

from agent.identity import Enrollment, Identity, load_identity
from protocol.messages import BrokerAddress
from protocol.sealed import new_sealing_key


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


def enroll_by_hand(folder: Path, authority: Authority, *, device: str, broker: str, server: str = "https://127.0.0.1:9") -> Identity:
    """The identity folder that an enrollment would have written."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "device-key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "device-cert.pem").write_bytes(authority.certify(device, key.public_key()))
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "sealing-key.bin").write_bytes(new_sealing_key())
    for name in ("image-root.json", "director-root.json"):
        (folder / name).write_text(json.dumps({"signed": {"_type": "root"}}))
    enrollment = Enrollment(device=device, tenant="t0", device_type="sim", server=server, broker=BrokerAddress(urls=[broker]))
    (folder / "enrollment.json").write_text(enrollment.model_dump_json())
    return load_identity(folder)


@pytest.fixture
def broker(mosquitto_path: Path, tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    with Mosquitto(mosquitto_path, tmp_path / "broker", authority) as running:
        yield running


@pytest.fixture
def make_identity(tmp_path: Path, authority: Authority) -> Callable[..., Identity]:
    """Makes an enrolled device."""

    def make(broker: str, *, device: str = "cam-1", by: Authority | None = None, server: str = "https://127.0.0.1:9") -> Identity:
        return enroll_by_hand(tmp_path / f"state-{device}" / "identity", by or authority, device=device, broker=broker, server=server)

    return make
