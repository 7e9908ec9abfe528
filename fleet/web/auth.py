"""Who is calling and whether they may: session cookies, API tokens, request forgery, and the ONE dependency every handler has.

`require(action)` is that dependency. An action is written like a scope, "devices:write". What a person may do follows from their
permissions (fleet.governance.permissions); a token may do what its owner may and its scopes name, never more.
"""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from fleet.audit import Actor
from fleet.governance import permissions
from fleet.web import accounts
from fleet.web.services import Services
from protocol.errors import ForbiddenError, UnauthenticatedError
from protocol.ids import TenantId

#: The prefix makes browsers refuse it without Secure, with a Domain, or from another path. Chromium and Firefox take a Secure cookie
#: over plain HTTP from loopback, which is the only place where the console is served without TLS.
COOKIE = "__Host-mooring"
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf_token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from: a person, by session or by an API token of theirs."""

    tenant: TenantId
    name: str
    permissions: frozenset[str]
    #: None for a session: everything that the person may.
    scopes: frozenset[str] | None = None
    #: Of the API token that the request came with.
    token_id: str | None = None
    csrf_token: str = ""
    must_change_password: bool = False

    @property
    def actor(self) -> Actor:
        """Who the audit log names. A token acts as its owner, so that nobody decides on their own work through one."""
        return accounts.person(self.name)

    def may(self, action: str) -> bool:
        """Whether the caller may do it."""
        return permissions.allows(self.permissions, action) and (self.scopes is None or action in self.scopes)


def require(action: str) -> Callable[[Request], Awaitable[Caller]]:
    """The dependency that returns the caller who may do the action.

    Raises, when the request comes: UnauthenticatedError; ForbiddenError naming what is missing.
    """
    permissions.check_action(action)

    async def checked(request: Request) -> Caller:
        caller = await run_in_threadpool(identify, request)
        if request.method not in SAFE_METHODS and caller.scopes is None:
            await check_forgery(request, caller)
        if not caller.may(action):
            raise ForbiddenError(
                f"{caller.name} may not do {action}.",
                # a login's token has the scopes of its owner, so that what he may not do himself says more than the scope that it lacks
                hint="The API token lacks that scope."
                if permissions.allows(caller.permissions, action)
                else f"Ask an administrator for one of: {', '.join(sorted(permissions.granting(action)))}.",
            )
        return caller

    return checked


def identify(request: Request) -> Caller:
    """The caller of a request. Raises: UnauthenticatedError when there is no valid session and no valid token."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is None:
        known = _from_token(request) or _from_cookie(request)
    if known is None:
        raise UnauthenticatedError("Nobody is logged in.", hint="Log in, or send an API token as 'Authorization: Bearer …'.")
    request.state.caller = known
    return known


def is_still_valid(request: Request) -> bool:
    """Whether the session or token that a long stream began with holds; asking does not prolong a session."""
    try:
        return (_from_token(request) or _from_cookie(request, is_use=False)) is not None
    except UnauthenticatedError:
        return False


async def check_forgery(request: Request, caller: Caller) -> None:
    """Nothing when a changing request with a cookie comes from our own pages. Raises: ForbiddenError."""
    check_origin(request)
    given = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        field = (await request.form()).get(CSRF_FIELD)
        given = field if isinstance(field, str) else None
    if given is None or not hmac.compare_digest(given.encode(), caller.csrf_token.encode()):
        raise ForbiddenError("The request does not carry this session's token.", hint="Reload the page and try again.")


def check_origin(request: Request) -> None:
    """Nothing when the browser says that the request comes from our own site. Raises: ForbiddenError."""
    origin, fetch_site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is None and fetch_site is None:
        raise ForbiddenError("The request names no origin.", hint="Browsers send one; programs use an API token.")
    is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
    if not is_own or fetch_site not in {None, "same-origin"}:
        raise ForbiddenError(f"The request comes from another site: {str(origin)[:200]}.")


def services_of(request: Request) -> Services:
    """What the handlers work with."""
    services: Services = request.app.state.services
    return services


def set_cookie(response: Response, value: str) -> None:
    """Hand the session to the browser, out of reach of scripts and other sites."""
    response.set_cookie(COOKIE, value, secure=True, httponly=True, samesite="lax", path="/")


def clear_cookie(response: Response) -> None:
    """Take the session away from the browser."""
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax", path="/")


def client_address(request: Request) -> str:
    """Where the request came from, for counting failed logins."""
    return request.client.host if request.client else "unknown"


def _from_token(request: Request) -> Caller | None:
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if not text:
        return None
    services = services_of(request)
    found = accounts.find_token(services.database, text.strip(), now=services.system_now()) if kind.lower() == "bearer" else None
    if found is None:
        raise UnauthenticatedError("The API token is not valid.", hint="It may have ended or been revoked: mooring token create.")
    token, owner = found
    return Caller(owner.tenant, owner.name, owner.permissions, token.scopes, token.token_id)


def _from_cookie(request: Request, *, is_use: bool = True) -> Caller | None:
    value = request.cookies.get(COOKIE)
    if not value:
        return None
    services = services_of(request)
    found = accounts.find_session(services.database, value, now=services.system_now(), is_use=is_use)
    if found is None:
        return None
    session, user = found
    return Caller(user.tenant, user.name, user.permissions, csrf_token=session.csrf_token, must_change_password=user.must_change_password)
