"""Users, sessions, API tokens, login failures and idempotency keys: the only SQL of the web floor, one function per question.

No secret is stored that could be used again: passwords as argon2, session cookies and API tokens as sha256.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fleet import db
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import TenantId

users = sa.Table(
    "users",
    db.metadata,
    db.tenant_column(),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("display_name", sa.String(200), nullable=False),
    sa.Column("password_hash", sa.String(300), nullable=False),
    # space separated
    sa.Column("permissions", sa.String(200), nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("must_change_password", sa.Boolean, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("last_login_at", db.utc),
    db.revision_column(),
)

sessions = sa.Table(
    "sessions",
    db.metadata,
    db.tenant_column(),
    # sha256 hex of the cookie's value; the value itself is nowhere
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("user_name", sa.String(63), nullable=False),
    sa.Column("csrf_token", sa.String(64), nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("seen_at", db.utc, nullable=False),
    sa.Column("ends_at", db.utc, nullable=False),
    sa.UniqueConstraint("token_sha256"),
    sa.Index("ix_sessions_user_name", "tenant", "user_name"),
    sa.Index("ix_sessions_ends_at", "ends_at"),
)

api_tokens = sa.Table(
    "api_tokens",
    db.metadata,
    db.tenant_column(),
    sa.Column("token_id", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("owner", sa.String(63), nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    # space separated
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Column("expires_at", db.utc, nullable=False),
    sa.Column("revoked_at", db.utc),
    sa.Column("last_used_at", db.utc),
    db.revision_column(),
    sa.UniqueConstraint("token_id"),
)

login_failures = sa.Table(
    "login_failures",
    db.metadata,
    db.tenant_column(),
    # "account/<name>" or "address/<ip>"
    sa.Column("subject", sa.String(200), primary_key=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("since", db.utc, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    db.metadata,
    db.tenant_column(),
    sa.Column("caller", sa.String(200), primary_key=True),
    sa.Column("idempotency_key", sa.String(200), primary_key=True),
    # sha256 hex of method, path and body
    sa.Column("request_sha256", sa.String(64), nullable=False),
    # 0 while the first request is still running
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("headers", db.json_type, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", db.utc, nullable=False),
    sa.Index("ix_idempotency_keys_created_at", "created_at"),
)


@dataclass(frozen=True, slots=True)
class User:
    """One person's account."""

    tenant: TenantId
    name: str
    display_name: str
    permissions: frozenset[str]
    is_active: bool
    must_change_password: bool
    created_at: datetime
    last_login_at: datetime | None
    revision: int


@dataclass(frozen=True, slots=True)
class Session:
    """One logged-in browser; `token_sha256` names it, the cookie's value is not kept."""

    tenant: TenantId
    token_sha256: str
    user_name: str
    csrf_token: str
    created_at: datetime
    seen_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class ApiToken:
    """One machine's key; its secret was shown once."""

    tenant: TenantId
    token_id: str
    name: str
    owner: str
    secret_sha256: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    revision: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer that an Idempotency-Key already got; status 0 while the first request still runs."""

    request_sha256: str
    status: int
    headers: dict[str, str]
    body: bytes
    created_at: datetime


# --- users ---


def find_user(tx: db.Connection, tenant: TenantId, name: str) -> User | None:
    """The account, or None."""
    row = tx.execute(sa.select(users).where(users.c.tenant == tenant, users.c.name == name)).mappings().one_or_none()
    return _user(row) if row else None


def get_user(tx: db.Connection, tenant: TenantId, name: str) -> User:
    """The account. Raises: NotFoundError."""
    user = find_user(tx, tenant, name)
    if user is None:
        raise NotFoundError(f"There is no user {name!r}.")
    return user


def list_users(tx: db.Connection, tenant: TenantId, *, after: str = "", limit: int = 50) -> list[User]:
    """Accounts by name, those after `after`."""
    statement = sa.select(users).where(users.c.tenant == tenant, users.c.name > after).order_by(users.c.name).limit(limit)
    return [_user(row) for row in tx.execute(statement).mappings()]


def count_users(tx: db.Connection, tenant: TenantId) -> int:
    """How many accounts the tenant has."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(users).where(users.c.tenant == tenant)).scalar_one())


def get_password_hash(tx: db.Connection, tenant: TenantId, name: str) -> str | None:
    """The argon2 hash of the account, or None when there is no such account."""
    return tx.execute(sa.select(users.c.password_hash).where(users.c.tenant == tenant, users.c.name == name)).scalar_one_or_none()


