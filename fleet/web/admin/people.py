"""Users, API tokens, logging in and out, and who one is."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from fleet.governance.permissions import SCOPES, allows
from fleet.web import accounts, rest
from fleet.web import store as web_store
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, client_address, require, services_of
from fleet.web.rest import Page, page_of
from fleet.web.store import ApiToken, User
from protocol.errors import ForbiddenError

router = APIRouter(tags=["people"])
#: A login by `mooring login` holds so long unless asked otherwise, days; and the most that is given.
LOGIN_DAYS, LOGIN_MAX_DAYS = 7.0, 31.0


class Login(Body):
    """A person's name and password, for an API token with all that the person may."""

    name: ShortText
    password: ShortText
    token_name: ShortText = "login"  # noqa: S105 - a label
    days: Annotated[float, Field(gt=0, le=LOGIN_MAX_DAYS)] = LOGIN_DAYS


class NewUser(Body):
    """An account; without a password one is made and answered once."""

    name: ShortText
    display_name: ShortText = ""
    permissions: Annotated[list[ShortText], Field(min_length=1, max_length=10)]
    password: ShortText | None = None
    #: Whether the console asks the person to choose another one.
    must_change_password: bool = True


class UserChange(Body):
    """What of an account may change."""

    permissions: Annotated[list[ShortText], Field(min_length=1, max_length=10)] | None = None
    is_active: bool | None = None
    reason: Reason = ""


class NewApiToken(Body):
    """An API token of the caller's own."""

    name: ShortText
    scopes: Annotated[list[ShortText], Field(min_length=1, max_length=100)]
    days: float = accounts.TOKEN_DAYS


@router.post("/login")
def log_in(request: Request, body: Login) -> Response:
    """Name and password against an API token that may do all that the person may. Limited per account and address."""
    services = services_of(request)
    now = services.system_now()
    user = accounts.check_login(
        services.database, tenant=services.tenant, name=body.name, password=body.password, address=client_address(request), now=now
    )
    scopes = [scope for scope in SCOPES if allows(user.permissions, scope)]
    made = accounts.create_token(
        services.database,
        tenant=user.tenant,
        owner=user.name,
        name=body.token_name,
        scopes=scopes,
        days=body.days,
        by=accounts.person(user.name),
        now=now,
        at=services.clock.now(),
    )
    return rest.one({**_token_json(made.token), "token": made.text}, status=201)


@router.post("/logout", status_code=204)
def log_out(request: Request, caller: Annotated[Caller, Depends(require("account:write"))]) -> Response:
    """Revoke the API token that this request came with."""
    services = services_of(request)
    if caller.token_id is not None:
        accounts.revoke_token(
            services.database,
            tenant=caller.tenant,
            token_id=caller.token_id,
            owner=caller.name,
            by=caller.actor,
            now=services.system_now(),
            at=services.clock.now(),
            reason="logged out",
        )
    return Response(status_code=204)


@router.get("/me")
def who_am_i(caller: Annotated[Caller, Depends(require("account:write"))]) -> Response:
    """Who the caller is and what they may do."""
    may = [scope for scope in SCOPES if caller.may(scope)]
    return rest.one({"name": caller.name, "tenant": caller.tenant, "permissions": rest.joined(caller.permissions), "may": may})


@router.get("/users")
def list_users(
    request: Request, caller: Annotated[Caller, Depends(require("users:read"))], page: Annotated[Page, Depends(page_of)]
) -> Response:
    """Accounts by name."""
    with services_of(request).database.reading() as tx:
        found = web_store.list_users(tx, caller.tenant, after=page.after or "", limit=page.limit + 1)
    return rest.listed(request, page, found, key=lambda user: user.name, render=_user_json)


@router.get("/users/{name}")
def get_user(request: Request, name: str, caller: Annotated[Caller, Depends(require("users:read"))]) -> Response:
    """One account."""
    with services_of(request).database.reading() as tx:
        user = web_store.get_user(tx, caller.tenant, name)
    return rest.one(_user_json(user), revision=user.revision)


