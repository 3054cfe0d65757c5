"""Webhooks over a real receiver: signed, in order, again until it works or is given up, and never to a wrong place."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service import courier, deliveries, events, outbox
from service.auth import create_key
from service.models_webhooks import Webhook, WebhookDelivery
from service.settings import Settings
from service.webhook_reach import Checked, client
from sweeps.judges_reach import NotPublic
from tests.service.certificates import self_signed
from tests.service.conftest import Plane, make_plane
from tests.service.faults.world import wait
from tests.service.postgres import fresh_database
from tests.service.receiver import BODY, PATIENCE_S, Message, Receiver, is_signed, receiver, settle

Json = dict[str, Any]


@pytest.fixture
def local(settings: Settings) -> Iterator[Plane]:
    """A plane that may tell this machine."""
    yield from make_plane(settings, webhook_loopback=True, webhook_timeout_s=PATIENCE_S)


@pytest.fixture
def there() -> Iterator[Receiver]:
    """A receiver."""
    with receiver() as found:
        yield found


def subscribe(plane: Plane, url: str, *events: str, **more: Any) -> Json:
    answer = plane.client.post("/v1/webhooks", json={"url": url, "events": list(events) or ["*"], **more})
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


def told(plane: Plane, hook: Json, query: str = "?order=asc") -> list[Json]:
    found: list[Json] = plane.client.get(f"/v1/webhooks/{hook['id']}/deliveries{query}").json()["data"]
    return found


def shown(plane: Plane, hook: Json) -> Json:
    found: Json = plane.client.get(f"/v1/webhooks/{hook['id']}").json()
    return found


def test_events_come_signed_in_order_and_once(local: Plane, there: Receiver) -> None:
    hook = subscribe(local, there.url, "job.*", "trial.completed", description="ours")
    assert hook["secret"].startswith("whsec_") and hook["state"] == "ACTIVE"
    assert "secret" not in shown(local, hook), "shown once"
    sweep_id = local.post()["id"]
    local.turn()
    driver = local.drive(sweep_id).start()
    driver.create(0)
    settle(local)
    local.client.post(f"/v1/sweeps/{sweep_id}/cancel")
    for _ in range(4):
        settle(local)
        local.clock.advance(1.0)
    of_jobs = [kind for kind in local.events(sweep_id) if kind.startswith("job.")]
    assert there.types == of_jobs and of_jobs[-1] == "job.cancelled"
    listed = {event["id"]: event for event in local.client.get(f"/v1/sweeps/{sweep_id}/events").json()["data"]}
    for message in there.messages:
        assert is_signed(message, hook["secret"]) and not is_signed(message, "whsec_AAAA")
        data = message.json["data"]
        assert listed[data["id"]].items() <= data.items() and data["parent"] == sweep_id
        assert message.headers["webhook-id"] == f"{sweep_id}-{data['id']}"
        assert abs(int(message.headers["webhook-timestamp"]) - local.clock.now().timestamp()) < 60
        assert message.path == "/hook?a=b" and "authorization" not in message.headers
    assert {row["state"] for row in told(local, hook)} == {"DELIVERED"}
    assert [row["type"] for row in told(local, hook)] == of_jobs


def test_on_postgresql_too(postgres: Path, tmp_path: Path, there: Receiver) -> None:
    settings = Settings(database_url=fresh_database(postgres), store=tmp_path / "store", reconcile=False)
    for plane in make_plane(settings, webhook_loopback=True, webhook_timeout_s=PATIENCE_S):
        there.answer = lambda number, message: (500 if number == 0 else 200, {})
        hook, sweep_id = subscribe(plane, there.url, "job.*"), plane.post()["id"]
        for _ in range(3):
            settle(plane)
            plane.clock.advance(6.5)
        assert there.types == ["job.queued", "job.queued", "job.submitted"]
        deleted = plane.client.delete(f"/v1/webhooks/{hook['id']}", headers={"if-match": "*"})
        assert deleted.status_code == 200
        plane.client.post(f"/v1/sweeps/{sweep_id}/cancel")
        settle(plane)
        assert len(there.messages) == 3


def test_what_fails_is_tried_again_and_holds_up_its_own_history_alone(local: Plane, there: Receiver) -> None:
    failing = 2

    def answer(number: int, message: Message) -> tuple[int, dict[str, str]]:
        first = message.json["data"]["parent"] == one
        return (500 if first and sum(m.json["data"]["parent"] == one for m in there.messages) <= failing else 200), {}

    there.answer = answer
    hook = subscribe(local, there.url, "job.queued", "job.submitted", "job.cancelled")
    one, two = local.post("one")["id"], local.post("two")["id"]
    local.client.post(f"/v1/sweeps/{two}/cancel")
    for _ in range(16):
        settle(local)
        local.clock.advance(5.0)
    by_parent = {id: [m.type for m in there.messages if m.json["data"]["parent"] == id] for id in (one, two)}
    assert by_parent == {one: ["job.queued"] * 3 + ["job.submitted"], two: ["job.queued", "job.cancelled"]}
    again = [m for m in there.messages if m.json["data"]["parent"] == one][:3]
    assert len({m.headers["webhook-id"] for m in again}) == 1, "the same id in every attempt"
    assert len({m.headers["webhook-timestamp"] for m in again}) == 3, "and another time"
    assert all(is_signed(m, hook["secret"]) for m in again)
    first = next(row for row in told(local, hook) if row["parent"] == one)
    assert (first["attempts"], first["status"], first["message"]) == (3, 200, "")
    assert shown(local, hook)["failures"] == 0


def test_what_never_gets_through_is_given_up_seen_and_can_be_asked_for_again(local: Plane, there: Receiver) -> None:
    there.answer = lambda number, message: (503, {"retry-after": "20"})
    hook = subscribe(local, there.url, "job.queued")
    local.post()
    for pause in (*deliveries.PAUSES_S, 0):
        settle(local)
        (row,) = told(local, hook)
        local.clock.advance(max(pause * 1.2, 20) + 4096)
    assert len(there.messages) == row["attempts"] == deliveries.MAX_ATTEMPTS
    assert (row["state"], row["status"], row["message"]) == ("DEAD", 503, "Answered 503.")
    assert told(local, hook, "?state=DEAD") == [row] and told(local, hook, "?state=PENDING") == []
    assert shown(local, hook)["state"] == "ACTIVE" and shown(local, hook)["failures"] == deliveries.MAX_ATTEMPTS
    there.answer = lambda number, message: (204, {})
    again = local.client.post(f"/v1/webhooks/{hook['id']}/deliveries/{row['id']}/retry")
    assert again.status_code == 202 and again.json()["state"] == "PENDING"
    local.clock.advance(5000)
    settle(local)
    assert told(local, hook)[0]["state"] == "DELIVERED"
    refused = local.client.post(f"/v1/webhooks/{hook['id']}/deliveries/{row['id']}/retry")
    assert refused.status_code == 409 and refused.json()["current_state"] == "DELIVERED"
    with local.store.write() as session:
        deliveries.forget(session, local.clock.now() + timedelta(days=31))
    assert told(local, hook) == []


def test_what_was_put_aside_as_a_webhook_ended_is_given_up(local: Plane, there: Receiver) -> None:
    """Its transaction had seen the webhook ACTIVE, and was committed after the end."""
    hook = subscribe(local, there.url, "job.queued")
    local.client.delete(f"/v1/webhooks/{hook['id']}", headers={"if-match": "*"})
    with local.store.write() as session:
        event = events.append(session, session.get_one(Webhook, hook["id"]), "job.queued", "", now=local.clock.now())
        outbox.put(session, hook["id"], event)
    settle(local)
    with local.store.write() as session:
        deliveries.forget(session, local.clock.now())
    assert there.messages == [] and [row["state"] for row in told(local, hook)] == ["DEAD"]


def test_a_receiver_is_left_in_peace_while_our_database_does_not_write(
    local: Plane, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_UNRECORDED_S", PATIENCE_S)  # longer than this test stands still
    subscribe(local, there.url, "job.queued")
    local.post()
    full = "CREATE TRIGGER full BEFORE UPDATE ON webhook_deliveries BEGIN SELECT RAISE(FAIL, 'full'); END"
    with local.store.write() as session:
        session.execute(text(full))
    for _ in range(5):
        local.reconciler.run_once()
        there.wait(1)
        time.sleep(0.05)
    assert len(there.messages) == 1 and local.reconciler.delivering
    local.reconciler.stop()


@pytest.mark.parametrize(("status", "reason"), [(410, "GONE"), (500, "FAILING")])
def test_who_wants_nothing_or_fails_for_days_is_disabled_with_a_reason(
    local: Plane, there: Receiver, status: int, reason: str
) -> None:
    there.answer = lambda number, message: (status, {})
    hook = subscribe(local, there.url, "job.queued")
    local.post("a")
    settle(local)
    local.clock.advance(3 * 86400 + 1)
    settle(local)
    found = shown(local, hook)
    assert (found["state"], found["reason"]) == ("DISABLED", reason) and found["message"]
    assert [row["state"] for row in told(local, hook)] == ["DEAD"]
    assert local.events(hook["id"]) == ["webhook.created", "webhook.disabled"]
    local.post("b", "runs")
    assert len(told(local, hook)) == 1, "nothing is put aside for it"
    assert local.client.post(f"/v1/webhooks/{hook['id']}/test").json()["allowed"] == ["delete", "enable", "rotate"]
    there.answer = lambda number, message: (200, {})
    enabled = local.client.post(f"/v1/webhooks/{hook['id']}/enable").json()
    assert (enabled["state"], enabled["failures"], enabled["failing_since"]) == ("ACTIVE", 0, None)
    local.client.post(f"/v1/webhooks/{hook['id']}/test")
    settle(local)
    assert there.types[-1] == "webhook.test" and told(local, hook, "")[0]["state"] == "DELIVERED"


def test_a_redirect_is_not_followed_and_no_answer_is_kept(local: Plane, there: Receiver, tmp_path: Path) -> None:
    with receiver() as elsewhere:
        there.answer = lambda number, message: (302, {"location": elsewhere.url, "x-secret": "in-a-header"})
        hook = subscribe(local, there.url)
        tested = local.client.post(f"/v1/webhooks/{hook['id']}/test")
        assert tested.status_code == 202 and tested.json()["type"] == "webhook.test"
        settle(local)
        assert len(there.messages) == 1 and elsewhere.messages == []
    (row,) = told(local, hook)
    assert (row["status"], row["message"]) == (302, "Answered 302; redirects are not followed.")
    with local.store.read() as session:
        kept = repr([dict(each) for each in session.execute(text("SELECT * FROM webhook_deliveries")).mappings()])
    everything = kept + repr(row) + repr(shown(local, hook))
    assert BODY.decode() not in everything and "in-a-header" not in everything


def test_an_answer_without_end_and_one_that_does_not_come_hold_up_nobody(settings: Settings) -> None:
    with receiver() as endless, receiver() as silent, receiver() as good:
        endless.endless, silent.slow_s = True, 10 * PATIENCE_S
        with contextmanager(make_plane)(settings, webhook_loopback=True, webhook_timeout_s=2 * PATIENCE_S) as plane:
            hooks = [subscribe(plane, each.url, "job.queued") for each in (endless, silent, good)]
            plane.post()
            plane.reconciler.run_once()
            wait(lambda: [told(plane, hook)[0]["state"] for hook in hooks] == ["DELIVERED", "PENDING", "DELIVERED"])
            assert plane.reconciler.delivering and len(good.messages) == 1
            plane.reconciler.stop()
        for plane in make_plane(settings, webhook_loopback=True, webhook_timeout_s=1.0):
            settle(plane)
            (row,) = told(plane, hooks[1])
            assert (row["state"], row["attempts"], row["message"]) == ("PENDING", 1, "No answer within 1 s.")
            assert row["next_attempt_at"]


def test_delivering_never_holds_up_a_pass(settings: Settings) -> None:
    with receiver() as silent:
        silent.slow_s = 10 * PATIENCE_S
        for plane in make_plane(settings, webhook_loopback=True, webhook_timeout_s=2 * PATIENCE_S):
            subscribe(plane, silent.url)
            sweep_id = plane.post()["id"]
            for _ in range(3):
                plane.reconciler.run_once()
            silent.wait(1)
            assert plane.sweep(sweep_id)["reason"] == "STARTING" and plane.reconciler.delivering
            began = time.monotonic()
            plane.reconciler.stop()
            assert time.monotonic() - began < PATIENCE_S and len(silent.messages) == 1
            with plane.store.read() as session:
                rows = session.query(WebhookDelivery).order_by(WebhookDelivery.seq).all()
                assert [(row.state, row.attempts) for row in rows] == [("PENDING", 0)] * len(rows), "sent by the next"


def test_a_deleted_one_forgets_its_secret_and_hears_nothing(local: Plane, there: Receiver) -> None:
    hook = subscribe(local, there.url, "job.queued")
    local.post()
    path = f"/v1/webhooks/{hook['id']}"
    assert local.client.delete(path).status_code == 428
    assert local.client.post(f"{path}/rotate").json()["secret"] != hook["secret"]
    deleted = local.client.delete(path, headers={"if-match": local.client.get(path).headers["etag"]})
    assert (deleted.status_code, deleted.json()["state"]) == (200, "DELETED")
    settle(local)
    assert there.messages == [] and [row["state"] for row in told(local, hook)] == ["DEAD"]
    assert local.client.get("/v1/webhooks").json()["data"] == []
    assert local.client.delete(path, headers={"if-match": "*"}).status_code == 409
    with local.store.read() as session:
        row = session.get_one(Webhook, hook["id"])
        assert (row.secret, row.previous_secret) == ("", None)


def test_what_is_wrong_is_said_and_the_number_is_bounded(plane: Plane) -> None:
    def faults(**body: Any) -> list[str]:
        answer = plane.client.post("/v1/webhooks", json=body)
        assert answer.status_code == 422, answer.text
        return [fault["pointer"] for fault in answer.json()["errors"]]

    good = {"url": "https://hooks.example.com/a", "events": ["job.*"]}
    assert faults(**good | {"url": "http://127.0.0.1/"}) == ["/url"]
    assert faults(**good | {"events": ["job.*", "job.suceeded"]}) == ["/events/1"]
    assert faults(**good | {"events": []}) == ["/events"]
    assert faults(**good | {"secret": "mine"}) == ["/secret"]
    key = {"idempotency-key": "k"}
    first = plane.client.post("/v1/webhooks", json=good, headers=key)
    again = plane.client.post("/v1/webhooks", json=good, headers=key)
    assert again.json() == {name: value for name, value in first.json().items() if name != "secret"}
    for _ in range(19):
        subscribe(plane, good["url"])
    refused = plane.client.post("/v1/webhooks", json=good)
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_webhooks")
    pages = [plane.client.get("/v1/webhooks?limit=15").json()]
    pages.append(plane.client.get(f"/v1/webhooks?limit=15&after={pages[0]['next']}").json())
    assert [len(each["data"]) for each in pages] == [15, 5] and pages[1]["data"][-1]["id"] == first.json()["id"]


def test_a_webhook_belongs_to_its_project_and_hears_of_it_alone(local: Plane, there: Receiver) -> None:
    theirs = {"authorization": f"Bearer {create_key(local.store, 'theirs', project='prj_other')}"}
    hook = subscribe(local, there.url, "job.queued")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/enable"), ("GET", "/deliveries")):
        headers = {**theirs, "if-match": "*"}
        found = local.client.request(method, f"/v1/webhooks/{hook['id']}{path}", headers=headers)
        assert found.status_code == 404, (method, path)
    assert local.client.get("/v1/webhooks", headers=theirs).json()["data"] == []
    local.client.post("/v1/sweeps", json={"name": "theirs"}, headers=theirs)
    assert told(local, hook) == []
    local.post("ours")
    assert len(told(local, hook)) == 1


# -- where it may go, at the moment of connecting


def post(transport: Checked, url: str) -> int:
    async def once() -> int:
        async with client(transport, PATIENCE_S) as http, http.stream("POST", url, content=b"{}") as answer:
            return answer.status_code

    return asyncio.run(once())


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:169.254.169.254", "fec0::1"]
)
def test_a_name_of_an_inner_address_is_refused_before_a_byte_is_sent(address: str, there: Receiver) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", address]

    port = httpx.URL(there.url).port
    with pytest.raises(NotPublic):
        post(Checked(loopback=False, resolve=resolve), f"https://hooks.example.com:{port}/")
    assert there.messages == []


def test_a_name_that_changes_its_address_is_asked_once() -> None:
    """DNS rebinding: a public address for the check, this machine for the connection."""
    answers, seen = [["93.184.216.34"], ["127.0.0.1"]], []

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    class Inner(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            seen.append((str(request.url), request.headers["host"], request.extensions["sni_hostname"]))
            return httpx.Response(302, headers={"location": "http://169.254.169.254/"})

    checked = Checked(loopback=False, resolve=resolve, inner=Inner())
    assert post(checked, "https://hooks.example.com/a") == 302
    assert seen == [("https://93.184.216.34/a", "hooks.example.com", "hooks.example.com")] and len(answers) == 1
    with pytest.raises(NotPublic):
        post(checked, "https://hooks.example.com/a")


def test_the_next_address_is_tried_where_one_does_not_answer(there: Receiver) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["::1", "127.0.0.1"]  # nobody listens on the first

    assert post(Checked(loopback=True, resolve=resolve), there.url.replace("127.0.0.1", "localhost")) == 200
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError):
            post(Checked(loopback=True), f"http://127.0.0.1:{free.getsockname()[1]}/")


def test_the_certificate_must_be_that_of_the_name(tmp_path: Path) -> None:
    """TLS to the checked address, with the name in SNI and Host; a certificate for another name ends it."""
    certificate, key = self_signed(tmp_path, "DNS:hooks.example.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []
    context.sni_callback = lambda connection, name, _: names.append(name)  # type: ignore[assignment]
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    def checked() -> Checked:
        inner = httpx.AsyncHTTPTransport(verify=trusting, trust_env=False)
        return Checked(loopback=True, resolve=resolve, inner=inner)

    with receiver(context) as there:
        port = httpx.URL(there.url).port
        assert post(checked(), f"https://hooks.example.com:{port}/a") == 200
        assert names == ["hooks.example.com"] and there.messages[0].headers["host"] == f"hooks.example.com:{port}"
        with pytest.raises(httpx.ConnectError):
            post(checked(), f"https://other.example.com:{port}/a")
        with pytest.raises(httpx.ConnectError):
            post(Checked(loopback=True, resolve=resolve), f"https://hooks.example.com:{port}/a")
        assert len(there.messages) == 1
