"""Rules on telemetry, and who is told: webhooks and mail."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from fleet import jobs
from fleet.monitoring.alerts import announcing, service
from fleet.monitoring.alerts.model import FiringRow, Recipient, RecipientKind, StoredRule
from fleet.monitoring.rules import METRICS, Comparison, Metric, Rule, Scope, words_of
from fleet.web import rest
from fleet.web.admin.bodies import Body, Reason, ReasonBody, ShortText
from fleet.web.auth import Caller, require, services_of
from fleet.web.rest import IdempotentRoute, Page, page_of
from protocol.ids import NAME_PATTERN

router = APIRouter(tags=["alerts"], route_class=IdempotentRoute)
ReadsRules = Annotated[Caller, Depends(require("rules:read"))]
WritesRules = Annotated[Caller, Depends(require("rules:write"))]
ReadsRecipients = Annotated[Caller, Depends(require("webhooks:read"))]
WritesRecipients = Annotated[Caller, Depends(require("webhooks:write"))]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
#: Firings and deliveries looked at for one list.
MOST = 1000


class RuleBody(Body):
    """What a rule asks for. Left out: `comparison` and `window_s` as is usual for the metric, `recovers_at` the threshold."""

    metric: Metric
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    comparison: Comparison | None = None
    recovers_at: Annotated[float, Field(allow_inf_nan=False)] | None = None
    window_s: float | None = None
    for_s: float = 300.0
    scope: Scope = Scope.ALL
    subject: Annotated[str, Field(max_length=63)] = ""
    pipeline: Annotated[str, Field(max_length=63)] = ""
    severity: Literal["warning", "error"] = "warning"
    is_enabled: bool = True
    reason: Reason = ""

    def rule(self, name: str) -> Rule:
        """The rule of this name."""
        return Rule(
            name=name,
            metric=self.metric,
            comparison=self.comparison or METRICS[self.metric].comparison,
            threshold=self.threshold,
            recovers_at=self.threshold if self.recovers_at is None else self.recovers_at,
            window_s=METRICS[self.metric].window_s if self.window_s is None else self.window_s,
            for_s=self.for_s,
            scope=self.scope,
            subject=self.subject,
            pipeline=self.pipeline,
            severity=self.severity,
            is_enabled=self.is_enabled,
        )


class NewRule(RuleBody):
    """A rule with its name."""

    name: Name


class RuleTrial(RuleBody):
    """A rule to be tested on the last hours; nothing is stored."""

    hours: float = 24.0


class NewWebhook(Body):
    """Where alerts are posted; without a secret one is made and answered once."""

    name: Name
    url: Annotated[str, Field(max_length=service.MAX_URL)]
    secret: ShortText | None = None
    #: Needed for addresses of a private network, and for http.
    allow_private: bool = False
    #: alarm, rule, server; none: all.
    topics: Annotated[list[ShortText], Field(max_length=10)] = Field(default_factory=list)
    reason: Reason = ""


class NewMailRecipient(Body):
    """To whom alerts are mailed."""

    name: Name
    addresses: Annotated[list[ShortText], Field(min_length=1, max_length=service.MAX_ADDRESSES)]
    topics: Annotated[list[ShortText], Field(max_length=10)] = Field(default_factory=list)
    reason: Reason = ""


# --- rules ---


@router.get("/rules")
def list_rules(request: Request, caller: ReadsRules, page: Annotated[Page, Depends(page_of)]) -> Response:
    """Rules by name, each with how many devices or pipelines it fires on."""
    database = services_of(request).database
    firing = service.list_firings(database, caller.tenant, is_open=True, limit=MOST)
    found = service.list_rules(database, caller.tenant)
    counts = {one.rule.name: sum(row.rule == one.rule.name for row in firing) for one in found}
    return rest.listed(
        request,
        page,
        page.take(found, lambda one: one.rule.name),
        key=lambda one: one.rule.name,
        render=lambda one: {**rule_json(one), "firing": counts[one.rule.name]},
    )


@router.get("/rules/{name}")
def get_rule(request: Request, name: str, caller: ReadsRules) -> Response:
    """One rule."""
    found = service.get_rule(services_of(request).database, caller.tenant, name)
    return rest.one(rule_json(found), revision=found.rule.revision)


@router.post("/rules")
def create_rule(request: Request, body: NewRule, caller: WritesRules) -> Response:
    """Add a rule; it is looked at every minute from now on."""
    services = services_of(request)
    made = service.create_rule(
        services.database,
        tenant=caller.tenant,
        rule=body.rule(body.name),
        by=caller.actor,
        now=services.clock.now(),
        reason=body.reason,
    )
    return rest.one(rule_json(made), revision=1, status=201, location=f"/api/v1/rules/{body.name}")


@router.put("/rules/{name}")
def change_rule(request: Request, name: str, body: RuleBody, caller: WritesRules) -> Response:
    """Make the rule be as given; needs If-Match. What fires by the old one ends."""
    services = services_of(request)
    saved = service.change_rule(
        services.database,
        tenant=caller.tenant,
        rule=body.rule(name),
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason,
    )
    return rest.one(rule_json(saved), revision=saved.rule.revision)


@router.delete("/rules/{name}", status_code=204)
def delete_rule(request: Request, name: str, caller: WritesRules, body: ReasonBody | None = None) -> Response:
    """Forget a rule; needs If-Match. What it fired stays readable."""
    services = services_of(request)
    service.delete_rule(
        services.database,
        tenant=caller.tenant,
        name=name,
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


@router.post("/rule-trials")
def try_rule(request: Request, body: RuleTrial, caller: ReadsRules) -> Response:
    """What the rule would have done in the last hours; stores nothing."""
    services = services_of(request)
    trial = service.try_rule(services.database, tenant=caller.tenant, rule=body.rule("trial"), now=services.clock.now(), hours=body.hours)
    return rest.one(trial_json(trial))


@router.get("/firings")
def list_firings(
    request: Request,
    caller: ReadsRules,
    page: Annotated[Page, Depends(page_of)],
    rule: Annotated[str | None, Query(max_length=63)] = None,
    state: Literal["open", "ended"] | None = None,
) -> Response:
    """What rules fired, the newest first."""
    is_open = None if state is None else state == "open"
    found = service.list_firings(services_of(request).database, caller.tenant, is_open=is_open, rule=rule, limit=MOST)
    return rest.listed(request, page, page.take(found, lambda one: one.id), key=lambda one: one.id, render=firing_json)


# --- who is told ---


@router.get("/webhooks")
def list_webhooks(request: Request, caller: ReadsRecipients, page: Annotated[Page, Depends(page_of)]) -> Response:
    """Webhooks by name, without their secrets."""
    return _recipients(request, caller, page, RecipientKind.WEBHOOK)


@router.post("/webhooks")
def create_webhook(request: Request, body: NewWebhook, caller: WritesRecipients) -> Response:
    """Add a webhook. Its secret is in this answer and nowhere else."""
    services, given = services_of(request), body.secret or ""
    recipient = Recipient(
        caller.tenant, body.name, RecipientKind.WEBHOOK, body.url, given, allows_private=body.allow_private, topics=tuple(body.topics)
    )
    made = service.create_recipient(services.database, recipient=recipient, by=caller.actor, now=services.clock.now(), reason=body.reason)
    document = {**recipient_json(made), **({} if given else {"secret": made.secret})}
    return rest.one(document, revision=1, status=201, location=f"/api/v1/webhooks/{body.name}")


@router.get("/webhooks/{name}")
def get_webhook(request: Request, name: str, caller: ReadsRecipients) -> Response:
    """One webhook with its latest deliveries."""
    return _recipient(request, caller, name, RecipientKind.WEBHOOK)


@router.delete("/webhooks/{name}", status_code=204)
def delete_webhook(request: Request, name: str, caller: WritesRecipients, body: ReasonBody | None = None) -> Response:
    """Tell it no more; needs If-Match."""
    return _delete(request, caller, name, RecipientKind.WEBHOOK, body)


@router.post("/webhooks/{name}/test", status_code=202)
def try_webhook(request: Request, name: str, caller: WritesRecipients) -> Response:
    """Send a message that says that it is a test; how it went stands under the webhook's deliveries."""
    return _try(request, caller, name, RecipientKind.WEBHOOK)


