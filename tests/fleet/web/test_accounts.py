"""Accounts and tokens: what a session lasts, what wrong passwords cost, what is kept of secrets."""

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from simulators.clock import START

from fleet import audit
from fleet.db import Database
from fleet.web import accounts, store
from protocol.errors import ConflictError, InvalidError, NotFoundError, StaleRevisionError, UnauthenticatedError, UnavailableError
from protocol.ids import TenantId

T0 = TenantId("t0")
ADMIN = accounts.person("root")
PASSWORD = "a long enough sentence"


@pytest.fixture
def ola(database: Database) -> store.User:
    return accounts.create_user(
        database, tenant=T0, name="ola", display_name="", password=PASSWORD, permissions=["operator"], by=ADMIN, at=START
    )


def log_in(database: Database, password: str = PASSWORD, *, now: datetime = START, name: str = "ola", address: str = "10.0.0.1"):
    return accounts.log_in(database, tenant=T0, name=name, password=password, address=address, now=now, at=now)


@pytest.mark.usefixtures("ola")
def test_a_session_ends_when_idle_and_after_half_a_day(database: Database):
    made = log_in(database)
    moment = START
    for _ in range(24):  # used every 29 minutes
        moment += timedelta(minutes=29)
        found = accounts.find_session(database, made.cookie, now=moment)
        assert (found is not None) == (moment - START < accounts.SESSION_LIFE)
    idle = log_in(database)
    assert accounts.find_session(database, idle.cookie, now=START + timedelta(minutes=29)) is not None
    assert accounts.find_session(database, idle.cookie, now=START + timedelta(minutes=29 + 30)) is None


@pytest.mark.usefixtures("ola")
def test_looking_at_a_live_page_does_not_prolong_a_session(database: Database):
    made = log_in(database)
    assert accounts.find_session(database, made.cookie, now=START + timedelta(minutes=20), is_use=False) is not None
    assert accounts.find_session(database, made.cookie, now=START + timedelta(minutes=31), is_use=False) is None


@pytest.mark.usefixtures("ola")
def test_neither_cookie_nor_token_nor_password_is_stored(database: Database):
    session = log_in(database)
    token = accounts.create_token(
        database, tenant=T0, owner="ola", name="ci", scopes=["devices:read"], days=1, by=ADMIN, now=START, at=START
    )
    secrets = (session.cookie, token.text, token.text.rpartition(".")[2], PASSWORD)
    with database.reading() as tx:
        for table in (store.users, store.sessions, store.api_tokens, audit.entries):
            stored = repr(tx.execute(sa.select(table)).all())
            assert not any(secret in stored for secret in secrets), table.name
        assert store.get_password_hash(tx, T0, "ola").startswith("$argon2id$")


@pytest.mark.usefixtures("ola")
def test_guessing_is_stopped_per_account_and_the_right_password_waits_too(database: Database):
    for attempt in range(accounts.FAILURES_PER_ACCOUNT):
        with pytest.raises(UnauthenticatedError):
            log_in(database, "wrong wrong wrong", address=f"10.0.0.{attempt}")
    with pytest.raises(UnavailableError) as caught:
        log_in(database)
    assert (caught.value.code, caught.value.retry_after_s) == ("rate-limited", 900.0)
    assert log_in(database, now=START + accounts.FAILURE_WINDOW + timedelta(seconds=1)).cookie


def test_guessing_names_is_stopped_per_address(database: Database):
    with database.transaction() as tx:
        for _ in range(accounts.FAILURES_PER_ADDRESS - 1):
            store.add_failure(tx, T0, "address/10.0.0.1", START, since=START - accounts.FAILURE_WINDOW)
    with pytest.raises(UnauthenticatedError):
        log_in(database, name="the-last-guess")
    with pytest.raises(UnavailableError):
        log_in(database, name="somebody-else")


@pytest.mark.usefixtures("ola")
def test_logging_in_with_the_right_password_is_no_guessing(database: Database):
    for _ in range(2):
        accounts.check_login(database, tenant=T0, name="ola", password=PASSWORD, address="10.0.0.1", now=START)
    with database.reading() as tx:
        for subject in ("account/ola", "address/10.0.0.1"):
            assert store.count_failures(tx, T0, subject, since=START) == 0


