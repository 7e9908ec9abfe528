"""The console: pages for people. Each handler parses, asks one view or calls one service function, and renders; errors are pages too."""

import base64
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from fleet import loop
from fleet.campaigns import service as campaigns
from fleet.monitoring import snapshots
from fleet.monitoring.snapshots import Snapshot
from fleet.web import accounts, auth, console_views, device_views, live, pipeline_views, problems, render
from fleet.web import store as web_store
from fleet.web.auth import Caller, require, services_of
from fleet.web.device_views import DeviceQuery
from fleet.web.pipeline_views import PipelinePage
from fleet.web.render import NavItem, Shell
from fleet.web.views import TokenRow
from protocol.errors import ConflictError, InvalidError, MooringError, NotFoundError, UnauthenticatedError
from protocol.ids import DeviceId, LineName

PAGE_SIZE = 50
#: Pages that look at every device are rendered again less often, seconds.
SLOW_S = 3.0
_NAV = (
    ("Home", "/", "house", "devices:read"),
    ("Alarms", "/alarms", "bell", "alarms:read"),
    ("Devices", "/devices", "cpu", "devices:read"),
    ("Monitoring", "/monitoring", "graph-up", "telemetry:read"),
    ("Drift", "/drift", "activity", "profiles:read"),
    ("Rules", "/rules", "sliders", "rules:read"),
    ("Models", "/models", "boxes", "releases:read"),
    ("Campaigns", "/campaigns", "send", "campaigns:read"),
    ("Approvals", "/approvals", "check2-square", "approvals:read"),
    ("Audit", "/audit", "journal-check", "audit:read"),
)


class PageRoute(APIRoute):
    """Answers errors with a page, and sends who is not logged in to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except UnauthenticatedError:
                return _to_login(request)
            except MooringError as error:
                return _error_page(request, error)
            except RequestValidationError as error:
                first = error.errors()[0]
                return _error_page(request, InvalidError(f"{first['loc'][-1]}: {first['msg']}"))

        return handle


router = APIRouter(route_class=PageRoute, include_in_schema=False)
Sees = Annotated[Caller, Depends(require("devices:read"))]
Anyone = Annotated[Caller, Depends(require("account:write"))]
Steers = Annotated[Caller, Depends(require("campaigns:write"))]


# --- logging in and out ---


@router.get("/login")
def login_form(request: Request, next_: Annotated[str, Query(alias="next", max_length=500)] = "/") -> Response:
    """The form."""
    return _login_page(request, next_=_own_path(next_))


@router.post("/login")
def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=63)],
    password: Annotated[str, Form(max_length=200)],
    next_: Annotated[str, Form(alias="next", max_length=500)] = "/",
) -> Response:
    """Open a session under a new cookie; an older one of this browser ends."""
    auth.check_origin(request)
    services = services_of(request)
    try:
        made = accounts.log_in(
            services.database,
            tenant=services.tenant,
            name=name,
            password=password,
            address=auth.client_address(request),
            now=services.system_now(),
            at=services.clock.now(),
        )
    except MooringError as error:
        status, _ = problems.PROBLEMS[problems.slug_of(error)]
        return _login_page(request, next_=_own_path(next_), name=name, error=str(error), status=status)
    if old := request.cookies.get(auth.COOKIE):
        accounts.log_out(services.database, old)
    answer = RedirectResponse(_own_path(next_), 303)
    auth.set_cookie(answer, made.cookie)
    return answer


@router.post("/logout")
def log_out(request: Request, caller: Anyone) -> Response:
    """End the session."""
    del caller  # only the check matters
    accounts.log_out(services_of(request).database, request.cookies.get(auth.COOKIE, ""))
    answer = RedirectResponse("/login", 303)
    auth.clear_cookie(answer)
    return answer


@router.get("/account")
def account(request: Request, caller: Anyone) -> Response:
    """One's own password and tokens."""
    return _account_page(request, caller)