@router.get("/mail-recipients")
def list_mail_recipients(request: Request, caller: ReadsRecipients, page: Annotated[Page, Depends(page_of)]) -> Response:
    """To whom alerts are mailed."""
    return _recipients(request, caller, page, RecipientKind.MAIL)


@router.post("/mail-recipients")
def create_mail_recipient(request: Request, body: NewMailRecipient, caller: WritesRecipients) -> Response:
    """Mail alerts to these addresses."""
    services = services_of(request)
    recipient = Recipient(caller.tenant, body.name, RecipientKind.MAIL, ",".join(body.addresses), topics=tuple(body.topics))
    made = service.create_recipient(services.database, recipient=recipient, by=caller.actor, now=services.clock.now(), reason=body.reason)
    return rest.one(recipient_json(made), revision=1, status=201, location=f"/api/v1/mail-recipients/{body.name}")


@router.get("/mail-recipients/{name}")
def get_mail_recipient(request: Request, name: str, caller: ReadsRecipients) -> Response:
    """One of them with its latest deliveries."""
    return _recipient(request, caller, name, RecipientKind.MAIL)


@router.delete("/mail-recipients/{name}", status_code=204)
def delete_mail_recipient(request: Request, name: str, caller: WritesRecipients, body: ReasonBody | None = None) -> Response:
    """Mail them no more; needs If-Match."""
    return _delete(request, caller, name, RecipientKind.MAIL, body)


