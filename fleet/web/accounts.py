"""Accounts of people and keys of machines: log in and out, users, API tokens; one function per action, audited in its transaction.

Sessions and tokens, like certificates, end by system time: an accelerated clock must not log people out. So `now` here is system time,
and only the audit entries carry the time of the server's clock (`at`).
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

import argon2

from fleet import audit
from fleet.audit import Actor, ActorKind
from fleet.db import Connection, Database, check_revision
from fleet.governance.permissions import PERMISSIONS, SCOPES
from fleet.web import store
from fleet.web.store import ApiToken, Session, User
from protocol.errors import InvalidError, NotFoundError, UnauthenticatedError, UnavailableError
from protocol.ids import TenantId, check_name, new_id

#: A session nobody used for this long is over.
SESSION_IDLE = timedelta(minutes=30)
#: No session lives longer than this, used or not.
SESSION_LIFE = timedelta(hours=12)
#: Failed logins are counted over this long.
FAILURE_WINDOW = timedelta(minutes=15)
#: Failed logins in that window after which one account, or one address, has to wait.
FAILURES_PER_ACCOUNT, FAILURES_PER_ADDRESS = 5, 20
#: `seen_at` is written at most this often: reading a page does not become a write.
TOUCH_EVERY = timedelta(minutes=1)
#: Life of an API token, days: what is asked when nothing is said, and the most that is given.
TOKEN_DAYS, TOKEN_MAX_DAYS = 90, 366
MIN_PASSWORD, MAX_PASSWORD = 10, 200
TOKEN_PREFIX = "mrt1"  # noqa: S105 - says what kind of secret follows


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session just opened and the cookie's value, which is known only here."""

    session: Session
    cookie: str


@dataclass(frozen=True, slots=True)
class NewToken:
    """An API token just made and its text, which is shown once."""

    token: ApiToken
    text: str


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """The account made at the first start and its one-time password."""

    name: str
    password: str


# --- sessions ---


def check_login(database: Database, *, tenant: TenantId, name: str, password: str, address: str, now: datetime) -> User:
    """The account whose password this is. The attempt is counted before the password is looked at, so parallel guesses do not slip by.

    Raises: UnauthenticatedError when name or password is wrong (it does not say which); UnavailableError `rate-limited`.
    """
    subjects = (f"account/{name[:100]}", f"address/{address[:100]}")
    with database.transaction() as tx:
        _count_attempt(tx, tenant, subjects, now)
        known = store.get_password_hash(tx, tenant, name)
        user = store.find_user(tx, tenant, name)
    is_right = _matches(known or _dummy_hash(), password) and known is not None
    if not is_right or user is None or not user.is_active:
        raise UnauthenticatedError("Name or password is wrong.")
    with database.transaction() as tx:
        store.clear_failures(tx, tenant, subjects[0])
        store.forgive_failure(tx, tenant, subjects[1])
        store.save_login(tx, tenant, user.name, now)
    return user


def log_in(database: Database, *, tenant: TenantId, name: str, password: str, address: str, now: datetime, at: datetime) -> NewSession:
    """A new session of the account, under a new cookie. Raises: as `check_login`."""
    user = check_login(database, tenant=tenant, name=name, password=password, address=address, now=now)
    cookie = secrets.token_urlsafe(32)
    session = Session(user.tenant, _sha256(cookie), user.name, secrets.token_urlsafe(24), now, now, now + SESSION_LIFE)
    with database.transaction() as tx:
        store.delete_ended_sessions(tx, now, seen_before=now - SESSION_IDLE)
        store.add_session(tx, session)
        audit.append(tx, tenant=user.tenant, actor=person(user.name), action="user.logged-in", subject=f"user/{user.name}", now=at)
    return NewSession(session, cookie)


def find_session(database: Database, cookie: str, *, now: datetime, is_use: bool = True) -> tuple[Session, User] | None:
    """The session and the account of a cookie, or None when it is unknown or over. A look that is no use does not prolong it."""
    with database.reading() as tx:
        session = store.find_session(tx, _sha256(cookie))
        user = store.find_user(tx, session.tenant, session.user_name) if session else None
    if session is None or user is None or not user.is_active:
        return None
    if now >= session.ends_at or now - session.seen_at >= SESSION_IDLE:
        return None
    if is_use and now - session.seen_at >= TOUCH_EVERY:
        with database.transaction() as tx:
            store.touch_session(tx, session, now)
    return session, user


def log_out(database: Database, cookie: str) -> None:
    """End the session of a cookie."""
    with database.transaction() as tx:
        store.delete_session(tx, _sha256(cookie))


# --- users ---


