"""The console without scripts: logging in, what pages show, what forms change, what other sites cannot do."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from console_site import PASSWORD, Browser, ConsoleSite, running_site, upload_digits
from simulators.clock import START, FakeClock

from fleet import parts
from fleet.parts import PartState
from fleet.registry import store as registry_store
from fleet.registry.model import DeltaState, ReleaseDelta
from fleet.registry.signing import KeyName
from fleet.web.app import CONTENT_SECURITY_POLICY
from fleet.web.auth import COOKIE
from protocol.clock import to_unix_ms
from protocol.delta.container import NO_BASE
from protocol.ids import DEFAULT_TENANT, LineName, ReleaseVersion

PAGES = ("/", "/devices", "/models", "/campaigns", "/approvals", "/audit", "/account")


@pytest.fixture(scope="module")
def maria(console: ConsoleSite) -> Browser:
    """An approver who may read the audit log."""
    console.person("maria", "approver", "auditor")
    return console.browser("maria")


@pytest.fixture(scope="module")
def ola(console: ConsoleSite) -> Browser:
    """An operator."""
    console.person("ola", "operator")
    return console.browser("ola")


# --- logging in ---


@pytest.mark.parametrize("path", PAGES)
def test_every_page_sends_who_is_not_logged_in_to_the_login(console: ConsoleSite, path: str):
    answer = console.http.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


def test_the_cookie_is_out_of_reach_and_new_at_every_login(console: ConsoleSite, maria: Browser):
    data = {"name": "maria", "password": PASSWORD}
    first, second = (maria.post("/login", data=data).headers["set-cookie"] for _ in range(2))
    assert first != second
    attributes = {part.strip().lower() for part in first.split(";")[1:]}
    assert attributes == {"httponly", "path=/", "samesite=lax", "secure"}
    assert first.startswith(f"{COOKIE}=")
    # the cookie that this browser had ended with the first of the two
    maria.headers["Cookie"] = second.partition(";")[0]
    assert maria.get("/").status_code == 200


@pytest.mark.parametrize(
    ("wanted", "reached"), [("/devices?health=failed", "/devices?health=failed"), ("//evil", "/"), ("https://evil/x", "/")]
)
def test_a_login_leads_back_to_our_own_pages_only(console: ConsoleSite, maria: Browser, wanted: str, reached: str):
    headers = {"Origin": console.url, "Sec-Fetch-Site": "same-origin"}
    answer = console.http.post("/login", data={"name": "maria", "password": PASSWORD, "next": wanted}, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, reached)


def test_a_wrong_password_shows_the_form_again_and_sets_no_cookie(console: ConsoleSite):
    headers = {"Origin": console.url}
    answer = console.http.post("/login", data={"name": "no-such-person", "password": "x"}, headers=headers)
    assert answer.status_code == 401
    assert "Name or password is wrong" in answer.text
    assert "set-cookie" not in answer.headers


def test_logging_out_ends_the_session_on_the_server(console: ConsoleSite, maria: Browser):
    browser = console.browser("maria")
    assert browser.submit("/logout").headers["location"] == "/login"
    assert browser.get("/").status_code == 303


def test_changing_the_password_needs_the_old_one_and_logs_out(console: ConsoleSite):
    console.person("changer", "viewer")
    browser = console.browser("changer")
    assert "The old password is wrong" in browser.submit("/account/password", old="wrong wrong", new="a brand new sentence").text
    assert browser.submit("/account/password", old=PASSWORD, new="a brand new sentence").headers["location"] == "/login"
    assert browser.get("/").status_code == 303


# --- other sites ---


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost.evil.example"},
    ],
)
def test_a_form_of_another_site_changes_nothing(console: ConsoleSite, maria: Browser, headers: dict[str, str]):
    cookie = {"Cookie": maria.headers["Cookie"]}
    answer = httpx.post(
        f"{console.url}/logout", data={"csrf_token": maria.csrf()}, headers={**cookie, **headers}, trust_env=False, timeout=60
    )
    assert answer.status_code == 403
    assert maria.get("/").status_code == 200


def test_a_form_without_this_sessions_token_changes_nothing(console: ConsoleSite, maria: Browser, ola: Browser):
    assert maria.post("/logout", data={"csrf_token": ola.csrf()}).status_code == 403
    assert maria.post("/logout").status_code == 403
    assert maria.get("/").status_code == 200


def test_a_cookie_alone_does_not_change_anything_through_the_api(console: ConsoleSite, ola: Browser):
    assert ola.post("/api/v1/groups", json={"name": "sly"}).status_code == 403
    made = ola.post("/api/v1/groups", json={"name": "honest"}, headers={"X-CSRF-Token": ola.csrf()})
    assert made.status_code == 201


def test_pages_forbid_everything_that_is_not_ours(maria: Browser):
    answer = maria.get("/")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_static_files_are_kept_forever_and_compressed(console: ConsoleSite, maria: Browser):
    for url in re.findall(r'(?:src|href)="(/static/[^"#]+)', maria.get("/").text):
        answer = console.http.get(url)
        assert answer.status_code == 200, url
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
    assert maria.get("/static/mooring.0000000000.css").status_code == 404


# --- what pages show ---


def test_every_page_says_that_the_keys_are_for_demos(console: ConsoleSite, maria: Browser):
    for path in PAGES:
        assert "Demo keys." in maria.get(path).text, path
    assert "Demo keys." in console.http.get("/login").text


class FastClock(FakeClock):
    speed = 60.0


def test_every_page_says_what_of_the_server_stands_still_since_when_and_why(tmp_path):
    now = datetime.now(UTC)
    with running_site(tmp_path) as site:
        site.person("maria", "approver", "auditor")
        maria = site.browser("maria")
        assert "stands still" not in maria.get("/").text
        with site.ground.database.transaction() as tx:
            states = {"ingest": PartState("The broker refuses it: <b>x</b>.", now - timedelta(hours=2), now - timedelta(hours=1))}
            parts.report(tx, DEFAULT_TENANT, "host:1", states, now=now + timedelta(seconds=40))
        for path in PAGES:
            page = maria.get(path).text
            assert page.count("ingest stands still since") == 1, path
            assert "The broker refuses it: &lt;b&gt;x" in page
        page = maria.get("/alarms").text
        assert f"ingest stands still since {now - timedelta(hours=1):%Y-%m-%d %H:%M:%S} UTC" in page
        assert "What devices say is not stored" in page
        for path in ("/live/home", "/live/alarms"):
            with maria.stream("GET", path) as live:
                assert "event: standstills" in list(itertools.takewhile(lambda line: "ingest stands" not in line, live.iter_lines()))
        [told] = site.api("eva", "admin").get("/server").json()["standstills"]
        assert (told["part"], told["text"]) == ("ingest", "The broker refuses it: <b>x</b>.")


def test_every_page_says_that_the_clock_runs_fast(tmp_path):
    with running_site(tmp_path, clock=FastClock(START)) as site:
        site.person("ola", "viewer")
        browser = site.browser("ola")
        for path in ("/", "/devices", "/models", "/login"):
            assert "Clock runs 60x." in browser.get(path).text, path
        # sessions end by system time: a fast clock logs nobody out
        site.services.clock.advance(days=3)
        assert browser.get("/").status_code == 200


def test_empty_pages_say_what_to_do(tmp_path):
    with running_site(tmp_path) as site:
        site.person("ola", "viewer")
        browser = site.browser("ola")
        assert "mooring device invite" in browser.get("/").text
        assert "mooring device invite" in browser.get("/devices").text
        assert "mooring model import" in browser.get("/models").text
        assert "mooring campaign create" in browser.get("/campaigns").text
        assert "Nothing waits" in browser.get("/approvals").text


def test_home_tells_what_is_wrong_and_what_to_do(console: ConsoleSite, maria: Browser):
    console.enroll("cam-sick")
    console.online("cam-sick", source_lost="error", clock_unset="warning")
    text = maria.get("/").text
    assert "cam-sick" in text
    assert "text of source_lost" in text
    assert "cable, power, address" in text


def test_a_device_page_tells_its_whole_story(console: ConsoleSite, maria: Browser):
    console.enroll("cam-story")
    console.online("cam-story", release_blocked="warning")
    console.runs("cam-story", "1.0", state="failed", reason="golden_mismatch", text="wanted 7, got 1")
    console.perf("cam-story", fps=12.5)
    console.predict("cam-story", "label-seven")
    text = maria.get("/devices/cam-story").text
    for wanted in (
        "12.5",
        "label-seven",
        "golden_mismatch",
        "slot a",
        "installing",
        "onnx:cpu",
        "video /srv/a.mp4 (loop)",
        "release_blocked",
    ):
        assert wanted in text, wanted
    assert maria.get("/devices/no-such").status_code == 404


def test_what_to_do_about_a_refusal_goes_by_its_reason(console: ConsoleSite, maria: Browser):
    console.enroll("cam-floor")
    since = to_unix_ms(console.services.clock.now())
    told = {"code": "trust_refused", "severity": "error", "text": "old-release: digits 1.3 has counter 4", "since": since}
    console.say("cam-floor", "reported", desired_rev=1, config={}, conditions=[told])
    assert "Assign a newer release; floors never fall." in maria.get("/devices/cam-floor").text


def test_a_revoked_device_says_so_in_the_list_and_on_its_page(console: ConsoleSite, maria: Browser, ola: Browser):
    console.enroll("cam-thief")
    console.online("cam-thief")
    assert "until 20" in maria.get("/devices/cam-thief").text
    operator = console.api("an-operator", "operator")
    etag = operator.get("/devices/cam-thief").headers["etag"]
    operator.post("/devices/cam-thief/revoke", json={"reason": "stolen"}, headers={"If-Match": etag})
    page, table = maria.get("/devices/cam-thief").text, maria.get("/devices", params={"text": "cam-thief"}).text
    for text in (page, table):
        assert "revoked" in text
        assert "broadcast" not in text, "it is not shown as online"
    assert "until 20" not in page


def way_of(page: str) -> list[tuple[str, str]]:
    """State and kind of each point of the update's way on a device page."""
    strip = re.search(r'<ol class="path".*?</ol>', page, re.DOTALL)
    return [] if strip is None else re.findall(r'<li class="(\w+)"[^>]*>([\w ]+)', strip[0])


