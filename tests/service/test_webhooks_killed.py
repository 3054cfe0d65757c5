"""kill -9 of the process that delivers, in the middle of it: every event comes at least once, with one id. I9."""

import time
from dataclasses import replace
from pathlib import Path

import httpx

from service.auth import create_key
from service.settings import Settings
from service.store import Store
from tests.service.ray_double import RayDouble
from tests.service.receiver import PATIENCE_S, is_signed, receiver
from tests.service.served import served

SWEEPS = 4


def test_every_event_comes_at_least_once_whoever_is_killed(settings: Settings, tmp_path: Path) -> None:
    store = Store(settings.database_url)
    headers = {"authorization": f"Bearer {create_key(store, 'tests')}"}
    with RayDouble() as ray, receiver() as there:
        there.slow_s = 10 * PATIENCE_S  # the first process hears no answer
        settings = replace(
            settings,
            reconcile=True,
            reconcile_interval_s=0.1,
            ray_jobs_url=ray.url,
            ray_token="a-token",
            webhook_loopback=True,
            webhook_timeout_s=2 * PATIENCE_S,
        )
        with served(settings, tmp_path / "first") as program:
            http = httpx.Client(base_url=program.url, headers=headers, trust_env=False, timeout=PATIENCE_S)
            hook = http.post("/v1/webhooks", json={"url": there.url, "events": ["job.*"]}).json()
            ids = [http.post("/v1/sweeps", json={"name": f"s{n}"}).json()["id"] for n in range(SWEEPS)]
            for id in ids:
                assert http.post(f"/v1/sweeps/{id}/cancel").status_code == 202
            there.wait(SWEEPS)
            program.process.kill()
            http.close()
        there.slow_s = 0.0
        with served(settings, tmp_path / "second") as program:
            http = httpx.Client(base_url=program.url, headers=headers, trust_env=False, timeout=PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            # In this order: once all are over, nothing new is put aside.
            while (
                any(http.get(f"/v1/sweeps/{id}").json()["state"] != "CANCELLED" for id in ids)
                or http.get(f"/v1/webhooks/{hook['id']}/deliveries?state=PENDING").json()["data"]
            ):
                assert time.monotonic() < deadline, (tmp_path / "second").read_text()
                time.sleep(0.1)
            stored = {
                f"{id}-{event['id']}": event["type"]
                for id in ids
                for event in http.get(f"/v1/sweeps/{id}/events?limit=200").json()["data"]
                if event["type"].startswith("job.")
            }
            http.close()
            program.end()
    store.close()
    came = {message.headers["webhook-id"]: message.type for message in there.messages}
    assert came == stored and list(stored.values()).count("job.cancelled") == SWEEPS
    assert len(there.messages) > len(stored), "what nobody knew to have come came again"
    assert all(is_signed(message, hook["secret"]) for message in there.messages)
    for id in ids:
        told = [message.headers["webhook-id"] for message in there.messages if message.json["data"]["parent"] == id]
        assert told == sorted(told), "in order, repetitions among them"
