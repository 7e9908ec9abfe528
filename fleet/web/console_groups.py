"""The console's page of one group: who is in it, what it shares, and what the next release of its configuration would change."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from fleet.web import group_views
from fleet.web.auth import Caller, require, services_of
from fleet.web.console import SLOW_S, PageRoute, html_page, part_stream
from fleet.web.group_views import GroupPage
from protocol.ids import GroupName

router = APIRouter(route_class=PageRoute, include_in_schema=False)
#: Everybody who sees devices sees their configuration too.
Sees = Annotated[Caller, Depends(require("configurations:read"))]


@router.get("/groups/{group}")
def group(request: Request, caller: Sees, group: str) -> Response:
    """The page that answers: what does this group share, and who has it."""
    return html_page(request, caller, "group.html", "Devices", view=_view(request, caller, group))


@router.get("/live/groups/{group}")
def live_group(request: Request, caller: Sees, group: str) -> Response:
    """One group as it changes."""
    _view(request, caller, group)
    return part_stream(request, caller, lambda: {"group": ("parts/group.html", _view(request, caller, group))}, every_s=SLOW_S)


def _view(request: Request, caller: Caller, group: str) -> GroupPage:
    return group_views.group_page(group_views.load_facts(services_of(request).registry, caller.tenant, GroupName(group)))