@router.post("/account/password")
def change_password(
    request: Request, caller: Anyone, old: Annotated[str, Form(max_length=200)], new: Annotated[str, Form(max_length=200)]
) -> Response:
    """Replace the password; all sessions of the person end, this one too."""
    services = services_of(request)
    try:
        accounts.change_password(
            services.database, tenant=caller.tenant, name=caller.name, old=old, new=new, by=caller.actor, at=services.clock.now()
        )
    except (UnauthenticatedError, InvalidError) as error:
        return _account_page(request, caller, error=str(error), status=422)
    answer = RedirectResponse("/login", 303)
    auth.clear_cookie(answer)
    return answer


# --- pages ---


@router.get("/")
def home(request: Request, caller: Sees) -> Response:
    """The page that answers: is anything wrong now."""
    view = console_views.home(services_of(request).registry, caller)
    return html_page(request, caller, "home.html", "Home", view=view)


@router.get("/devices")
def device_list(request: Request, caller: Sees, query: Annotated[DeviceQuery, Depends()], after: str | None = None) -> Response:
    """The page that answers: which devices are X."""
    return html_page(request, caller, "devices.html", "Devices", view=_devices_view(request, caller, query, after))


@router.get("/devices/{device}")
def device(request: Request, caller: Sees, device: str) -> Response:
    """The page that answers: why is this one unhappy."""
    return html_page(request, caller, "device.html", "Devices", view=_device_view(request, caller, device), error="")


@router.get("/devices/{device}/pipelines/{pipeline}")
def pipeline(request: Request, caller: Sees, device: str, pipeline: str) -> Response:
    """The page that answers: what does this camera see, and how well."""
    return _pipeline_page(request, caller, device, pipeline)


@router.post("/devices/{device}/pipelines/{pipeline}/snapshot")
def snapshot(request: Request, caller: Annotated[Caller, Depends(require("snapshots:read"))], device: str, pipeline: str) -> Response:
    """The same page with one picture, asked for now and kept nowhere."""
    services = services_of(request)
    try:
        taken = snapshots.take_snapshot(
            services.database,
            services.calls,
            tenant=caller.tenant,
            device=DeviceId(device),
            pipeline=pipeline,
            by=caller.actor,
            now=services.clock.now(),
            reason="console",
        )
    except NotFoundError:
        raise
    except MooringError as error:
        return _pipeline_page(request, caller, device, pipeline, error=error)
    return _pipeline_page(request, caller, device, pipeline, taken=taken)


@router.post("/devices/{device}/offer-again")
def offer_again(request: Request, caller: Steers, device: str, line: Annotated[str, Form(max_length=63)]) -> Response:
    """Let the device try again what it refused."""
    registry = services_of(request).registry
    return _after_device(
        request,
        caller,
        device,
        lambda: loop.offer_again(
            registry, tenant=caller.tenant, device=DeviceId(device), line=LineName(line), by=caller.actor, reason="console"
        ),
    )


@router.post("/devices/{device}/consent")
def consent(
    request: Request,
    caller: Steers,
    device: str,
    line: Annotated[str, Form(max_length=63)],
    answer: Annotated[str, Form(pattern="^(yes|no)$")],
) -> Response:
    """Answer for a site that asks before it activates."""
    registry, is_given = services_of(request).registry, answer == "yes"
    return _after_device(
        request,
        caller,
        device,
        lambda: loop.consent(
            registry,
            tenant=caller.tenant,
            device=DeviceId(device),
            line=LineName(line),
            is_given=is_given,
            by=caller.actor,
            reason="console",
        ),
    )


@router.get("/models")
def model_list(request: Request, caller: Annotated[Caller, Depends(require("releases:read"))]) -> Response:
    """The page that answers: what may ship."""
    return html_page(request, caller, "models.html", "Models", view=console_views.model_list(services_of(request).registry, caller))