@pytest.mark.usefixtures("ola")
def test_a_wrong_name_and_a_wrong_password_answer_alike(database: Database):
    texts = set()
    for name in ("ola", "nobody"):
        with pytest.raises(UnauthenticatedError) as caught:
            log_in(database, "wrong wrong wrong", name=name)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_switching_an_account_off_ends_its_sessions_and_tokens(database: Database, ola: store.User):
    session = log_in(database)
    token = accounts.create_token(
        database, tenant=T0, owner="ola", name="ci", scopes=["devices:read"], days=1, by=ADMIN, now=START, at=START
    )
    assert accounts.find_token(database, token.text, now=START) is not None
    accounts.change_user(database, tenant=T0, name="ola", by=ADMIN, at=START, expected=ola.revision, is_active=False)
    assert accounts.find_session(database, session.cookie, now=START) is None
    assert accounts.find_token(database, token.text, now=START) is None
    with pytest.raises(UnauthenticatedError):
        log_in(database)


def test_a_change_against_an_old_revision_is_refused(database: Database, ola: store.User):
    accounts.change_user(database, tenant=T0, name="ola", by=ADMIN, at=START, expected=ola.revision, permissions=["viewer"])
    with pytest.raises(StaleRevisionError, match="revision 2"):
        accounts.change_user(database, tenant=T0, name="ola", by=ADMIN, at=START, expected=ola.revision, permissions=["admin"])


@pytest.mark.usefixtures("ola")
def test_a_token_ends_by_time_by_revocation_and_is_never_guessed(database: Database):
    made = accounts.create_token(
        database, tenant=T0, owner="ola", name="ci", scopes=["devices:read"], days=1, by=ADMIN, now=START, at=START
    )
    assert accounts.find_token(database, made.text[:-1] + ("a" if made.text[-1] != "a" else "b"), now=START) is None
    assert accounts.find_token(database, "mrt1.x", now=START) is None
    assert accounts.find_token(database, made.text, now=START + timedelta(days=1)) is None
    with pytest.raises(NotFoundError):
        accounts.revoke_token(database, tenant=T0, token_id=made.token.token_id, owner="maria", by=ADMIN, now=START, at=START)
    accounts.revoke_token(database, tenant=T0, token_id=made.token.token_id, owner="ola", by=ADMIN, now=START, at=START)
    assert accounts.find_token(database, made.text, now=START) is None


@pytest.mark.usefixtures("ola")
def test_bad_input_is_refused_with_what_is_wanted(database: Database):
    def create(**changes: object):
        values = {"name": "new", "display_name": "", "password": PASSWORD, "permissions": ["viewer"], **changes}
        return accounts.create_user(database, tenant=T0, by=ADMIN, at=START, **values)

    with pytest.raises(ConflictError, match="already a user 'ola'"):
        create(name="ola")
    with pytest.raises(InvalidError, match="Known: viewer, operator"):
        create(permissions=["god"])
    with pytest.raises(InvalidError, match="10 to 200"):
        create(password="short")
    with pytest.raises(InvalidError, match="made of the user name"):
        create(name="longname", password="longnamelongname")
    with pytest.raises(InvalidError, match="not a valid name"):
        create(name="Not A Name")
    for scopes, days in ((["nothing:read"], 1), ([], 1), (["devices:read"], 0), (["devices:read"], 5000)):
        with pytest.raises(InvalidError):
            accounts.create_token(database, tenant=T0, owner="ola", name="x", scopes=scopes, days=days, by=ADMIN, now=START, at=START)


@pytest.mark.usefixtures("ola")
def test_changing_the_password_needs_the_old_one_and_ends_all_sessions(database: Database):
    session = log_in(database)
    with pytest.raises(UnauthenticatedError):
        accounts.change_password(database, tenant=T0, name="ola", old="wrong wrong wrong", new="another sentence", by=ADMIN, at=START)
    accounts.change_password(database, tenant=T0, name="ola", old=PASSWORD, new="another sentence", by=ADMIN, at=START)
    assert accounts.find_session(database, session.cookie, now=START) is None
    assert log_in(database, "another sentence").session.user_name == "ola"


def test_only_a_tenant_without_users_gets_a_first_admin(database: Database):
    first = accounts.ensure_first_admin(database, tenant=T0, now=START)
    assert first is not None
    assert accounts.ensure_first_admin(database, tenant=T0, now=START) is None
    user = accounts.check_login(database, tenant=T0, name="admin", password=first.password, address="::1", now=START)
    assert (user.permissions, user.must_change_password) == (frozenset({"admin"}), True)