def add_user(tx: db.Connection, user: User, *, password_hash: str) -> None:
    """Add an account. Raises: ConflictError when the name is taken."""
    row = {
        "tenant": user.tenant,
        "name": user.name,
        "display_name": user.display_name,
        "password_hash": password_hash,
        "permissions": " ".join(sorted(user.permissions)),
        "is_active": user.is_active,
        "must_change_password": user.must_change_password,
        "created_at": user.created_at,
        "last_login_at": user.last_login_at,
        "revision": user.revision,
    }
    if not db.insert_ignore(tx, users, row):
        raise ConflictError(f"There is already a user {user.name!r}.", hint="Choose another name.")


def save_user(tx: db.Connection, user: User) -> None:
    """Store what of an account may change; its revision grows by one."""
    values = {
        "display_name": user.display_name,
        "permissions": " ".join(sorted(user.permissions)),
        "is_active": user.is_active,
        "revision": users.c.revision + 1,
    }
    tx.execute(sa.update(users).where(users.c.tenant == user.tenant, users.c.name == user.name).values(**values))


def save_password(tx: db.Connection, tenant: TenantId, name: str, password_hash: str, *, must_change: bool) -> None:
    """Replace the password's hash; the account's revision grows by one."""
    values = {"password_hash": password_hash, "must_change_password": must_change, "revision": users.c.revision + 1}
    tx.execute(sa.update(users).where(users.c.tenant == tenant, users.c.name == name).values(**values))


def save_login(tx: db.Connection, tenant: TenantId, name: str, now: datetime) -> None:
    """Remember when the account was last logged in to."""
    tx.execute(sa.update(users).where(users.c.tenant == tenant, users.c.name == name).values(last_login_at=now))


# --- sessions ---


def add_session(tx: db.Connection, session: Session) -> None:
    """Add a session."""
    row = {name: getattr(session, name) for name in Session.__slots__}
    tx.execute(sa.insert(sessions), row)


def find_session(tx: db.Connection, token_sha256: str) -> Session | None:
    """The session of a cookie, over all tenants: the cookie is what says which tenant it is."""
    row = tx.execute(sa.select(sessions).where(sessions.c.token_sha256 == token_sha256)).mappings().one_or_none()
    return Session(**row) if row else None


def touch_session(tx: db.Connection, session: Session, now: datetime) -> None:
    """Remember that the session was used."""
    tx.execute(sa.update(sessions).where(sessions.c.token_sha256 == session.token_sha256).values(seen_at=now))


def delete_session(tx: db.Connection, token_sha256: str) -> None:
    """End one session."""
    tx.execute(sa.delete(sessions).where(sessions.c.token_sha256 == token_sha256))


def delete_sessions_of(tx: db.Connection, tenant: TenantId, user_name: str) -> None:
    """End all sessions of a person."""
    tx.execute(sa.delete(sessions).where(sessions.c.tenant == tenant, sessions.c.user_name == user_name))


def delete_ended_sessions(tx: db.Connection, now: datetime, *, seen_before: datetime) -> None:
    """Forget sessions that are over."""
    tx.execute(sa.delete(sessions).where(sa.or_(sessions.c.ends_at <= now, sessions.c.seen_at <= seen_before)))


# --- API tokens ---


def add_token(tx: db.Connection, token: ApiToken) -> None:
    """Add an API token."""
    row: dict[str, Any] = {name: getattr(token, name) for name in ApiToken.__slots__}
    tx.execute(sa.insert(api_tokens), {**row, "scopes": " ".join(sorted(token.scopes))})


def find_token(tx: db.Connection, token_id: str) -> ApiToken | None:
    """The token of this id, over all tenants, or None."""
    row = tx.execute(sa.select(api_tokens).where(api_tokens.c.token_id == token_id)).mappings().one_or_none()
    return _token(row) if row else None


def list_tokens(tx: db.Connection, tenant: TenantId, *, owner: str | None = None, after: str = "", limit: int = 50) -> list[ApiToken]:
    """Tokens by id, those after `after`, of one owner when given."""
    statement = sa.select(api_tokens).where(api_tokens.c.tenant == tenant, api_tokens.c.token_id > after)
    if owner is not None:
        statement = statement.where(api_tokens.c.owner == owner)
    return [_token(row) for row in tx.execute(statement.order_by(api_tokens.c.token_id).limit(limit)).mappings()]


def revoke_token(tx: db.Connection, tenant: TenantId, token_id: str, now: datetime) -> None:
    """End a token; its revision grows by one."""
    chosen = sa.and_(api_tokens.c.tenant == tenant, api_tokens.c.token_id == token_id, api_tokens.c.revoked_at.is_(None))
    tx.execute(sa.update(api_tokens).where(chosen).values(revoked_at=now, revision=api_tokens.c.revision + 1))