def test_a_device_page_shows_where_on_its_way_an_update_is_and_what_it_waits_for(console: ConsoleSite, maria: Browser):
    console.enroll("cam-way")
    console.online("cam-way")
    console.runs("cam-way", "1.1", state="waiting", waits_for="window", transfer="delta", bytes_needed=1234)
    text = maria.get("/devices/cam-way").text
    assert way_of(text) == [
        *(("done", name) for name in ("downloading", "verifying", "installing")),
        ("now", "waiting"),
        *(("ahead", name) for name in ("activating", "probing", "committing", "succeeded")),
    ]
    assert "Waits for <strong>window</strong>" in text
    assert "as a delta of 1.2 kB" in text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"state": "downloading", "progress": 40}, "comes in full, 3.0 MB"),
        ({"state": "downloading", "progress": 40, "waits_for": "window"}, "to come in full, 3.0 MB"),
        ({"state": "verifying", "progress": 100}, "came in full, 3.0 MB"),
        ({"state": "probing", "progress": 100}, "came in full, 3.0 MB"),
    ],
)
def test_files_are_said_to_come_only_while_they_are_fetched(console: ConsoleSite, maria: Browser, said: dict[str, Any], words: str):
    device = f"cam-{said['state']}-{len(said)}"
    console.enroll(device)
    console.online(device)
    console.runs(device, "1.1", transfer="full", bytes_needed=3_000_000, **said)
    page = maria.get(f"/devices/{device}").text
    assert f", {words}</span>" in page
    for text in (page, maria.get(f"/devices?text={device}").text):
        assert device in text
        assert (f"{said['progress']} %" in text) is (said["state"] == "downloading")


