"""The two applications: for devices, and for people with their machines. Errors, limits and headers are set here, once for all routes."""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.web import admin_api, console, console_drift, console_groups, console_monitoring, device_api, problems
from fleet.web.limits import BodyLimit, RateLimit
from fleet.web.services import Services

#: No script, style or request that is not ours; nothing inline; nobody frames us.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: Enrollment calls from one address: a rack of devices behind one gateway, not a guesser of tokens.
ENROLL_BURST, ENROLL_PER_MINUTE = 60, 30.0
_UPLOAD_TYPES = (b"multipart/form-data", b"application/octet-stream")


def device_app(services: Services) -> FastAPI:
    """What devices call: enrollment, desired twin, director, metadata, blobs, reports."""
    app = _app(services, title="Mooring device API", upload_limit=services.config.limits.request_kb * 1024)
    app.state.enroll_limit = RateLimit(burst=ENROLL_BURST, per_minute=ENROLL_PER_MINUTE, now=services.system_now)
    app.include_router(device_api.router)
    return app


def console_app(services: Services) -> FastAPI:
    """What people and their machines call: the console and /api/v1."""
    upload_limit = services.config.limits.artifact_mb * 1024 * 1024 + 1024 * 1024
    app = _app(services, title="Mooring", upload_limit=upload_limit)
    app.include_router(admin_api.router)
    app.include_router(console_drift.router)
    app.include_router(console_monitoring.router)
    app.include_router(console_groups.router)
    app.include_router(console.router)
    app.add_middleware(SecurityHeaders)
    return app


class SecurityHeaders:
    """Sets the headers that a browser keeps, unless the handler set its own; what is not static is not cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if scope.get("scheme") == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _app(services: Services, *, title: str, upload_limit: int) -> FastAPI:
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = services
    problems.install(app)
    limit = services.config.limits.request_kb * 1024
    app.add_middleware(BodyLimit, limit=limit, upload_limit=upload_limit, is_upload=_is_upload)
    return app


def _is_upload(scope: Scope) -> bool:
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return scope["path"].startswith("/api/v1/") and kind.split(b";")[0].strip().lower() in _UPLOAD_TYPES
