"""Rules, webhooks and mail over the API and by the command line; and a delivery from the queue to a real receiver."""

import json
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from console_site import ConsoleSite, running_site
from simulators.smtp import smtp_server
from simulators.webhook import webhook_server
from waiting import wait_until

import fleet.cli
from fleet import jobs
from fleet.adapters import delivery
from fleet.adapters.mail import Encryption, MailServer
from fleet.monitoring.alerts.announcing import DELIVER


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("server")) as site:
        site.enroll("cam-1")
        site.online("cam-1")
        site.perf("cam-1", p50=40.0)
        site.tokens = SimpleNamespace(root=site.api("root", "admin"), ola=site.api("ola", "operator"))
        yield site


@pytest.fixture
def run(site: ConsoleSite, tmp_path, capsys, monkeypatch):
    token = site.tokens.root.headers["Authorization"].removeprefix("Bearer ")
    for name, value in {"XDG_CONFIG_HOME": str(tmp_path), "MOORING_SERVER": site.url, "MOORING_TOKEN": token}.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = fleet.cli.run(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def deliver(site: ConsoleSite, server: MailServer | None = None) -> None:
    handler = delivery.handler(
        site.ground.database, server=server, console_url=lambda: site.url, system_now=lambda: datetime(2026, 3, 1, tzinfo=UTC)
    )
    while jobs.work_once(site.ground.database, site.services.clock, {DELIVER: handler}) is not None:
        pass


def test_a_rule_is_made_tested_changed_and_deleted_by_who_may(site: ConsoleSite):
    root, ola = site.tokens.root, site.tokens.ola
    body = {"name": "slow", "metric": "latency_p99_ms", "threshold": 100, "recovers_at": 80}
    assert ola.post("/rules", json=body).status_code == 403
    made = root.post("/rules", json=body)
    assert (made.status_code, made.headers["etag"], made.json()["comparison"]) == (201, '"1"', "above")
    assert ola.get("/rules").json()["items"][0]["words"] == "latency p99 above 100 ms for 5 min, on all devices"
    trial = ola.post("/rule-trials", json={"metric": "latency_p99_ms", "threshold": 100, "for_s": 0, "hours": 1}).json()
    assert (trial["firings"], trial["keys"][0]["device"], trial["keys"][0]["firings"][0]["worst"]) == (1, "cam-1", 120.0)
    change = {"metric": "latency_p99_ms", "threshold": 90, "for_s": 60}
    assert root.put("/rules/slow", json=change).status_code == 428
    assert root.put("/rules/slow", json=change, headers={"If-Match": '"7"'}).status_code == 412
    assert root.put("/rules/slow", json=change, headers={"If-Match": '"1"'}).json()["revision"] == 2
    assert root.delete("/rules/slow", headers={"If-Match": '"2"'}).status_code == 204
    assert ola.get("/rules/slow").status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "weather"},
        {"threshold": "much"},
        {"recovers_at": 200},
        {"window_s": 1},
        {"scope": "group", "subject": ""},
        {"unknown": 1},
        {"name": "No Name"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(site: ConsoleSite, change):
    body = {"name": "slow", "metric": "latency_p99_ms", "threshold": 100, **change}
    answer = site.tokens.root.post("/rules", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_webhook_gets_what_it_is_sent_and_its_deliveries_are_kept(site: ConsoleSite):
    root = site.tokens.root
    with webhook_server(statuses=[500, 200]) as server:
        url = f"http://127.0.0.1:{server.port}/hook?key=hidden"
        assert root.post("/webhooks", json={"name": "pager", "url": url}).status_code == 422
        made = root.post("/webhooks", json={"name": "pager", "url": url, "allow_private": True})
        assert made.status_code == 201
        assert made.json()["secret"].startswith("whsec_")
        assert root.post("/webhooks/pager/test", json={}).status_code == 202
        deliver(site)
        [failed] = root.get("/webhooks/pager").json()["deliveries"]
        assert (failed["state"], failed["attempts"]) == ("waiting", 1)
        assert "status 500" in failed["error"]
        deliver_again(site, failed["job"])
        [done] = root.get("/webhooks/pager").json()["deliveries"]
        assert (done["state"], done["attempts"]) == ("done", 2)
    first, second = server.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert json.loads(second.body)["type"] == "mooring.recipient.test.v1"
    everything = root.get("/webhooks/pager").text + root.get("/webhooks").text
    assert made.json()["secret"] not in everything
    assert "hidden" not in everything
    assert root.delete("/webhooks/pager", headers={"If-Match": '"1"'}).status_code == 204


def test_a_webhook_that_hangs_delays_no_other(site: ConsoleSite):
    root, stop = site.tokens.root, threading.Event()
    handler = delivery.handler(site.ground.database, server=None, console_url=lambda: site.url, system_now=lambda: datetime.now(UTC))
    with webhook_server(may_answer=threading.Event()) as hanging, webhook_server() as answering:
        for name, server in (("hangs", hanging), ("answers", answering)):
            url = f"http://127.0.0.1:{server.port}/"
            assert root.post("/webhooks", json={"name": name, "url": url, "allow_private": True}).status_code == 201
        for name in ("hangs", "hangs", "answers", "answers"):
            assert root.post(f"/webhooks/{name}/test", json={}).status_code == 202
        worker = threading.Thread(
            target=jobs.work_side_by_side,
            args=(site.ground.database, site.services.clock, {DELIVER: handler}, stop),
            kwargs={"most": 8, "idle_s": 0.05},
        )
        worker.start()
        wait_until(lambda: hanging.received and len(answering.received) == 2, what="both alerts of the one that answers")
        assert len(hanging.received) == 1
        stop.set()
        hanging.may_answer.set()
        worker.join(120)
    for name in ("hangs", "answers"):
        root.delete(f"/webhooks/{name}", headers={"If-Match": "*"})


def deliver_again(site: ConsoleSite, job: str, server: MailServer | None = None) -> None:
    """The job's pause is over."""
    database = site.ground.database
    with database.transaction() as tx:
        waiting = jobs.get(tx, site.services.tenant, job)
    later = SimpleNamespace(now=lambda: waiting.due_at)
    handler = delivery.handler(database, server=server, console_url=lambda: "", system_now=lambda: datetime(2026, 3, 1, tzinfo=UTC))
    assert jobs.work_once(database, later, {DELIVER: handler}) is not None


def test_an_address_that_is_refused_repeats_no_mail_to_the_others(site: ConsoleSite):
    root = site.tokens.root
    assert root.post("/mail-recipients", json={"name": "night", "addresses": ["maria@example.org", "ola@example.org"]}).status_code == 201
    assert root.post("/mail-recipients/night/test", json={}).status_code == 202
    with smtp_server(refuses=("ola@example.org",)) as listening:
        server = MailServer("localhost", listening.port, Encryption.NONE, "mooring@example.org")
        deliver(site, server)
        told = {one["address"]: one for one in root.get("/mail-recipients/night").json()["deliveries"]}
        assert {address: (one["state"], one["attempts"]) for address, one in told.items()} == {
            "maria@example.org": ("done", 1),
            "ola@example.org": ("waiting", 1),
        }
        assert "ola@example.org: 5" in told["ola@example.org"]["error"]
        deliver_again(site, told["ola@example.org"]["job"], server)
    assert listening.recipients == [["maria@example.org"]]
    assert listening.mails[0]["To"] == "maria@example.org, ola@example.org"
    assert root.delete("/mail-recipients/night", headers={"If-Match": '"1"'}).status_code == 204


def test_what_is_queued_for_a_recipient_that_is_gone_is_told_to_nobody(site: ConsoleSite):
    root = site.tokens.root
    with webhook_server() as server:
        root.post("/webhooks", json={"name": "gone", "url": f"http://127.0.0.1:{server.port}/", "allow_private": True})
        root.post("/webhooks/gone/test", json={})
        root.delete("/webhooks/gone", headers={"If-Match": "*"})
        deliver(site)
    assert server.received == []


def test_operators_neither_see_nor_change_who_is_told(site: ConsoleSite):
    assert site.tokens.ola.get("/webhooks").status_code == 403
    assert site.tokens.ola.post("/mail-recipients", json={"name": "x", "addresses": ["a@example.org"]}).status_code == 403


def test_the_command_line_makes_tests_and_deletes_a_rule(run):
    options = ("--metric", "latency_p99_ms", "--threshold", "100", "--for", "0", "--device", "cam-1")
    code, out, err = run("rule", "test", *options)
    assert (code, "would have fired 1 times" in err, "cam-1" in out) == (0, True, True), err
    assert run("rule", "create", "slow", *options)[0] == 0
    code, out, _ = run("rule", "list")
    assert (code, "latency p99 above 100 ms, on device cam-1" in out) == (0, True)
    assert "never fired" in run("rule", "show", "slow")[2]
    assert run("rule", "create", "two", "--metric", "errors", "--threshold", "1", "--device", "a", "--group", "b")[0] == 2
    assert run("rule", "delete", "slow", "--yes", "--reason", "done")[0] == 0
    assert "Nothing fired" in run("rule", "firings")[2]


def test_the_command_line_makes_and_deletes_who_is_told(run):
    code, out, _ = run("webhook", "create", "desk", "https://example.org/hook", "--topic", "alarm")
    assert (code, out.startswith("whsec_")) == (0, True)
    assert "https://example.org/hook" in run("webhook", "list")[1]
    assert "Nothing was sent yet" in run("webhook", "show", "desk")[2]
    assert run("mail", "create", "people", "maria@example.org", "ola@example.org")[0] == 0
    assert "maria@example.org, ola@example.org" in run("mail", "list")[1]
    assert run("mail", "create", "more", "nobody")[0] == 1
    for group, name in (("webhook", "desk"), ("mail", "people")):
        assert run(group, "delete", name, "--yes", "--reason", "done")[0] == 0