def test_a_stopped_update_shows_where_it_was_stopped(console: ConsoleSite, maria: Browser):
    console.enroll("cam-stopped")
    console.online("cam-stopped")
    console.runs(
        "cam-stopped", "1.1", state="failed", reason="golden_mismatch", text="output 3 differs", history=("downloading", "installing")
    )
    assert way_of(maria.get("/devices/cam-stopped").text)[-2:] == [("bad", "installing"), ("bad", "failed")]


def test_an_operator_offers_a_failed_release_again_and_a_viewer_is_not_asked(console: ConsoleSite, maria: Browser, ola: Browser):
    console.enroll("cam-again")
    console.online("cam-again")
    console.runs("cam-again", "1.1", state="failed", reason="golden_mismatch", text="output 3 differs")
    assert "offer-again" in ola.get("/devices/cam-again").text
    assert "offer-again" not in maria.get("/devices/cam-again").text
    refused = ola.submit("/devices/cam-again/offer-again", line="digits")
    assert (refused.status_code, "Nothing is assigned" in refused.text) == (409, True)
    assert maria.submit("/devices/cam-again/offer-again", line="digits").status_code == 403


def test_consent_is_asked_of_operators_only_while_a_device_waits_for_it(console: ConsoleSite, maria: Browser, ola: Browser):
    console.enroll("cam-asks")
    console.online("cam-asks")
    console.runs("cam-asks", "1.1", state="waiting", waits_for="consent")
    assert 'name="answer" value="yes"' in ola.get("/devices/cam-asks").text
    assert 'name="answer"' not in maria.get("/devices/cam-asks").text
    assert ola.submit("/devices/cam-asks/consent", line="digits", answer="yes").status_code == 409  # nothing is assigned to it
    console.runs("cam-asks", "1.1", state="waiting", waits_for="window")
    assert 'name="answer"' not in ola.get("/devices/cam-asks").text