@router.post("/mail-recipients/{name}/test", status_code=202)
def try_mail_recipient(request: Request, name: str, caller: WritesRecipients) -> Response:
    """Send a mail that says that it is a test."""
    return _try(request, caller, name, RecipientKind.MAIL)


def _recipients(request: Request, caller: Caller, page: Page, kind: RecipientKind) -> Response:
    found = service.list_recipients(services_of(request).database, caller.tenant, kind)
    return rest.listed(request, page, page.take(found, lambda one: one.name), key=lambda one: one.name, render=recipient_json)


def _recipient(request: Request, caller: Caller, name: str, kind: RecipientKind) -> Response:
    database = services_of(request).database
    found = service.get_recipient(database, caller.tenant, name, kind)
    with database.reading() as tx:
        queued = jobs.list_jobs(tx, caller.tenant, kind=announcing.DELIVER, limit=MOST)
    mine = [delivery_json(job) for job in queued if job.payload["recipient"] == name]
    return rest.one({**recipient_json(found), "deliveries": mine[:20]}, revision=found.revision)


def _delete(request: Request, caller: Caller, name: str, kind: RecipientKind, body: ReasonBody | None) -> Response:
    services = services_of(request)
    service.delete_recipient(
        services.database,
        tenant=caller.tenant,
        name=name,
        kind=kind,
        by=caller.actor,
        now=services.clock.now(),
        expected_revision=rest.expected_revision(request),
        reason=body.reason if body else "",
    )
    return Response(status_code=204)


def _try(request: Request, caller: Caller, name: str, kind: RecipientKind) -> Response:
    services = services_of(request)
    job = service.try_recipient(services.database, tenant=caller.tenant, name=name, kind=kind, by=caller.actor, now=services.clock.now())
    return rest.one({"job": job}, status=202)


def rule_json(stored: StoredRule) -> dict[str, Any]:
    """A rule as the API answers it."""
    rule = stored.rule
    return {
        "name": rule.name,
        "words": words_of(rule),
        "metric": str(rule.metric),
        "unit": METRICS[rule.metric].unit,
        "comparison": str(rule.comparison),
        "threshold": rule.threshold,
        "recovers_at": rule.recovers_at,
        "window_s": rule.window_s,
        "for_s": rule.for_s,
        "scope": str(rule.scope),
        "subject": rule.subject,
        "pipeline": rule.pipeline,
        "severity": rule.severity,
        "is_enabled": rule.is_enabled,
        "created_by": stored.created_by,
        "created_at": rest.iso(stored.created_at),
        "revision": rule.revision,
    }


def trial_json(trial: service.Trial) -> dict[str, Any]:
    """What a rule would have done, as the API answers it."""
    return {
        "start": rest.iso(trial.start),
        "end": rest.iso(trial.end),
        "devices_left_out": trial.left_out,
        "firings": sum(len(one.firings) for one in trial.keys),
        "keys": [
            {
                "device": one.key.device,
                "pipeline": one.key.pipeline,
                "samples": one.samples,
                "firings": [
                    {"since": rest.iso(fired.since), "until": rest.iso(fired.until), "worst": fired.worst} for fired in one.firings
                ],
            }
            for one in trial.keys
        ],
    }


def firing_json(row: FiringRow) -> dict[str, Any]:
    """A firing as the API answers it."""
    return {
        "id": row.id,
        "rule": row.rule,
        "device": row.key.device,
        "pipeline": row.key.pipeline,
        "severity": row.severity,
        "since": rest.iso(row.since),
        "until": rest.iso(row.until),
        "worst": row.worst,
        "ended_by": row.ended_by,
    }


def recipient_json(recipient: Recipient) -> dict[str, Any]:
    """A recipient as the API answers it: never its secret, nor the query of its address."""
    shown = service.shown_address(recipient)
    where = (
        {"url": shown, "allow_private": recipient.allows_private}
        if recipient.kind is RecipientKind.WEBHOOK
        else {"addresses": shown.split(",")}
    )
    return {
        "name": recipient.name,
        **where,
        "topics": list(recipient.topics),
        "created_by": recipient.created_by,
        "created_at": rest.iso(recipient.created_at),
        "revision": recipient.revision,
    }


def delivery_json(job: jobs.Job) -> dict[str, Any]:
    """One delivery as the API answers it."""
    alert = job.payload["alert"]
    return {
        "job": job.job,
        "alert": alert["id"],
        "type": alert["type"],
        "title": alert["title"],
        "address": job.payload.get("address", ""),
        "state": str(job.state),
        "attempts": job.attempts,
        "due_at": rest.iso(job.due_at),
        "error": job.error,
        "created_at": rest.iso(job.created_at),
        "finished_at": rest.iso(job.finished_at),
    }
