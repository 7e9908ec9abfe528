"""`mooring signer`: a process with its own key folder that signs what governance approved, and nothing else. Off by default.

It asks the server what waits for a line's key, reads the approval, parses each payload itself, recomputes the digest of what the payload
adds to what this very key signed before, and signs only when that is the digest an approver said yes to. What it refuses it refuses
once, with the reason in its log; every signature is an audit entry on the server under the token's name. Whoever steals this process
can sign for its lines only.
"""

import base64
import binascii
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.signer import Signer as KeySigner

from fleet.registry.policies import sign_policy_role
from fleet.registry.renewals import sign_renewal
from fleet.registry.requests import check_published
from fleet.registry.signing import MAX_ROLE_BYTES, sign_line_role
from fleet.registry.tokens import open_signer
from protocol.clock import Clock
from protocol.errors import ConfigError, ConflictError, InvalidError, MooringError, TransferError, UnauthenticatedError
from protocol.ids import DIGEST_PATTERN, NAME_PATTERN, VERSION_PATTERN, Digest, LineName
from protocol.trust.metadata import POLICY_ROLE, line_role

log = logging.getLogger("mooring.signer")

PREFIX = "/api/v1"
TIMEOUT_S = 30.0
#: Between two looks, seconds: signing is no hurry, and a demo should not wait.
DEFAULT_POLL_S = 2.0
MAX_ANSWER_BYTES = 4 * MAX_ROLE_BYTES

_Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
_Name = Annotated[str, Field(pattern=NAME_PATTERN)]
_Version = Annotated[str, Field(pattern=VERSION_PATTERN)]
_Base64 = Annotated[str, Field(max_length=2 * MAX_ROLE_BYTES)]


@dataclass(frozen=True, slots=True)
class SignerOptions:
    """Where the server is, who we are there, and where our keys lie."""

    server: str
    #: API token with the scopes releases:sign and approvals:read, of a user who is an approver.
    token: str = field(repr=False)
    #: Files named model.LINE.pem; a line without a file here is not ours.
    keys: Path
    passphrase: str | None = field(default=None, repr=False)
    #: Digest of the image repository's first root. With it, this key signs on top of what only the role's other keys signed.
    bootstrap: Digest | None = None
    poll_s: float = DEFAULT_POLL_S
    #: PEM of the authority of the server's certificate; None: the system's.
    ca: Path | None = None


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Task(_Document):
    request: _Name
    line: _Name
    version: _Version
    payload: _Base64
    previous: _Base64
    content_digest: _Digest
    approval: _Name


class _ConfigurationTask(_Document):
    rev: Annotated[int, Field(ge=1)]
    payload: _Base64
    previous: _Base64
    content_digest: _Digest
    approval: _Name


class _RenewalTask(_Document):
    line: _Name
    payload: _Base64
    previous: _Base64


class _Approval(_Document):
    approval: str
    subject_kind: Literal["release", "configuration"]
    subject_id: str
    state: Literal["approved"]
    digests: dict[str, _Digest]
    decided_by: str