def test_a_device_page_tells_which_configuration_is_in_force_and_why_it_went_back(console: ConsoleSite, maria: Browser):
    console.enroll("cam-conf")
    console.online("cam-conf")
    returned = {"group": "default", "rev": 4, "attempt": 1, "reason": "link_lost", "text": "No broker for 300 s.", "at": 1}
    reported = {"state": "returned", "group": "default", "rev": 3, "attempt": 1, "returned": returned, "ignored": {"update.new": "unknown"}}
    console.say("cam-conf", "reported", desired_rev=1, config={}, conditions=[], configuration=reported)
    text = maria.get("/devices/cam-conf").text
    for wanted in ("revision 3", "from configuration 4", "link_lost", "No broker for 300 s.", "update.new"):
        assert wanted in text, wanted


def test_what_devices_say_is_shown_as_text_and_never_as_markup(console: ConsoleSite, maria: Browser):
    console.enroll("cam-evil")
    console.online("cam-evil")
    console.predict("cam-evil", "<script>alert(1)</script>")
    console.runs("cam-evil", "1.0", state="failed", reason="<b>x</b>", text="<img src=x>")
    text = maria.get("/devices/cam-evil").text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_devices_are_filtered_and_paged_without_scripts(console: ConsoleSite, maria: Browser):
    for number in range(52):
        console.enroll(f"many-{number:03}")
    first = maria.get("/devices", params={"text": "many"}).text
    assert "many-049" in first
    assert "many-050" not in first
    link = re.search(r'rel="next" href="([^"]+)"', first)
    assert link is not None
    second = maria.get(link[1].replace("&amp;", "&")).text
    assert "many-051" in second
    assert 'href="/devices/many-049"' not in second
    assert "No device fits" in maria.get("/devices?text=zebra").text


def test_a_viewer_sees_no_audit_log_and_an_error_is_a_page(console: ConsoleSite):
    console.person("vera", "viewer")
    browser = console.browser("vera")
    assert 'href="/audit"' not in browser.get("/").text
    answer = browser.get("/audit")
    assert answer.status_code == 403
    assert "vera may not do audit:read" in answer.text
    assert "<nav" in answer.text