def ensure_first_admin(database: Database, *, tenant: TenantId, now: datetime, name: str = "admin") -> FirstAdmin | None:
    """Make the first account, `admin`, when the tenant has none; returns its one-time password, or None when there were accounts."""
    password = generate_password()
    hashed = hash_password(password)
    with database.transaction() as tx:
        if store.count_users(tx, tenant):
            return None
        user = User(tenant, check_name(name, what="User name"), "First administrator", frozenset({"admin"}), True, True, now, None, 1)
        store.add_user(tx, user, password_hash=hashed)
        service = Actor(ActorKind.SERVICE, "first-start")
        detail = {"permissions": ["admin"]}
        audit.append(tx, tenant=tenant, actor=service, action="user.created", subject=f"user/{name}", now=now, detail=detail)
    return FirstAdmin(name, password)


def create_user(
    database: Database,
    *,
    tenant: TenantId,
    name: str,
    display_name: str,
    password: str,
    permissions: Iterable[str],
    by: Actor,
    at: datetime,
    must_change: bool = True,
) -> User:
    """Add an account. Raises: InvalidError for a bad name, password or permission; ConflictError when the name is taken."""
    check_name(name, what="User name")
    check_password(password, name=name)
    user = User(tenant, name, display_name or name, check_permissions(permissions), True, must_change, at, None, 1)
    hashed = hash_password(password)
    with database.transaction() as tx:
        store.add_user(tx, user, password_hash=hashed)
        _audit_user(tx, user, "user.created", by, at)
    return user


def change_user(
    database: Database,
    *,
    tenant: TenantId,
    name: str,
    by: Actor,
    at: datetime,
    expected: int | None,
    permissions: Iterable[str] | None = None,
    is_active: bool | None = None,
    reason: str = "",
) -> User:
    """The account with other permissions, or switched off; its sessions end. Raises: NotFoundError, StaleRevisionError, InvalidError."""
    with database.transaction() as tx:
        user = store.get_user(tx, tenant, name)
        check_revision(user.revision, expected, what=f"User {name!r}")
        changed = replace(
            user,
            permissions=user.permissions if permissions is None else check_permissions(permissions),
            is_active=user.is_active if is_active is None else is_active,
        )
        store.save_user(tx, changed)
        store.delete_sessions_of(tx, tenant, name)
        _audit_user(tx, changed, "user.changed", by, at, reason)
        return store.get_user(tx, tenant, name)


def change_password(database: Database, *, tenant: TenantId, name: str, old: str, new: str, by: Actor, at: datetime) -> None:
    """Replace a person's own password and end all sessions of theirs. Raises: UnauthenticatedError, InvalidError."""
    check_password(new, name=name)
    with database.reading() as tx:
        known = store.get_password_hash(tx, tenant, name)
    if not _matches(known or _dummy_hash(), old) or known is None:
        raise UnauthenticatedError("The old password is wrong.")
    if hmac.compare_digest(old.encode(), new.encode()):
        raise InvalidError("The new password is the old one.", hint="Choose another.")
    hashed = hash_password(new)
    with database.transaction() as tx:
        store.save_password(tx, tenant, name, hashed, must_change=False)
        store.delete_sessions_of(tx, tenant, name)
        audit.append(tx, tenant=tenant, actor=by, action="user.password-changed", subject=f"user/{name}", now=at)


# --- API tokens ---


def create_token(
    database: Database,
    *,
    tenant: TenantId,
    owner: str,
    name: str,
    scopes: Iterable[str],
    days: float,
    by: Actor,
    now: datetime,
    at: datetime,
) -> NewToken:
    """A new API token of the owner; its text is in the answer and nowhere else.

    Raises: InvalidError for an unknown scope or a life that is not 0 < days ≤ 366; NotFoundError when there is no such owner.
    """
    chosen = check_scopes(scopes)
    if not 0 < days <= TOKEN_MAX_DAYS:
        raise InvalidError(f"A token's life of {days:g} days is not allowed.", hint=f"Wanted: more than 0, at most {TOKEN_MAX_DAYS}.")
    secret = secrets.token_urlsafe(32)
    token = ApiToken(tenant, new_id("tk"), name[:200], owner, _sha256(secret), chosen, now, now + timedelta(days=days), None, None, 1)
    with database.transaction() as tx:
        store.get_user(tx, tenant, owner)
        store.add_token(tx, token)
        detail = {"name": token.name, "owner": owner, "scopes": sorted(chosen), "expires_at": token.expires_at.isoformat()}
        audit.append(tx, tenant=tenant, actor=by, action="token.created", subject=f"token/{token.token_id}", now=at, detail=detail)
    return NewToken(token, f"{TOKEN_PREFIX}.{token.token_id}.{secret}")