class Signer:
    """Looks, checks, signs. Remembers only what it refused, so that the log says it once."""

    def __init__(self, options: SignerOptions, *, transport: httpx.BaseTransport | None = None) -> None:
        """Raises: ConfigError when there is no key in the folder, or one does not open."""
        self._options = options
        policy = options.keys / f"{POLICY_ROLE}.pem"
        self._policy_key = open_signer(str(policy), ask=_answer(options.passphrase)) if policy.exists() else None
        has_lines = self._policy_key is None or any(line_key_files(options.keys))
        self._keys = load_line_keys(options.keys, passphrase=options.passphrase) if has_lines else {}
        self._refused: set[str] = set()
        self._http = httpx.Client(
            base_url=options.server.rstrip("/") + PREFIX,
            headers={"Authorization": f"Bearer {options.token}", "User-Agent": "mooring-signer"},
            timeout=TIMEOUT_S,
            transport=transport,
            verify=str(options.ca) if options.ca else True,
        )

    @property
    def lines(self) -> tuple[LineName, ...]:
        """The lines whose keys are here."""
        return tuple(sorted(self._keys))

    def sign_open_requests(self) -> list[str]:
        """Sign what is approved and ours; returns the releases signed, e.g. "digits/1.0".

        Raises: TransferError when the server does not answer; UnauthenticatedError when it does not know the token.
        """
        signed = []
        for item in self._list("/signing-requests"):
            key = str(item.get("request")) if isinstance(item, Mapping) else repr(item)
            if key in self._refused:
                continue
            try:
                name = self._sign(_Task.model_validate(item))
            except (ValidationError, MooringError) as error:
                if isinstance(error, TransferError):
                    raise
                self._refused.add(key)
                log.warning("signer_refused request=%s reason=%s", key, str(error)[:500])
                continue
            if name is not None:
                signed.append(name)
        return signed

    def sign_open_renewals(self) -> list[str]:
        """Sign lines of ours again whose signature ends soon, when nothing but the expiry changes; returns them.

        Raises: as `sign_open_requests`.
        """
        signed: list[str] = []
        if not self._keys:
            return signed
        for item in self._list("/line-renewals"):
            refusal = hashlib.sha256(repr(item.get("line") if isinstance(item, Mapping) else item).encode()).hexdigest()
            if refusal in self._refused:
                continue
            try:
                task = _RenewalTask.model_validate(item)
                if (key := self._keys.get(LineName(task.line))) is None:
                    continue
                renewed = sign_renewal(_decoded(task.payload), previous=_decoded(task.previous), line=LineName(task.line), signer=key)
                self._post(f"/line-renewals/{task.line}", {"signed": base64.b64encode(renewed).decode()})
            except (ValidationError, MooringError) as error:
                if isinstance(error, TransferError):
                    raise
                if not isinstance(error, ConflictError):  # something was published in between: the next look renews that
                    self._refused.add(refusal)
                log.warning("signer_refused renewal=%s reason=%s", refusal[:16], str(error)[:500])
                continue
            log.info("signer_renewed line=%s", task.line)
            signed.append(f"line/{task.line}")
        return signed

    def sign_open_configurations(self) -> list[str]:
        """Sign what is approved of device configuration, if the policy key is here; returns what was signed, e.g. "configuration/17".

        Raises: as `sign_open_requests`.
        """
        signed: list[str] = []
        if self._policy_key is None:
            return signed
        for item in self._list("/configurations/signing-requests"):
            # a release that was overtaken is asked for again, with another payload
            key = hashlib.sha256(repr(item).encode()).hexdigest()
            if key in self._refused:
                continue
            try:
                name = self._sign_configuration(_ConfigurationTask.model_validate(item), self._policy_key)
            except (ValidationError, MooringError) as error:
                if isinstance(error, TransferError):
                    raise
                self._refused.add(key)
                log.warning("signer_refused configuration=%s reason=%s", key[:16], str(error)[:500])
                continue
            if name is not None:
                signed.append(name)
        return signed

    def _sign_configuration(self, task: _ConfigurationTask, key: KeySigner) -> str | None:
        approval = _Approval.model_validate(self._get(f"/approvals/{task.approval}"))
        found = (approval.digests.get("content"), approval.subject_kind, approval.subject_id)
        if found != (task.content_digest, "configuration", str(task.rev)):
            raise InvalidError(f"Approval {approval.approval} is for {found}; the request is for configuration {task.rev}.")
        payload, previous = (_decoded(text) for text in (task.payload, task.previous))
        if key.public_key.keyid.encode() in payload:
            return None  # ours is there; the role's other keys must sign too
        is_checked = self._is_published(POLICY_ROLE, previous, key)
        signed = sign_policy_role(
            payload, previous=previous, approved=Digest(task.content_digest), signer=key, is_previous_checked=is_checked
        )
        self._post(f"/configurations/signing-requests/{task.rev}", {"signed": base64.b64encode(signed).decode()})
        log.info("signer_signed configuration=%d approval=%s decided_by=%s", task.rev, approval.approval, approval.decided_by)
        return f"configuration/{task.rev}"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _sign(self, task: _Task) -> str | None:
        key = self._keys.get(LineName(task.line))
        if key is None:
            return None
        name = f"{task.line}/{task.version}"
        approval = _Approval.model_validate(self._get(f"/approvals/{task.approval}"))
        approved = approval.digests.get("content")
        if approval.subject_kind != "release" or approved is None or (approved, approval.subject_id) != (task.content_digest, name):
            raise InvalidError(
                f"Approval {approval.approval} is for {approval.subject_id} and {approved}; "
                f"the request is for {name} and {task.content_digest}."
            )
        payload, previous = (_decoded(text) for text in (task.payload, task.previous))
        if key.public_key.keyid.encode() in payload:
            return None  # ours is there; the line's other keys must sign too
        is_checked = self._is_published(line_role(task.line), previous, key)
        signed = sign_line_role(
            payload, previous=previous, line=LineName(task.line), approved=Digest(approved), signer=key, is_previous_checked=is_checked
        )
        self._post(f"/signing-requests/{task.request}", {"signed": base64.b64encode(signed).decode()})
        log.info("signer_signed release=%s approval=%s decided_by=%s", name, approval.approval, approval.decided_by)
        return name

    def _is_published(self, role: str, previous: bytes, key: KeySigner) -> bool:
        """Whether what only other keys of the role signed was checked from the first root on; False: our own signature must be there."""
        if self._options.bootstrap is None or not previous or key.public_key.keyid.encode() in previous:
            return False
        data = _decoded(str(self._get("/published-roles").get("published", "")))
        check_published(data, bootstrap=self._options.bootstrap, role=role, previous=previous)
        return True

    def _list(self, path: str) -> list[Any]:
        try:
            answer = self._get(path)
        except (ConflictError, InvalidError) as error:
            raise TransferError(f"{self._options.server} gives no list of {path.strip('/')}: {error}") from error
        items = answer.get("items") if isinstance(answer, Mapping) else None
        if not isinstance(items, list):
            raise TransferError(f"{self._options.server} gives no list of {path.strip('/')}: its answer has no items.")
        return items

    def _get(self, path: str) -> Any:
        return self._send("GET", path)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send("POST", path, body=dict(body))

    def _send(self, method: str, path: str, *, body: dict[str, Any] | None = None) -> Any:
        try:
            with self._http.stream(method, path, json=body) as answer:
                content = bytearray()
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        raise InvalidError(f"The answer to {path} has more than the {MAX_ANSWER_BYTES} bytes that are read.")
        except httpx.HTTPError as error:
            raise TransferError(f"{self._options.server} does not answer: {type(error).__name__}.") from error
        if answer.status_code in {401, 403}:
            raise UnauthenticatedError(
                f"The server answered {answer.status_code}: the token may not read and sign releases.",
                hint="Make one: mooring token create --scope releases:sign --scope approvals:read",
            )
        if answer.status_code >= 500:
            raise TransferError(f"{self._options.server} answered {answer.status_code}.")
        if answer.status_code >= 400:
            kind = ConflictError if answer.status_code == 409 else InvalidError
            raise kind(f"The server refused {path} with {answer.status_code}: {content[:300].decode(errors='replace')}")
        try:
            return json.loads(content)
        except ValueError as error:
            raise TransferError("The server's answer is not JSON.") from error