# --- what forms change ---


def test_an_approval_is_decided_by_somebody_else_with_a_reason(console: ConsoleSite, maria: Browser, ola: Browser):
    operator = console.api("ola")
    model = upload_digits(operator)
    assert operator.post("/releases", json={"line": "digits", "version": "1.0", "models": [{"model_id": model["id"]}]}).status_code == 201
    approval = operator.post("/releases/digits/1.0/propose", json={}).json()["approval"]
    assert "Release digits 1.0" in maria.get("/").text
    path = f"/approvals/{approval}"
    assert 'name="decision"' not in ola.get(path).text
    assert ola.submit(path, decision="approve", reason="mine", revision="1").status_code == 403
    assert maria.submit(path, decision="approve", reason=" ", revision="1").status_code == 422
    assert maria.submit(path, decision="approve", reason="read it", revision="9").status_code == 412
    assert maria.submit(path, decision="approve", reason="read it", revision="1").status_code == 303
    page = maria.get("/models/digits/1.0").text
    for wanted in ("approved", "read it", "digits-onnx.1", "model.onnx", "examples/digits/train.py"):
        assert wanted in page, wanted
    assert "How it travels" not in page
    with console.ground.database.transaction() as tx:
        release = registry_store.get_release(tx, DEFAULT_TENANT, LineName("digits"), ReleaseVersion("1.0"))
        model = next(file for file in release.variants[0].files if file.name.startswith("model"))
        half = ReleaseDelta(
            DEFAULT_TENANT,
            NO_BASE,
            model.sha256,
            DeltaState.USABLE,
            0,
            model.length // 2,
            f"sha256:{'b' * 64}",
            0.1,
            "",
            console.services.clock.now(),
        )
        registry_store.save_delta(tx, half)
    page = maria.get("/models/digits/1.0").text
    assert "How it travels" in page
    assert "2.0×" in page
    assert "approval.approved" in maria.get("/audit?verify=1").text
    assert "none changed" in maria.get("/audit?verify=1").text


def test_an_unknown_release_and_campaign_are_not_found(maria: Browser):
    for path in ("/models/digits/9.9", "/campaigns/ca-none", "/approvals/apr-none"):
        assert maria.get(path).status_code == 404, path


def test_home_says_what_keys_and_clock_of_the_server_need_and_how_to_help(tmp_path):
    clock = FakeClock()
    with running_site(tmp_path, clock=clock) as site:
        site.person("vera", "viewer")
        vera, folders = site.browser("vera"), site.services.registry.folders
        site.services.registry.guard.see(clock.now())
        page = vera.get("/").text
        assert "<code>demo-keys</code>" in page
        assert not re.search("role-ends|online-key-missing|clock-not-believed", page)
        folders.key_file(KeyName.DIRECTOR_TARGETS).rename(tmp_path / "away.pem")
        page = vera.get("/").text
        assert "The server cannot sign director-targets" in page
        assert "mooring keys rotate --online --repository director" in page
        clock.advance(days=352)
        page = site.browser("vera").get("/").text
        assert re.search("The signature of image-root ends in 13 days.*mooring keys renew --role image-root", page, re.DOTALL)
        assert "mooring keys clock --reason" in page


def test_a_release_below_the_floor_says_so_where_people_choose_one(console: ConsoleSite, maria: Browser):
    line, version = LineName("digits"), ReleaseVersion("1.0")
    api = console.api("maria")
    assert "below the floor" not in maria.get("/models").text + maria.get(f"/models/{line}/{version}").text
    assert api.get(f"/releases/{line}/{version}").json()["is_below_floor"] is False
    with console.ground.database.transaction() as tx:
        registry_store.raise_floor(tx, DEFAULT_TENANT, line, 7)
    assert "below the floor" in maria.get("/models").text
    assert "The floor of the line is 7" in maria.get(f"/models/{line}/{version}").text
    assert [one["is_below_floor"] for one in api.get("/releases").json()["items"]] == [True]