@router.get("/models/{line}/{version}")
def release(request: Request, caller: Annotated[Caller, Depends(require("releases:read"))], line: str, version: str) -> Response:
    """One release and its way."""
    view = console_views.release(services_of(request).registry, caller, line, version)
    return html_page(request, caller, "release.html", "Models", view=view)


@router.get("/approvals")
def approval_list(request: Request, caller: Annotated[Caller, Depends(require("approvals:read"))]) -> Response:
    """The page that answers: what waits for me."""
    return html_page(request, caller, "approvals.html", "Approvals", view=console_views.approvals(services_of(request).database, caller))


@router.get("/approvals/{approval}")
def approval(request: Request, caller: Annotated[Caller, Depends(require("approvals:read"))], approval: str) -> Response:
    """One approval, to decide."""
    return _approval_page(request, caller, approval)


@router.post("/approvals/{approval}")
def decide(
    request: Request,
    caller: Annotated[Caller, Depends(require("approvals:decide"))],
    approval: str,
    decision: Annotated[str, Form(pattern="^(approve|reject)$")],
    reason: Annotated[str, Form(max_length=1000)],
    revision: Annotated[int, Form()],
) -> Response:
    """Decide with a reason."""
    try:
        loop.decide_approval(
            services_of(request).registry,
            tenant=caller.tenant,
            approval=approval,
            verdict="approved" if decision == "approve" else "rejected",
            by=caller.actor,
            permissions=caller.permissions,
            reason=reason,
            expected_revision=revision,
        )
    except NotFoundError:
        raise
    except MooringError as error:
        return _approval_page(request, caller, approval, error=error)
    return RedirectResponse(f"/approvals/{quote(approval)}", 303)


@router.get("/campaigns")
def campaign_list(request: Request, caller: Annotated[Caller, Depends(require("campaigns:read"))]) -> Response:
    """The page that answers: what moves."""
    return html_page(
        request, caller, "campaigns.html", "Campaigns", view=console_views.campaign_list(services_of(request).database, caller)
    )


@router.get("/campaigns/{campaign}")
def campaign(request: Request, caller: Annotated[Caller, Depends(require("campaigns:read"))], campaign: str) -> Response:
    """The page that answers: should I go on."""
    return _campaign_page(request, caller, campaign)


@router.post("/campaigns/{campaign}/pause")
def pause(request: Request, caller: Steers, campaign: str) -> Response:
    """One click, whatever changed meanwhile: assign nothing further."""
    services = services_of(request)
    return _after(
        request,
        caller,
        campaign,
        lambda: campaigns.pause(
            services.database, tenant=caller.tenant, campaign=campaign, by=caller.actor, now=services.clock.now(), reason="console"
        ),
    )


@router.post("/campaigns/{campaign}/resume")
def resume(request: Request, caller: Steers, campaign: str, revision: Annotated[int, Form()]) -> Response:
    """Go on."""
    services = services_of(request)
    return _after(
        request,
        caller,
        campaign,
        lambda: campaigns.resume(
            services.database,
            tenant=caller.tenant,
            campaign=campaign,
            by=caller.actor,
            now=services.clock.now(),
            reason="console",
            revision=revision,
        ),
    )