@router.post("/users")
def create_user(request: Request, body: NewUser, caller: Annotated[Caller, Depends(require("users:write"))]) -> Response:
    """Add an account. The password is in the answer only when it was made here."""
    services = services_of(request)
    password = body.password or accounts.generate_password()
    user = accounts.create_user(
        services.database,
        tenant=caller.tenant,
        name=body.name,
        display_name=body.display_name,
        password=password,
        permissions=body.permissions,
        by=caller.actor,
        at=services.clock.now(),
        must_change=body.must_change_password,
    )
    document = {**_user_json(user), **({} if body.password else {"password": password})}
    return rest.one(document, revision=user.revision, status=201, location=f"/api/v1/users/{user.name}")


@router.patch("/users/{name}")
def change_user(request: Request, name: str, body: UserChange, caller: Annotated[Caller, Depends(require("users:write"))]) -> Response:
    """Change permissions or switch an account off; its sessions end."""
    services = services_of(request)
    user = accounts.change_user(
        services.database,
        tenant=caller.tenant,
        name=name,
        by=caller.actor,
        at=services.clock.now(),
        expected=rest.expected_revision(request),
        permissions=body.permissions,
        is_active=body.is_active,
        reason=body.reason,
    )
    return rest.one(_user_json(user), revision=user.revision)


@router.get("/tokens")
def list_tokens(
    request: Request, caller: Annotated[Caller, Depends(require("account:write"))], page: Annotated[Page, Depends(page_of)]
) -> Response:
    """The caller's own tokens; all of the tenant for those who may read them."""
    owner = None if caller.may("tokens:read") else caller.name
    with services_of(request).database.reading() as tx:
        found = web_store.list_tokens(tx, caller.tenant, owner=owner, after=page.after or "", limit=page.limit + 1)
    return rest.listed(request, page, found, key=lambda token: token.token_id, render=_token_json)


@router.post("/tokens")
def create_token(request: Request, body: NewApiToken, caller: Annotated[Caller, Depends(require("account:write"))]) -> Response:
    """Make a token of one's own; its text is in this answer and nowhere else."""
    services = services_of(request)
    made = accounts.create_token(
        services.database,
        tenant=caller.tenant,
        owner=caller.name,
        name=body.name,
        scopes=_within(caller, body.scopes),
        days=body.days,
        by=caller.actor,
        now=services.system_now(),
        at=services.clock.now(),
    )
    return rest.one({**_token_json(made.token), "token": made.text}, status=201, location=f"/api/v1/tokens/{made.token.token_id}")


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(
    request: Request, token_id: str, caller: Annotated[Caller, Depends(require("account:write"))], body: ReasonBody | None = None
) -> Response:
    """End a token at once: one's own, or anybody's for those who may change tokens."""
    services = services_of(request)
    accounts.revoke_token(
        services.database,
        tenant=caller.tenant,
        token_id=token_id,
        owner=None if caller.may("tokens:write") else caller.name,
        by=caller.actor,
        now=services.system_now(),
        at=services.clock.now(),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


def _within(caller: Caller, scopes: list[str]) -> list[str]:
    """The scopes, when the caller has them all. Raises: ForbiddenError, InvalidError."""
    checked = accounts.check_scopes(scopes)
    for scope in sorted(checked):
        if not caller.may(scope):
            raise ForbiddenError(f"{caller.name} may not do {scope}, so no token of theirs may.")
    return scopes


def _user_json(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "display_name": user.display_name,
        "permissions": rest.joined(user.permissions),
        "is_active": user.is_active,
        "must_change_password": user.must_change_password,
        "created_at": rest.iso(user.created_at),
        "last_login_at": rest.iso(user.last_login_at),
        "revision": user.revision,
    }


def _token_json(token: ApiToken) -> dict[str, object]:
    return {
        "token_id": token.token_id,
        "name": token.name,
        "owner": token.owner,
        "scopes": rest.joined(token.scopes),
        "created_at": rest.iso(token.created_at),
        "expires_at": rest.iso(token.expires_at),
        "revoked_at": rest.iso(token.revoked_at),
        "last_used_at": rest.iso(token.last_used_at),
    }
