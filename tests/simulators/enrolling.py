"""A device that only enrolls: its keys, and the request it sends."""

import base64
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocol.messages import EnrollRequest
from protocol.sealed import new_sealing_key, sealing_public_key


@dataclass
class EnrollingDevice:
    """Keys of one device; tests change them and look what the server says."""

    device_type: str = "linux-x86-64"
    device: str | None = None
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    sealing_private: bytes = field(default_factory=new_sealing_key)

    def csr_pem(self) -> str:
        """A certificate request signed with the device's key; its subject lies, and nobody believes it."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody-else")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def request(self, token: str, **changes: Any) -> EnrollRequest:
        """The enrollment request."""
        public = sealing_public_key(self.sealing_private)
        content = {
            "token": token,
            "device": self.device,
            "device_type": self.device_type,
            "csr_pem": self.csr_pem(),
            "sealing_key": base64.b64encode(public).decode(),
            "sealing_signature": base64.b64encode(self.key.sign(public, ec.ECDSA(hashes.SHA256()))).decode(),
            "hardware": {"cpu": "test"},
            "agent_version": "0.1.0",
        }
        return EnrollRequest.model_validate({**content, **changes})