def touch_token(tx: db.Connection, token: ApiToken, now: datetime) -> None:
    """Remember that the token was used."""
    chosen = sa.and_(api_tokens.c.tenant == token.tenant, api_tokens.c.token_id == token.token_id)
    tx.execute(sa.update(api_tokens).where(chosen).values(last_used_at=now))


# --- login failures ---


def count_failures(tx: db.Connection, tenant: TenantId, subject: str, *, since: datetime) -> int:
    """Failed logins of an account or an address in the window that began at or after `since`."""
    chosen = sa.and_(login_failures.c.tenant == tenant, login_failures.c.subject == subject, login_failures.c.since >= since)
    return tx.execute(sa.select(login_failures.c.failures).where(chosen)).scalar_one_or_none() or 0


def add_failure(tx: db.Connection, tenant: TenantId, subject: str, now: datetime, *, since: datetime) -> None:
    """Count one more failed login; a window that began before `since` begins anew."""
    tx.execute(sa.delete(login_failures).where(login_failures.c.since < since))
    added = db.insert_ignore(tx, login_failures, {"tenant": tenant, "subject": subject, "failures": 1, "since": now})
    if not added:
        chosen = sa.and_(login_failures.c.tenant == tenant, login_failures.c.subject == subject)
        tx.execute(sa.update(login_failures).where(chosen).values(failures=login_failures.c.failures + 1))


def forgive_failure(tx: db.Connection, tenant: TenantId, subject: str) -> None:
    """Take one failure back: the attempt it was counted for succeeded."""
    chosen = sa.and_(login_failures.c.tenant == tenant, login_failures.c.subject == subject)
    tx.execute(sa.update(login_failures).where(chosen).values(failures=login_failures.c.failures - 1))


def clear_failures(tx: db.Connection, tenant: TenantId, subject: str) -> None:
    """Forget the failures of an account or an address."""
    tx.execute(sa.delete(login_failures).where(login_failures.c.tenant == tenant, login_failures.c.subject == subject))


# --- idempotency keys ---


def claim_key(
    tx: db.Connection, tenant: TenantId, caller: str, key: str, *, request_sha256: str, now: datetime, since: datetime
) -> Remembered | None:
    """None when this request is the first with the key (it is now claimed); else what the first one got."""
    tx.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.created_at < since))
    row = {
        "tenant": tenant,
        "caller": caller,
        "idempotency_key": key,
        "request_sha256": request_sha256,
        "status": 0,
        "headers": {},
        "body": b"",
        "created_at": now,
    }
    if db.insert_ignore(tx, idempotency_keys, row):
        return None
    found = tx.execute(sa.select(idempotency_keys).where(_key(tenant, caller, key))).mappings().one()
    return Remembered(found["request_sha256"], found["status"], dict(found["headers"]), bytes(found["body"]), found["created_at"])


def save_answer(
    tx: db.Connection, tenant: TenantId, caller: str, key: str, *, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Keep the answer for whoever repeats the request."""
    values = {"status": status, "headers": dict(headers), "body": body}
    tx.execute(sa.update(idempotency_keys).where(_key(tenant, caller, key)).values(**values))


def release_key(tx: db.Connection, tenant: TenantId, caller: str, key: str) -> None:
    """Forget a key whose request failed: it may be tried again."""
    tx.execute(sa.delete(idempotency_keys).where(_key(tenant, caller, key)))


def _key(tenant: TenantId, caller: str, key: str) -> sa.ColumnElement[bool]:
    table = idempotency_keys.c
    return sa.and_(table.tenant == tenant, table.caller == caller, table.idempotency_key == key)


def _user(row: Mapping[Any, Any]) -> User:
    return User(
        tenant=TenantId(row["tenant"]),
        name=row["name"],
        display_name=row["display_name"],
        permissions=frozenset(row["permissions"].split()),
        is_active=row["is_active"],
        must_change_password=row["must_change_password"],
        created_at=row["created_at"],
        last_login_at=row["last_login_at"],
        revision=row["revision"],
    )


def _token(row: Mapping[Any, Any]) -> ApiToken:
    return ApiToken(
        tenant=TenantId(row["tenant"]),
        token_id=row["token_id"],
        name=row["name"],
        owner=row["owner"],
        secret_sha256=row["secret_sha256"],
        scopes=frozenset(row["scopes"].split()),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
        revision=row["revision"],
    )
