"""A real HTTPS server that answers like the device API: enrolls, takes version reports, and misbehaves when a test says so."""

import base64
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from cryptography import x509
from simulators.authority import Authority

from protocol.messages import (
    BrokerAddress,
    CertificateAnswer,
    CertificateRequest,
    DsseEnvelope,
    EnrollRequest,
    EnrollResponse,
    VersionReport,
)
from protocol.reports import verify_report

ROOT = base64.b64encode(json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": []}).encode()).decode()


class DeviceApi:
    """Listens on loopback; `tokens` maps the secrets still unused to True, used ones to False."""

    def __init__(self, folder: Path, authority: Authority, *, host: str = "127.0.0.1", broker_urls: tuple[str, ...] = ()) -> None:
        self.authority = authority
        self.tokens: dict[str, bool] = {}
        self.requests: list[EnrollRequest] = []
        self.envelopes: list[DsseEnvelope] = []
        self.keys: dict[str, object] = {}
        self.broker_urls = list(broker_urls) or ["mqtts://127.0.0.1:8883"]
        #: The name in renewed certificates; None: that of the device enrolled last.
        self.renews_as: str | None = None
        #: Changes the answer to an enrollment, or refuses to give one by raising ConnectionError.
        self.tamper: Callable[[EnrollResponse], EnrollResponse] = lambda answer: answer
        certificate, key = authority.issue(folder, "server", hosts=("127.0.0.1", "::1", "localhost"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=authority.pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": 10 if ":" in host else 2, "daemon_threads": True})
        self._server = kind((host, 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        shown = f"[{host}]" if ":" in host else host
        self.url = f"https://{shown}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def invite(self, secret: str = "s" * 32) -> str:
        """A token that admits once."""
        text = f"mrg1.t0.tok1.{secret}.{self.authority.sha256}"
        self.tokens[text] = True
        return text

    def reports(self) -> list[VersionReport]:
        """The version reports received, verified with the keys of the enrolled devices."""
        keys = list(self.keys.values())
        return [verify_report(keys[-1], envelope) for envelope in list(self.envelopes)]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        match method, path:
            case "GET", "/enroll/v1/ca":
                return 200, self.authority.pem
            case "POST", "/enroll/v1":
                return self._enroll(EnrollRequest.model_validate_json(body))
            case "POST", "/device/v1/certificate":
                key = x509.load_pem_x509_csr(CertificateRequest.model_validate_json(body).csr_pem.encode()).public_key()
                pem = self.authority.certify(self.renews_as or next(reversed(self.keys)), key).decode()
                return 200, CertificateAnswer(certificate_pem=pem, ca_pem=self.authority.pem.decode()).model_dump_json().encode()
            case "POST", "/device/v1/report":
                self.envelopes.append(DsseEnvelope.model_validate_json(body))
                return 200, json.dumps({"v": 1, "report_counter": len(self.envelopes), "nonce": "n1"}).encode()
        return problem(404, "not-found", "No such path.")

    def _enroll(self, request: EnrollRequest) -> tuple[int, bytes]:
        if not self.tokens.get(request.token):
            return problem(401, "unauthenticated", "The token is wrong, used or expired.")
        key = x509.load_pem_x509_csr(request.csr_pem.encode()).public_key()
        device = request.device or "made-by-server"
        answer = EnrollResponse(
            device=device,
            tenant="t0",
            group="lab",
            certificate_pem=self.authority.certify(device, key).decode(),
            ca_pem=self.authority.pem.decode(),
            broker=BrokerAddress(urls=self.broker_urls),
            image_root=ROOT,
            director_root=ROOT,
        )
        answer = self.tamper(answer)
        self.requests.append(request)
        self.keys[device] = key
        self.tokens[request.token] = False
        return 200, answer.model_dump_json().encode()


def problem(status: int, slug: str, detail: str) -> tuple[int, bytes]:
    return status, json.dumps({"type": f"urn:mooring:problem:{slug}", "title": slug, "status": status, "detail": detail}).encode()


def _handler(api: DeviceApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def _serve(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            try:
                status, data = api.answer(method, self.path, body)
            except ConnectionError:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
