"""`simpo webhooks ...` and `Client.webhooks` against the application, and `verified` for who receives."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import Client
from service.client_errors import WaitTimeout
from service.client_webhooks import verified
from service.settings import Settings
from service.webhook_wire import headers_of, new_secret
from tests.fakes import FakeClock
from tests.service.conftest import Plane, make_plane
from tests.service.receiver import PATIENCE_S, Receiver, is_signed, receiver, settle


class Through(httpx.BaseTransport):
    """The application as a network; after each request, what is due is delivered."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        answer = self._plane.client.request(request.method, path, content=request.read(), headers=request.headers)
        settle(self._plane)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx.Response(answer.status_code, headers=headers, content=answer.content)


@pytest.fixture
def local(settings: Settings) -> Iterator[Plane]:
    yield from make_plane(settings, webhook_loopback=True, webhook_timeout_s=PATIENCE_S)


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def simpo(plane: Plane, *words: str) -> tuple[int, str]:
    found = CliRunner().invoke(
        app, ["--url", "http://service.test", "--key", plane.key, "webhooks", *words], obj=Through(plane)
    )
    return found.exit_code, found.output


def test_the_life_of_a_webhook_on_the_command_line(local: Plane, there: Receiver) -> None:
    code, text = simpo(local, "create", there.url, "--event", "job.queued", "-e", "gate.*", "--description", "ours")
    id, secret = text.split("\n")[0], text.rpartition(" ")[2].strip()
    assert code == 0 and id.startswith("whk_") and secret.startswith("whsec_")
    assert simpo(local, "test", id) == (0, "delivered: 200\n")
    told, now = there.messages[0], local.clock.now().timestamp()
    assert verified(secret, told.headers, told.body, now=lambda: now)["type"] == "webhook.test"
    code, text = simpo(local, "rotate", id, "--grace", "1h")
    newer = text.strip()
    simpo(local, "test", id)
    local.clock.advance(3601)
    simpo(local, "test", id)
    both, one = there.messages[1:]
    assert [is_signed(both, each) for each in (secret, newer)] == [True, True]
    assert [is_signed(one, each) for each in (secret, newer)] == [False, True]
    there.answer = lambda number, message: (500, {})
    code, text = simpo(local, "test", id)
    assert code == 1 and "not delivered: Answered 500." in text
    code, text = simpo(local, "list")
    assert code == 0 and id in text and secret not in text
    shown = json.loads(simpo(local, "show", id, "--json")[1])
    assert (shown["failures"], shown["description"], shown.get("secret")) == (1, "ours", None)
    (pending,) = json.loads(simpo(local, "deliveries", id, "--state", "PENDING", "--json")[1])
    code, text = simpo(local, "retry", id, pending["id"])
    assert code == 2 and "A PENDING delivery cannot be tried again." in text
    assert simpo(local, "enable", id)[0] == 2
    assert simpo(local, "delete", id) == (0, f"{id} is deleted\n")
    assert "There is no webhook" in simpo(local, "list")[1]
    code, text = simpo(local, "create", "https://10.0.0.1/", "--event", "job.*")
    assert code == 2 and "url: must be of the public internet" in text


def test_the_client_retries_enables_and_waits(local: Plane, there: Receiver) -> None:
    there.answer = lambda number, message: (410 if number == 0 else 200, {})
    clock = FakeClock()
    with Client(
        "http://service.test", local.key, transport=Through(local), sleep=clock.advance, clock=clock.monotonic
    ) as client:
        hook = client.webhooks.create(there.url, ["job.queued"])
        client.webhooks.test(hook["id"])
        assert client.webhooks.get(hook["id"])["reason"] == "GONE"
        assert client.webhooks.enable(hook["id"])["state"] == "ACTIVE"
        (dead,) = client.webhooks.deliveries(hook["id"], state="DEAD")
        client.webhooks.retry(hook["id"], dead["id"])
        assert client.webhooks.wait(hook["id"], dead["id"])["state"] == "DELIVERED"
        with pytest.raises(WaitTimeout):
            client.webhooks.wait(hook["id"], "dlv_nobody")
        assert [each["id"] for each in client.webhooks.iterate()] == [hook["id"]]


@pytest.mark.quick
def test_a_receiver_believes_what_is_signed_and_fresh_alone() -> None:
    clock, secret, body = FakeClock(), new_secret(), b'{"type":"job.failed"}'
    headers = headers_of([secret], "swp_1-evt_00000001", body, clock.now())
    now = clock.now().timestamp()
    assert verified(secret, headers, body, now=lambda: now + 299) == {"type": "job.failed"}
    two = headers | {"webhook-signature": f"v1,AAAA v2,b {headers['webhook-signature']}"}
    assert verified(secret, two, body, now=lambda: now)
    other_time = headers | {"webhook-timestamp": str(int(now) + 1)}
    for wrong in (headers | {"webhook-id": "swp_2-evt_00000001"}, other_time, headers | {"webhook-signature": "v1,"}):
        with pytest.raises(ValueError, match="signature"):
            verified(secret, wrong, body, now=lambda: now)
    for given, payload in ((new_secret(), body), (secret, body + b" ")):
        with pytest.raises(ValueError, match="signature"):
            verified(given, headers, payload, now=lambda: now)
    for ahead in (301, -301):
        with pytest.raises(ValueError, match="replay"):
            verified(secret, headers, body, now=lambda: now + ahead)  # noqa: B023  # called at once
    for missing in headers.keys() & {"webhook-id", "webhook-timestamp", "webhook-signature"}:
        with pytest.raises(ValueError, match="no webhook"):
            verified(secret, {name: each for name, each in headers.items() if name != missing}, body, now=time.time)


def test_a_secret_that_got_lost_on_its_way_is_said_to_be(local: Plane, there: Receiver) -> None:
    """The client repeats a POST whose answer it did not get, and a repeated answer has no secret."""

    class Losing(Through):
        lost = False

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if not self.lost:
                self.lost = True
                raise httpx.ReadError("the connection broke")
            return answer

    words = ["--url", "http://service.test", "--key", local.key, "webhooks", "create", there.url, "-e", "job.*"]
    found = CliRunner().invoke(app, words, obj=Losing(local))
    assert found.exit_code == 1 and "was lost on its way: simpo webhooks rotate whk_" in found.output
    assert len(local.client.get("/v1/webhooks").json()["data"]) == 1