def load_line_keys(folder: Path, *, passphrase: str | None) -> dict[LineName, KeySigner]:
    """The keys in the folder by line, out of files named model.LINE.pem, or model.LINE.uri for keys in tokens and key services.

    Raises: ConfigError when there is none, or one does not open.
    """
    prefix = line_role("")
    found = {
        LineName(path.name.removeprefix(prefix).removesuffix(path.suffix)): open_signer(str(path), ask=_answer(passphrase))
        for path in line_key_files(folder)
    }
    if not found:
        raise ConfigError(f"{folder} holds no line key.", hint=f"Wanted: files named {prefix}LINE.pem; see: mooring keys line LINE")
    return found


def line_key_files(folder: Path) -> list[Path]:
    """Keys and references of model lines in the folder."""
    return sorted(path for suffix in (".pem", ".uri") for path in folder.glob(f"{line_role('')}*{suffix}"))


def _answer(passphrase: str | None) -> Callable[[str], str] | None:
    return None if passphrase is None else lambda _: passphrase


def run(options: SignerOptions, *, clock: Clock, stop: threading.Event, say: Callable[[str], None] = print) -> None:
    """Sign what is approved until `stop` is set; waits and looks again when the server does not answer, or no key is there yet.

    Raises: UnauthenticatedError when the server does not know the token; ConfigError when a key does not open.
    """
    signer: Signer | None = None
    trouble = ""
    known: set[tuple[Path, int]] = set()
    try:
        while not stop.is_set():
            found = (*line_key_files(options.keys), *options.keys.glob(f"{POLICY_ROLE}.pem"))
            # by time too: a key that replaces a revoked one has the same name
            if (now := {(path, path.stat().st_mtime_ns) for path in found}) != known and now:
                if signer is not None:
                    signer.close()
                signer, known = Signer(options), now
                say(f"Signing for: {', '.join(sorted(path.stem.removeprefix(line_role('')) for path in found))}")
            if signer is not None:
                trouble = _look(signer, say, trouble)
            clock.wait(stop, options.poll_s)
    finally:
        if signer is not None:
            signer.close()


def _look(signer: Signer, say: Callable[[str], None], trouble: str) -> str:
    """Sign what is open; returns what kept it from that, empty when nothing did. `trouble`: that of the look before, told already."""
    try:
        for name in (*signer.sign_open_requests(), *signer.sign_open_renewals(), *signer.sign_open_configurations()):
            say(f"Signed {name}")
    except TransferError as error:
        if str(error) != trouble:
            log.warning("signer_waits error=%s", error)
        return str(error)
    if trouble:
        log.info("signer_goes_on")
    return ""


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidError("The request holds something that is not base64.") from error
