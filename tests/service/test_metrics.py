"""/metrics: what is counted, what its labels may be, who may read it."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.auth import create_key
from service.context import Context
from service.gauges import Gauges
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.receiver import PATIENCE_S, receiver, settle

Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(plane: Plane, key: str | None = None) -> dict[Sample, float]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = plane.client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def one(found: dict[Sample, float], name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def counting(settings: Settings) -> Iterator[Plane]:
    """A plane with the figures of a process that reconciles, although it moves by `turn` alone."""
    for plane in make_plane(settings, webhook_loopback=True, webhook_timeout_s=PATIENCE_S):
        context: Context = plane.client.app.state.context  # type: ignore[attr-defined]
        context.metrics.add(Gauges(plane.store, plane.clock))
        yield plane


def test_what_happens_is_counted(counting: Plane) -> None:
    with receiver() as there:
        counting.client.post("/v1/webhooks", json={"url": there.url, "events": ["job.submitted"]})
        sweep_id, waiting = counting.post("a")["id"], counting.post("b")["id"]
        counting.turn()
        driver = counting.drive(sweep_id).start()
        driver.create(0)
        driver.create(1)
        counting.turn()
        settle(counting)
        counting.client.get(f"/v1/sweeps/{sweep_id}")
        counting.client.get("/v1/sweeps/swp_nobody")
        counting.client.get("/nowhere")
        found = samples(counting)
    assert one(found, "simpo_http_requests_total", method="POST", route="/v1/sweeps", status="202") == 2
    assert one(found, "simpo_http_requests_total", method="GET", route="/v1/sweeps/{sweep_id}", status="404") == 1
    assert one(found, "simpo_http_requests_total", method="GET", route="unmatched", status="404") == 1
    assert one(found, "simpo_http_request_seconds_count", method="GET", route="/v1/sweeps/{sweep_id}") == 2
    assert one(found, "simpo_jobs", kind="sweep", state="PENDING", reason="QUEUED") == 1
    assert sum(value for (name, labels), value in found.items() if name == "simpo_jobs") == 2
    assert one(found, "simpo_queue_oldest_seconds") >= 0
    assert one(found, "simpo_attempts_total", outcome="submitted") == 1
    assert one(found, "simpo_events_total", type="job.queued") == 2
    listed = counting.client.get(f"/v1/sweeps/{sweep_id}/events").json()["data"]
    assert one(found, "simpo_ingested_records_total") == sum(event["actor"] == "driver" for event in listed) > 2
    assert one(found, "simpo_webhook_attempts_total", outcome="delivered") == 1
    assert one(found, "simpo_webhooks", state="ACTIVE") == 1 and one(found, "simpo_webhook_backlog") == 0
    assert one(found, "simpo_reconcile_pass_seconds_count", loop="reconciler") >= 2
    assert one(found, "simpo_reconcile_leader", loop="webhooks") == 1
    assert one(found, "simpo_reconcile_last_pass_timestamp_seconds", loop="reconciler") > 1e9
    assert one(found, "simpo_sse_watchers") == 0 and one(found, "simpo_http_requests_in_flight") == 1
    labels = {value for _, pairs in found for _, value in pairs}
    assert not any(id in label for label in labels for id in (sweep_id, waiting, "trl_", "whk_", "key_", "127.0.0.1"))


def test_an_adopted_attempt_and_a_lost_one_are_told_apart(counting: Plane) -> None:
    counting.jobs.lose_answers = 1
    sweep_id = counting.post()["id"]
    counting.turn()
    counting.drive(sweep_id).start()
    counting.turn()
    counting.jobs.become(f"{sweep_id.replace('_', '-')}-a1", "FAILED")
    counting.turn(23)
    found = samples(counting)
    outcomes = ("adopted", "lost", "restarted", "submitted")
    assert [one(found, "simpo_attempts_total", outcome=outcome) for outcome in outcomes] == [1, 1, 1, 1]


def test_what_is_rolled_back_is_not_counted_and_errors_of_the_database_are(plane: Plane) -> None:
    before = samples(plane)
    plane.post("a")
    assert plane.client.post("/v1/sweeps", json={"name": "a"}).status_code == 409
    with pytest.raises(OperationalError), plane.store.write() as session:
        session.execute(text("SELECT * FROM nowhere"))
    after = samples(plane)
    name = "simpo_events_total"
    assert one(after, name, type="job.queued") - one(before, name, type="job.queued") == 1
    assert one(after, "simpo_database_errors_total", kind="OperationalError") == 1


def test_who_may_read_it(plane: Plane) -> None:
    assert plane.client.get("/metrics", headers={"authorization": ""}).status_code == 401
    for scopes, status in ((["metrics"], 200), (["operator"], 403), (["admin"], 403), (["read"], 403)):
        key = create_key(plane.store, "prometheus", scopes=scopes)
        answer = plane.client.get("/metrics", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status, scopes
    narrow = create_key(plane.store, "prometheus", scopes=["metrics"])
    answer = plane.client.get("/v1/sweeps", headers={"authorization": f"Bearer {narrow}"})
    assert answer.status_code == 403, "and nothing else"
    samples(plane, create_key(plane.store, "an operator", role="operator"))


def test_the_api_alone_says_nothing_of_what_stands_in_the_database(plane: Plane) -> None:
    """Where the reconciler is a process of its own, it exports that."""
    plane.post()
    assert "simpo_jobs" not in {name for name, _ in samples(plane)}
