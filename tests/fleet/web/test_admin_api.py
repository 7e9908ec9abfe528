"""/api/v1: who may what, and the way of a model from upload to a campaign, through the interface alone."""

import base64
import json
import re
from dataclasses import dataclass

import httpx
import pytest
from console_site import DEVICE_TYPE, DIGITS, PASSWORD, ConsoleSite, upload_digits

from fleet.governance.permissions import ACTIONS, PERMISSIONS
from fleet.registry.drafts import load_draft
from fleet.registry.signing import load_key, sign_line_role
from fleet.web import admin_api
from fleet.web.admin import alarms, alerts, bundles, campaigns, configurations, devices, drift, governance, people, references, registry
from protocol.decoding import encode, without_none
from protocol.ids import LineName


@dataclass
class People:
    admin: httpx.Client
    operator: httpx.Client
    approver: httpx.Client
    auditor: httpx.Client
    viewer: httpx.Client


@pytest.fixture(scope="module")
def who(console: ConsoleSite) -> People:
    return People(**{name: console.api(f"an-{name}", name) for name in ("admin", "operator", "approver", "auditor", "viewer")})


def slug(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("urn:mooring:problem:")


# --- who may what ---


def routes() -> list[tuple[str, str]]:
    found = []
    for part in (people, devices, registry, governance, campaigns, configurations, bundles, alarms, alerts, drift, references):
        for route in part.router.routes:
            for method in route.methods:
                path = route.path
                for name in route.param_convertors:
                    path = path.replace("{" + name + "}", "x")
                found.append((method, path))
    return found


OPEN = {("POST", "/login")}


@pytest.mark.parametrize(("method", "path"), sorted(set(routes()) - OPEN))
def test_without_login_nothing_answers(console: ConsoleSite, method: str, path: str):
    answer = console.http.request(method, f"/api/v1{path}", json={} if method in {"POST", "PUT", "PATCH"} else None)
    assert slug(answer) == (401, "unauthenticated")


@pytest.mark.parametrize("text", ["", "Bearer", "Bearer x", "Basic abc", "Bearer mrt1.tk-0.secret"])
def test_a_token_that_is_none_is_refused(console: ConsoleSite, text: str):
    assert console.http.get("/api/v1/devices", headers={"Authorization": text}).status_code == 401


READS = {
    "/devices": "devices:read",
    "/groups": "groups:read",
    "/sites": "sites:read",
    "/device-types": "device-types:read",
    "/models": "models:read",
    "/releases": "releases:read",
    "/campaigns": "campaigns:read",
    "/approvals": "approvals:read",
    "/audit": "audit:read",
    "/audit/verify": "audit:read",
    "/users": "users:read",
    "/invites": "enrollment:read",
    "/signing-requests": "releases:sign",
    "/line-renewals": "releases:sign",
    "/published-roles": "releases:sign",
    "/configurations/keys": "configurations:read",
    "/configurations/sections/fleet": "configurations:read",
    "/configurations/releases": "configurations:read",
    "/configurations/signing-requests": "releases:sign",
}


@pytest.mark.parametrize("permission", PERMISSIONS)
@pytest.mark.parametrize("path", READS)
def test_reading_follows_the_permission_table(who: People, path: str, permission: str):
    answer = getattr(who, permission).get(path)
    assert answer.status_code == (200 if permission in ACTIONS[READS[path]] else 403), answer.text


def test_a_token_never_may_more_than_its_scopes_nor_more_than_its_owner(console: ConsoleSite, who: People):
    made = who.operator.post("/tokens", json={"name": "reads", "scopes": ["devices:read"], "days": 1}).json()
    token = console.with_token(made["token"])
    assert token.get("/devices").status_code == 200
    assert token.get("/groups").status_code == 403
    assert token.post("/groups", json={"name": "no"}).status_code == 403
    refused = who.operator.post("/tokens", json={"name": "more", "scopes": ["users:write"], "days": 1})
    assert slug(refused) == (403, "forbidden")
    assert "token" not in who.operator.get("/tokens").json()["items"][0]


def test_who_may_not_do_a_thing_himself_is_told_who_may_and_not_that_his_token_lacks_a_scope(console: ConsoleSite, who: People):
    made = who.operator.post("/tokens", json={"name": "looks", "scopes": ["devices:read"], "days": 1}).json()
    token = console.with_token(made["token"])
    assert "Ask an administrator for one of: admin" in token.post("/users", json={"name": "no", "permissions": ["viewer"]}).text
    assert "The API token lacks that scope" in token.post("/groups", json={"name": "no"}).text


def test_logging_out_ends_the_token(console: ConsoleSite, who: People):
    leaver = console.api("leaver", "viewer")
    assert leaver.get("/me").json()["name"] == "leaver"
    assert leaver.post("/logout").status_code == 204
    assert leaver.get("/me").status_code == 401


def test_a_wrong_password_is_unauthenticated_and_says_no_more(console: ConsoleSite):
    answer = console.http.post("/api/v1/login", json={"name": "nobody", "password": PASSWORD})
    assert slug(answer) == (401, "unauthenticated")


def test_an_admin_makes_users_and_a_password_made_here_is_answered_once(who: People):
    made = who.admin.post("/users", json={"name": "fresh", "permissions": ["viewer"]})
    assert made.status_code == 201
    assert len(made.json()["password"]) >= 20
    assert "password" not in who.admin.get("/users/fresh").json()
    changed = who.admin.patch("/users/fresh", json={"is_active": False}, headers={"If-Match": made.headers["etag"]})
    assert changed.json()["is_active"] is False
    assert slug(who.operator.post("/users", json={"name": "sly", "permissions": ["admin"]})) == (403, "forbidden")


# --- devices ---


@pytest.fixture(scope="module")
def cam(console: ConsoleSite) -> str:
    console.enroll("cam-api")
    console.online("cam-api", source_lost="error")
    console.runs("cam-api", "1.0", state="failed", reason="golden_mismatch", text="wanted 7, got 1")
    console.perf("cam-api")
    console.predict("cam-api", "seven")
    return "cam-api"


def test_a_device_is_told_with_all_that_it_said(who: People, cam: str):
    found = who.viewer.get(f"/devices/{cam}").json()
    assert (found["presence"], found["health"], found["device_type"]) == ("online", "failed", DEVICE_TYPE)
    assert found["conditions"][0]["code"] == "source_lost"
    assert "cable" in found["conditions"][0]["advice"]
    line = found["lines"][0]
    assert (line["line"], line["installed"], line["reason"]) == ("digits", "1.0", "golden_mismatch")
    assert [step["state"] for step in line["history"]] == ["downloading", "installing", "succeeded"]
    assert found["slots"][0]["active"] is True
    assert found["pipelines"][0]["effective"] == "onnx:cpu"
    assert who.viewer.get(f"/devices/{cam}/telemetry").json()["items"][0]["body"]["fps"] == 9.5
    assert who.viewer.get(f"/devices/{cam}/predictions").json()["front"][0]["top"][0]["label"] == "seven"
    assert slug(who.viewer.get("/devices/nope")) == (404, "not-found")


def test_devices_are_filtered_by_what_they_are_and_how_they_are(console: ConsoleSite, who: People, cam: str):
    console.enroll("cam-silent")

    def names(**params: str) -> set[str]:
        return {row["device"] for row in who.viewer.get("/devices", params=params).json()["items"]}

    assert names(health="failed") == {cam}
    assert "cam-silent" in names(presence="offline")
    assert names(text="silent") == {"cam-silent"}
    assert names(group="no-such-group") == set()
    assert slug(who.viewer.get("/devices", params={"limit": 0})) == (422, "invalid")


def test_a_refusal_repeats_what_was_seen_and_never_what_may_be_secret(who: People):
    refused = who.viewer.get("/devices", params={"limit": "many"}).json()
    assert refused["detail"].endswith('; seen: "many"')
    assert refused["errors"][0]["reason"].endswith('; seen: "many"')
    long = who.viewer.get("/devices", params={"limit": "x" * 5000}).json()
    assert len(long["detail"]) < 300
    wish = who.operator.post("/campaigns", json={"line": "digits", "release": "1.0", "phases": [{"until_percent": 4000}]})
    assert "seen: 4000" in wish.text, wish.text
    value = "hunter2" * 1000
    for path, body in (("secrets/door", {"value": value}), ("secrets/door", value), ("secrets/door", {"value": [value]})):
        assert "hunter2" not in who.operator.put(f"/devices/cam-1/{path}", json=body, headers={"If-Match": "*"}).text
    user = {"name": "eva", "permissions": ["viewer"]}
    for secret in ({"password": 4711}, {"password": "4711" * 500}, {"pasword": "4711"}, {"must_change_password": "4711"}):
        wrong = who.admin.post("/users", json={**user, **secret})
        assert slug(wrong) == (422, "invalid")
        assert "4711" not in wrong.text


def test_pipelines_are_replaced_as_a_whole_and_only_against_what_was_seen(who: People, cam: str):
    before = who.operator.get(f"/devices/{cam}")
    wanted = [{"name": "side", "line": "digits", "source": {"kind": "camera", "device": "/dev/video1"}}]
    done = who.operator.put(f"/devices/{cam}/pipelines", json={"pipelines": wanted}, headers={"If-Match": before.headers["etag"]})
    assert done.status_code == 200, done.text
    assert [one["name"] for one in done.json()["pipelines"]] == ["side"]
    stale = who.operator.put(f"/devices/{cam}/pipelines", json={"pipelines": []}, headers={"If-Match": before.headers["etag"]})
    assert slug(stale) == (412, "precondition-failed")
    bad = [{"name": "side", "line": "digits", "source": {"kind": "telepathy"}}]
    refused = who.operator.put(f"/devices/{cam}/pipelines", json={"pipelines": bad}, headers={"If-Match": "*"})
    assert slug(refused) == (422, "invalid")
    assert slug(who.viewer.put(f"/devices/{cam}/pipelines", json={"pipelines": []}, headers={"If-Match": "*"})) == (403, "forbidden")


def test_labels_groups_and_revocation(who: People, console: ConsoleSite):
    console.enroll("cam-moved")
    console.online("cam-moved")
    etag = who.operator.get("/devices/cam-moved").headers["etag"]
    labeled = who.operator.put("/devices/cam-moved/labels", json={"labels": {"floor": "2"}}, headers={"If-Match": etag})
    assert labeled.json()["labels"] == {"floor": "2"}
    who.operator.post("/groups", json={"name": "upstairs"})
    moved = who.operator.post("/devices/cam-moved/move", json={"group": "upstairs"}, headers={"If-Match": labeled.headers["etag"]})
    assert moved.json()["group"] == "upstairs"
    assert slug(who.operator.request("DELETE", "/groups/upstairs", headers={"If-Match": "*"})) == (409, "conflict")
    gone = who.operator.post("/devices/cam-moved/revoke", json={"reason": "stolen"}, headers={"If-Match": moved.headers["etag"]})
    assert gone.json()["state"] == "revoked"
    rows = {row["device"]: row for row in who.viewer.get("/devices", params={"group": "upstairs"}).json()["items"]}
    assert (rows["cam-moved"]["state"], rows["cam-moved"]["presence"]) == ("revoked", "offline")


def test_a_secret_is_sealed_to_the_device_and_read_by_nobody(who: People, cam: str):
    assert who.operator.put(f"/devices/{cam}/secrets/rtsp", json={"value": "user:hunter2"}).status_code == 204
    found = who.operator.get(f"/devices/{cam}")
    assert found.json()["secrets"] == ["rtsp"]
    assert "hunter2" not in found.text + who.auditor.get("/audit").text
    assert who.operator.request("DELETE", f"/devices/{cam}/secrets/rtsp").status_code == 204


def test_an_invitation_shows_its_token_once(who: People):
    made = who.admin.post("/invites", json={"device_type": DEVICE_TYPE})
    assert made.status_code == 201
    body = made.json()
    assert body["token"].startswith("mrg1.t0.")
    assert body["token"] in body["command"]
    assert body["token"] not in who.admin.get("/invites").text
    assert who.admin.request("DELETE", f"/invites/{body['token_id']}").status_code == 204
    assert slug(who.operator.post("/invites", json={"device_type": DEVICE_TYPE})) == (403, "forbidden")


# --- from a model to a campaign ---


def test_a_model_becomes_a_release_that_somebody_else_approved_and_a_key_signed(console: ConsoleSite, who: People):
    model = upload_digits(who.operator)
    body = {"line": "digits", "version": "1.0", "models": [{"model_id": model["id"]}], "note": "first"}
    made = who.operator.post("/releases", json=body, headers={"Idempotency-Key": "release-1"})
    assert made.status_code == 201, made.text
    again = who.operator.post("/releases", json=body, headers={"Idempotency-Key": "release-1"})
    assert (again.status_code, again.json()) == (201, made.json())
    other = who.operator.post("/releases", json={**body, "note": "else"}, headers={"Idempotency-Key": "release-1"})
    assert slug(other) == (422, "invalid")
    assert slug(who.operator.post("/releases", json=body)) == (409, "conflict")

    assert slug(who.operator.post("/releases/digits/1.0/publish", json={})) == (409, "conflict")
    approval = who.operator.post("/releases/digits/1.0/propose", json={"reason": "ready"}).json()["approval"]
    decision = {"decision": "approve", "reason": "figures hold"}
    assert slug(who.operator.post(f"/approvals/{approval}/decide", json=decision, headers={"If-Match": "*"})) == (403, "forbidden")
    assert slug(who.approver.post(f"/approvals/{approval}/decide", json=decision)) == (428, "precondition-required")
    etag = who.approver.get(f"/approvals/{approval}").headers["etag"]
    decided = who.approver.post(f"/approvals/{approval}/decide", json=decision, headers={"If-Match": etag})
    assert (decided.json()["state"], decided.json()["decided_by"]) == ("approved", "person:an-approver")

    task = who.approver.get("/signing-requests", params={"line": "digits", "version": "1.0"}).json()["items"][0]
    wrong = who.approver.post(f"/signing-requests/{task['request']}", json={"signed": task["payload"]})
    assert wrong.status_code in {403, 422}, wrong.text
    key = load_key(console.ground.registry.folders.line_key_file("digits"))
    signed = sign_line_role(
        base64.b64decode(task["payload"]),
        previous=base64.b64decode(task["previous"]),
        line=LineName("digits"),
        approved=task["content_digest"],
        signer=key,
    )
    done = who.approver.post(f"/signing-requests/{task['request']}", json={"signed": base64.b64encode(signed).decode()})
    assert done.json()["state"] == "signed", done.text
    published = who.operator.post("/releases/digits/1.0/publish", json={"reason": "go"})
    assert published.json()["state"] == "published", published.text
    entries = who.auditor.get("/audit", params={"subject": "release/digits/1.0"}).json()["items"]
    assert [entry["reason"] for entry in entries if entry["action"] == "release.published"] == ["go"]
    trail = [entry["action"] for entry in entries]
    assert trail[::-1] == ["release.created", "release.proposed", "release.approved", "release.signed", "release.published"]
    head = who.auditor.get("/audit/verify").json()
    assert who.auditor.get("/audit/verify", params={"anchor": f"{head['number']}:{head['hash']}"}).status_code == 200
    forged = f"{head['number']}:sha256:{'0' * 64}"
    assert slug(who.auditor.get("/audit/verify", params={"anchor": forged})) == (403, "forbidden")


def test_a_campaign_is_created_paused_resumed_and_aborted(console: ConsoleSite, who: People):
    console.enroll("cam-target")
    made = who.operator.post("/campaigns", json={"line": "digits", "release": "1.0", "group": "default"})
    assert made.status_code == 201, made.text
    found = made.json()
    assert {one["state"] for one in found["devices"]} == {"waiting"}
    assert found["total"] == len(found["devices"]) >= 1
    path = f"/campaigns/{found['campaign']}"
    assert slug(who.operator.post(f"{path}/pause", json={})) == (428, "precondition-required")
    paused = who.operator.post(f"{path}/pause", json={"reason": "wait"}, headers={"If-Match": made.headers["etag"]})
    assert paused.json()["state"] == "paused"
    resumed = who.operator.post(f"{path}/resume", json={}, headers={"If-Match": paused.headers["etag"]})
    assert resumed.json()["state"] == "running"
    stale = who.operator.post(f"{path}/abort", json={"reason": "no"}, headers={"If-Match": made.headers["etag"]})
    assert slug(stale) == (412, "precondition-failed")
    aborted = who.operator.post(f"{path}/abort", json={"reason": "no"}, headers={"If-Match": resumed.headers["etag"]})
    assert aborted.json()["state"] == "aborted"
    assert who.viewer.get("/campaigns").json()["items"][0]["campaign"] == found["campaign"]
    assert slug(who.viewer.post("/campaigns", json={"line": "digits", "release": "1.0", "group": "default"})) == (403, "forbidden")
    assert slug(who.operator.post("/campaigns", json={"line": "digits", "release": "9.9", "group": "default"})) == (404, "not-found")


def test_a_campaign_that_compares_says_how_and_shows_what_devices_said(console: ConsoleSite, who: People):
    console.enroll("cam-compares")
    wish = {"line": "digits", "release": "1.0", "group": "default"}
    made = who.operator.post("/campaigns", json={**wish, "as": "ab", "share": 0.25, "cpu": 0.1, "until": "2099-01-01T00:00:00Z"})
    assert made.status_code == 201, made.text
    found = made.json()
    assert [found[name] for name in ("as", "share", "cpu")] == ["ab", 0.25, 0.1]
    assert found["until"].startswith("2099-01-01T00:00:00")
    assert found["comparisons"] == []
    assert who.viewer.get("/devices/cam-compares/comparisons", params={"pipeline": "door"}).json()["comparisons"] == []
    assert slug(who.viewer.get("/devices/cam-unknown/comparisons")) == (404, "not-found")
    over = {"as": "shadow", "until": "2001-01-01T00:00:00Z"}
    for bad in ({"as": "canary"}, {"as": "ab"}, {"as": "shadow", "cpu": 2}, {"share": 0.5}, over):
        assert slug(who.operator.post("/campaigns", json={**wish, **bad})) == (422, "invalid"), bad
    ended = who.operator.post(f"/campaigns/{found['campaign']}/abort", json={"reason": "ok"}, headers={"If-Match": made.headers["etag"]})
    assert ended.json()["state"] == "aborted"


@pytest.mark.parametrize(
    ("data", "manifest", "told"),
    [
        (b"not a model at all", None, "no model file"),
        (b"", None, "empty"),
        (None, "labels = [", "neither JSON nor TOML"),
        (None, '{"task": "classification"}', "labels"),
    ],
)
def test_what_is_no_model_or_no_manifest_is_refused_by_name(who: People, data: bytes | None, manifest: str | None, told: str):
    file = data if data is not None else (DIGITS / "models" / "1.0" / "onnx" / "model.onnx").read_bytes()
    draft = without_none(encode(load_draft(DIGITS / "onnx.toml")))
    answer = who.operator.post(
        "/models", data={"name": "bad", "manifest": manifest or json.dumps(draft)}, files={"file": ("m.onnx", file)}, timeout=120
    )
    assert slug(answer) == (422, "invalid"), answer.text
    assert told in answer.text
    assert who.operator.get("/models", params={"name": "bad"}).json()["items"] == []


# --- the server itself ---


def test_health_needs_no_login_and_the_rest_of_the_server_does(console: ConsoleSite, who: People):
    assert console.http.get("/api/v1/healthz").json() == {"ok": True}
    assert console.http.get("/api/v1/server").status_code == 401
    assert who.viewer.get("/server").json()["demo_keys"] is True


def test_the_document_names_every_route(who: People):
    document = who.viewer.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    own = {"/api/v1/healthz", "/api/v1/server", "/api/v1/watch", "/api/v1/openapi.json"}
    named = {re.sub(r"\{[^}]+\}", "x", path.removeprefix("/api/v1")) for path in document["paths"] if path not in own}
    assert named == {path for _, path in routes()}
    assert admin_api.document() == document