@router.post("/campaigns/{campaign}/abort")
def abort(
    request: Request,
    caller: Steers,
    campaign: str,
    revision: Annotated[int, Form()],
    confirm: Annotated[str, Form(max_length=300)],
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """End it, after its name was typed and a reason given."""

    def act() -> object:
        wanted = console_views.campaign(services_of(request).database, caller, campaign).name
        if confirm != wanted:
            raise InvalidError(f"The name typed is {confirm!r}; wanted {wanted!r}.", hint="Nothing was changed.")
        return loop.abort_campaign(
            services_of(request).registry, tenant=caller.tenant, campaign=campaign, by=caller.actor, reason=reason, revision=revision
        )

    return _after(request, caller, campaign, act)


@router.get("/audit")
def audit_log(
    request: Request,
    caller: Annotated[Caller, Depends(require("audit:read"))],
    before: Annotated[int | None, Query(ge=1)] = None,
    verify: bool = False,  # noqa: FBT001, FBT002 - a query parameter
) -> Response:
    """The page that answers: who did what."""
    view = console_views.audit_log(services_of(request).database, caller, before=before, verify=verify)
    return html_page(request, caller, "audit.html", "Audit", view=view)


# --- live parts ---


@router.get("/live/home")
def live_home(request: Request, caller: Sees) -> Response:
    """Home as it changes."""
    registry = services_of(request).registry

    def parts() -> Mapping[str, tuple[str, Any]]:
        return {"home": ("parts/home.html", console_views.home(registry, caller)), "standstills": ("parts/standstills.html", None)}

    return part_stream(request, caller, parts, every_s=SLOW_S)


@router.get("/live/devices")
def live_devices(request: Request, caller: Sees, query: Annotated[DeviceQuery, Depends()], after: str | None = None) -> Response:
    """One page of devices as it changes."""
    return part_stream(
        request, caller, lambda: {"devices": ("parts/devices.html", _devices_view(request, caller, query, after))}, every_s=2.0
    )


@router.get("/live/devices/{device}")
def live_device(request: Request, caller: Sees, device: str) -> Response:
    """One device as it changes."""
    _device_view(request, caller, device)  # a device that is not there is a 404, not a silent stream

    def parts() -> Mapping[str, str]:
        view, shell, now = (
            _device_view(request, caller, device),
            shell_of(request, caller, "", is_watched=False),
            services_of(request).clock.now(),
        )
        names = {
            "state": "device_state",
            "telemetry-now": "device_telemetry",
            "predictions": "device_predictions",
            "models": "device_models",
            "pipelines": "device_pipelines",
            "events": "device_events",
        }
        made = {event: render.page(f"parts/{name}.html", shell=shell, now=now, view=view) for event, name in names.items()}
        return {**made, "telemetry": view.points_json}

    return live.page_stream(request, parts)


@router.get("/live/devices/{device}/pipelines/{pipeline}")
def live_pipeline(request: Request, caller: Sees, device: str, pipeline: str) -> Response:
    """One pipeline as it changes."""
    _pipeline_view(request, caller, device, pipeline)

    def parts() -> Mapping[str, str]:
        view, shell = _pipeline_view(request, caller, device, pipeline), shell_of(request, caller, "", is_watched=False)
        now, names = (
            services_of(request).clock.now(),
            {"now": "pipeline_now", "events": "device_events", "candidates": "pipeline_candidates"},
        )
        made = {event: render.page(f"parts/{name}.html", shell=shell, now=now, view=view) for event, name in names.items()}
        return {**made, "telemetry": view.points_json}

    return live.page_stream(request, parts)


@router.get("/live/models")
def live_models(request: Request, caller: Annotated[Caller, Depends(require("releases:read"))]) -> Response:
    """Models as they change."""
    registry = services_of(request).registry
    return part_stream(
        request, caller, lambda: {"models": ("parts/models.html", console_views.model_list(registry, caller))}, every_s=SLOW_S
    )


@router.get("/live/approvals")
def live_approvals(request: Request, caller: Annotated[Caller, Depends(require("approvals:read"))]) -> Response:
    """Approvals as they change."""
    database = services_of(request).database
    return part_stream(request, caller, lambda: {"approvals": ("parts/approvals.html", console_views.approvals(database, caller))})


@router.get("/live/campaigns")
def live_campaigns(request: Request, caller: Annotated[Caller, Depends(require("campaigns:read"))]) -> Response:
    """Campaigns as they change."""
    database = services_of(request).database
    return part_stream(request, caller, lambda: {"campaigns": ("parts/campaigns.html", console_views.campaign_list(database, caller))})


@router.get("/live/campaigns/{campaign}")
def live_campaign(request: Request, caller: Annotated[Caller, Depends(require("campaigns:read"))], campaign: str) -> Response:
    """One campaign as it changes."""
    database = services_of(request).database
    console_views.campaign(database, caller, campaign)

    def parts() -> Mapping[str, tuple[str, Any]]:
        view = console_views.campaign(database, caller, campaign)
        return {"campaign": ("parts/campaign.html", view), "actions": ("parts/campaign_actions.html", view)}

    return part_stream(request, caller, parts)


@router.get("/static/{path:path}")
def static(request: Request, path: str) -> Response:
    """A file under the hash of its content; browsers may keep it forever."""
    del path
    asset = render.assets().get(request.url.path)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "ETag": asset.etag, "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.gzipped, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.body, media_type=asset.media_type, headers=headers)


# --- parts of handlers ---


def _devices_view(request: Request, caller: Caller, query: DeviceQuery, after: str | None) -> Any:
    given = {name: value for name in DeviceQuery.__slots__ if (value := getattr(query, name))}
    here = urlencode({**given, **({"after": after} if after else {})})
    there = f"/devices?{urlencode(given)}&after={{after}}" if given else "/devices?after={after}"
    return console_views.device_list(
        services_of(request).database,
        caller,
        query,
        after=after,
        limit=PAGE_SIZE,
        query_string=f"?{here}" if here else "",
        next_url=there,
    )


def _device_view(request: Request, caller: Caller, device: str) -> Any:
    services = services_of(request)
    now = services.clock.now()
    return device_views.device_page(device_views.load_facts(services.database, caller.tenant, DeviceId(device), now=now), now=now)


def _pipeline_view(
    request: Request, caller: Caller, device: str, pipeline: str, *, size: tuple[int, int] = pipeline_views.FRAME
) -> PipelinePage:
    services = services_of(request)
    now = services.clock.now()
    facts = pipeline_views.load_facts(services.database, caller.tenant, DeviceId(device), pipeline, now=now)
    return pipeline_views.pipeline_page(facts, now=now, size=size)


def _pipeline_page(
    request: Request, caller: Caller, device: str, pipeline: str, *, taken: Snapshot | None = None, error: MooringError | None = None
) -> Response:
    view = _pipeline_view(request, caller, device, pipeline, size=(taken.width, taken.height) if taken else pipeline_views.FRAME)
    return html_page(
        request,
        caller,
        "pipeline.html",
        "Devices",
        status=status_of(error),
        view=view,
        picture=base64.b64encode(taken.jpeg).decode() if taken else "",
        taken_at=taken.at if taken else None,
        may_look=view.preview and caller.may("snapshots:read"),
        error=str(error) if error else "",
    )


def _approval_page(request: Request, caller: Caller, approval: str, *, error: MooringError | None = None) -> Response:
    view = console_views.approval(services_of(request).database, caller, approval)
    return html_page(request, caller, "approval.html", "Approvals", status=status_of(error), view=view, error=str(error) if error else "")


def _campaign_page(request: Request, caller: Caller, campaign: str, *, error: MooringError | None = None) -> Response:
    view = console_views.campaign(services_of(request).database, caller, campaign)
    return html_page(request, caller, "campaign.html", "Campaigns", status=status_of(error), view=view, error=str(error) if error else "")


def _after(request: Request, caller: Caller, campaign: str, act: Callable[[], object]) -> Response:
    """The campaign's page after a change, or with the reason why it was refused."""
    try:
        act()
    except NotFoundError:
        raise
    except MooringError as error:
        return _campaign_page(request, caller, campaign, error=error)
    return RedirectResponse(f"/campaigns/{quote(campaign)}", 303)


def _after_device(request: Request, caller: Caller, device: str, act: Callable[[], object]) -> Response:
    """The device's page after a change, or with the reason why it was refused."""
    try:
        act()
    except ConflictError as error:
        view = _device_view(request, caller, device)
        return html_page(request, caller, "device.html", "Devices", status=status_of(error), view=view, error=str(error))
    return RedirectResponse(f"/devices/{quote(device)}", 303)


def _account_page(request: Request, caller: Caller, *, error: str = "", status: int = 200) -> Response:
    with services_of(request).database.reading() as tx:
        found = web_store.list_tokens(tx, caller.tenant, owner=caller.name, limit=100)
    tokens = [TokenRow(one.name, one.scopes, one.expires_at, one.revoked_at, one.last_used_at) for one in found]
    return html_page(request, caller, "account.html", "", status=status, tokens=tokens, error=error, done="")


def _login_page(request: Request, *, next_: str, name: str = "", error: str = "", status: int = 200) -> Response:
    now = services_of(request).clock.now()
    html = render.page("login.html", shell=shell_of(request, None, ""), now=now, next=next_, name=name, error=error)
    return HTMLResponse(html, status)


def html_page(request: Request, caller: Caller, template: str, current: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """The page of a template, in the frame that this caller sees; `current` is its entry in the rail."""
    now = services_of(request).clock.now()
    return HTMLResponse(render.page(template, shell=shell_of(request, caller, current), now=now, **context), status)


def part_stream(
    request: Request, caller: Caller, parts: Callable[[], Mapping[str, tuple[str, Any]]], *, every_s: float = live.PAGE_S
) -> Response:
    """Parts of a page as they change: event name → template and view."""

    def rendered() -> Mapping[str, str]:
        made, now = parts(), services_of(request).clock.now()
        shell = shell_of(request, caller, "", is_watched="standstills" in made)
        return {event: render.page(template, shell=shell, now=now, view=view) for event, (template, view) in made.items()}

    return live.page_stream(request, rendered, every_s=every_s)


def shell_of(request: Request, caller: Caller | None, current: str, *, is_watched: bool = True) -> Shell:
    """What stands around every page; around a live part what stands still only when it `is_watched`."""
    services = services_of(request)
    waiting = console_views.count_waiting(services.database, caller.tenant) if caller is not None and current else {}
    nav = tuple(
        NavItem(label, href, icon, label == current, waiting.get(label, 0))
        for label, href, icon, action in _NAV
        if caller is not None and caller.may(action)
    )
    return Shell(
        user_name=caller.name if caller else "",
        permissions=tuple(sorted(caller.permissions)) if caller else (),
        csrf_token=caller.csrf_token if caller else "",
        nav=nav,
        demo_keys=services.config.demo_keys,
        clock_speed=services.clock.speed,
        must_change_password=caller.must_change_password if caller else False,
        may_steer=caller is not None and caller.may("campaigns:write"),
        standstills=console_views.standstills(services) if caller is not None and is_watched else (),
    )


def _to_login(request: Request) -> Response:
    if request.url.path.startswith("/live/"):
        return Response(status_code=401)
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    next_ = f"?next={quote(wanted, safe='')}" if request.method == "GET" and wanted != "/" else ""
    return RedirectResponse(f"/login{next_}", 303)


def _error_page(request: Request, error: MooringError) -> Response:
    slug = problems.slug_of(error)
    if slug == "internal":
        return problems.from_error(request, error)
    status, title = problems.PROBLEMS[slug]
    try:
        caller: Caller | None = auth.identify(request)
    except UnauthenticatedError:
        caller = None
    if caller is None:
        return _login_page(request, next_="/", error=str(error), status=status)
    return html_page(
        request,
        caller,
        "error.html",
        "",
        status=status,
        title=title,
        kind="warn" if status < 500 else "bad",
        detail=error.message,
        hint=error.hint,
    )


def status_of(error: MooringError | None) -> int:
    """The HTTP status of a page that tells of the error, or of none."""
    return 200 if error is None else problems.PROBLEMS[problems.slug_of(error)][0]


def _own_path(path: str) -> str:
    """The path when it is one of ours, else Home: a login never leads elsewhere."""
    parts = urlsplit(path)
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc and "\\" not in path
    return path if is_own else "/"