def find_token(database: Database, text: str, *, now: datetime) -> tuple[ApiToken, User] | None:
    """The API token of this text and its owner's account, or None when it is unknown, expired, revoked or its owner is inactive."""
    parts = text.split(".")
    if len(parts) != 3 or parts[0] != TOKEN_PREFIX or len(text) > 300:
        return None
    with database.reading() as tx:
        token = store.find_token(tx, parts[1])
        owner = store.find_user(tx, token.tenant, token.owner) if token else None
    if token is None or not hmac.compare_digest(token.secret_sha256, _sha256(parts[2])):
        return None
    if token.revoked_at is not None or now >= token.expires_at or owner is None or not owner.is_active:
        return None
    if token.last_used_at is None or now - token.last_used_at >= TOUCH_EVERY:
        with database.transaction() as tx:
            store.touch_token(tx, token, now)
    return token, owner


def revoke_token(
    database: Database, *, tenant: TenantId, token_id: str, owner: str | None, by: Actor, now: datetime, at: datetime, reason: str = ""
) -> None:
    """End a token at once; only a token of `owner`, when one is given. Raises: NotFoundError."""
    with database.transaction() as tx:
        token = store.find_token(tx, token_id)
        if token is None or token.tenant != tenant or (owner is not None and token.owner != owner):
            raise NotFoundError(f"There is no API token {token_id!r}.")
        store.revoke_token(tx, tenant, token_id, now)
        audit.append(tx, tenant=tenant, actor=by, action="token.revoked", subject=f"token/{token_id}", now=at, reason=reason)


# --- words and checks ---


def person(name: str) -> Actor:
    """The actor that a user is."""
    return Actor(ActorKind.PERSON, name)


def generate_password() -> str:
    """A new random password of 100 bits that is easy to read aloud: four groups of letters and digits."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))


def check_password(password: str, *, name: str) -> None:
    """Nothing when the password may be used. Raises: InvalidError that names the rule, never the password."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise InvalidError(
            f"The password has {len(password)} characters.", hint=f"Wanted: {MIN_PASSWORD} to {MAX_PASSWORD}; a sentence is fine."
        )
    if password.lower() == name.lower() * (len(password) // max(1, len(name))):
        raise InvalidError("The password is made of the user name.", hint="Choose one that does not contain the name.")


def hash_password(password: str) -> str:
    """The argon2id hash of a password (RFC 9106, second recommended option)."""
    return _hasher().hash(password)


def check_permissions(names: Iterable[str]) -> frozenset[str]:
    """The permissions themselves. Raises: InvalidError naming one that does not exist."""
    chosen = frozenset(names)
    for name in sorted(chosen - set(PERMISSIONS)):
        raise InvalidError(f"There is no permission {name!r}.", hint=f"Known: {', '.join(PERMISSIONS)}.")
    return chosen


def check_scopes(names: Iterable[str]) -> frozenset[str]:
    """The scopes themselves. Raises: InvalidError naming one that does not exist, or when there are none."""
    chosen = frozenset(names)
    for name in sorted(chosen - set(SCOPES)):
        raise InvalidError(f"There is no scope {name!r}.", hint=f"Known: {', '.join(SCOPES)}.")
    if not chosen:
        raise InvalidError("A token without scopes can do nothing.", hint=f"Known: {', '.join(SCOPES)}.")
    return chosen


def _count_attempt(tx: Connection, tenant: TenantId, subjects: tuple[str, str], now: datetime) -> None:
    since = now - FAILURE_WINDOW
    for subject, most in zip(subjects, (FAILURES_PER_ACCOUNT, FAILURES_PER_ADDRESS), strict=True):
        if store.count_failures(tx, tenant, subject, since=since) >= most:
            raise UnavailableError(
                "Too many failed logins; wait before the next try.", retry_after_s=FAILURE_WINDOW.total_seconds(), code="rate-limited"
            )
    for subject in subjects:
        store.add_failure(tx, tenant, subject, now, since=since)


def _audit_user(tx: Connection, user: User, action: str, by: Actor, at: datetime, reason: str = "") -> None:
    detail = {"permissions": sorted(user.permissions), "is_active": user.is_active}
    audit.append(tx, tenant=user.tenant, actor=by, action=action, subject=f"user/{user.name}", now=at, reason=reason, detail=detail)


@cache
def _hasher() -> argon2.PasswordHasher:
    return argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)


@cache
def _dummy_hash() -> str:
    return hash_password(secrets.token_urlsafe(16))


def _matches(known: str, password: str) -> bool:
    if len(password) > MAX_PASSWORD:
        return False
    try:
        return _hasher().verify(known, password)
    except argon2.exceptions.VerifyMismatchError:
        return False


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
