"""Fault row 21 on a real Ray Serve behind the real service: bad checkpoints, killed replicas, roll-backs under load.

The methods run in the order of the file, each going on where the one before it stopped: every version that Serve loads
takes seconds.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.local_process import kill_all, members
from service.local_ray import RayHead
from tests.serving.serve_service import ENDLESS, Service, events, service_on, wait

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def service(head: tuple[RayHead, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Nothing is deployed yet."""
    with service_on(*head, tmp_path_factory.mktemp("service")) as found:
        yield found


def flip(service: Service) -> None:
    """The last bit of the candidate's weights; the second time puts it back."""
    weights = service.run_dir / "attempts/1/trials/trl_0000/checkpoint/model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)


@dataclass(kw_only=True)
class Load:
    """What many users were answered meanwhile."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    """(version, text) of answers in words that are not that version's."""


@contextmanager
def load(service: Service) -> Iterator[Load]:
    """Four people ask one thing after the other, each time as another user."""
    told, stop = Load(), threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            answer = service.ask(user=f"user-{number}-{time.monotonic()}")
            told.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                version, text = answer.headers["x-simpo-version"], answer.json()["choices"][0]["text"]
                if text != service.texts.get(version):
                    told.wrong.append((version, text))
            else:
                assert answer.headers["retry-after"]
                stop.wait(0.3)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
    assert not any(thread.is_alive() for thread in threads)


def test_a_pickled_candidate_is_refused_and_the_champion_answers(service: Service) -> None:
    made = service.client.post("/v1/deployments", json={"name": "best", "sweep": service.sweep})
    service.deployment = made.json()["id"]
    wait(lambda: service.get()["state"] == "READY")
    assert service.version() == "rev-1"
    shown = service.canary("base", 100, until="FAILED")
    assert "pytorch_model.bin" in shown["message"] and "\n" not in shown["message"]
    assert service.version() == "rev-1" and service.get()["state"] == "READY"


def test_each_user_has_one_version_and_each_version_its_own_words(service: Service) -> None:
    service.canary("trl_0000", 50, until="READY", sticky=True)
    users = {f"user-{i}": service.version(user=f"user-{i}") for i in range(16)}
    assert Counter(users.values()).keys() == {"rev-1", "rev-3"}
    assert {user: service.version(user=user) for user in users} == users
    assert service.texts["rev-1"] != service.texts["rev-3"], "two models"


def test_a_replica_killed_in_the_middle_of_a_stream_harms_no_other(service: Service) -> None:
    users = {service.version(user=f"user-{i}"): f"user-{i}" for i in range(16)}
    lengths = {"rev-1": ENDLESS, "rev-3": 1500}
    seen: dict[str, list[dict[str, Any]]] = {version: [] for version in lengths}
    begun = {version: threading.Event() for version in seen}

    def listen(version: str) -> None:
        for event in events(service.client, lengths[version], user=users[version]):
            seen[version].append(event)
            begun[version].set()

    threads = [threading.Thread(target=listen, args=(version,)) for version in seen]
    for thread in threads:
        thread.start()
    assert all(each.wait(300) for each in begun.values())
    service.replica(service.deployment).kill()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    fault = seen["rev-1"][-1]["error"]
    assert fault["code"] == "model_unavailable" and "stopped in the middle of its answer" in fault["message"]
    assert seen["rev-3"][-1]["choices"][0]["finish_reason"] == "length", "the other stream is whole"
    answered = []

    def back() -> bool:
        answer = service.ask(user=users["rev-1"])
        answered.append(answer.status_code)
        return answer.status_code == 200

    until = time.monotonic() + 12  # Serve's own word on it comes late, or the reconciler is slow to write it down
    wait(lambda: back() and time.monotonic() > until and service.get()["state"] == "READY")
    assert set(answered) <= {200, 503}


def test_work_for_a_client_that_left_stops(service: Service) -> None:
    """The engine's work is its process's own count of CPU time: nothing else computes there."""
    users = {service.version(user=f"user-{i}"): f"user-{i}" for i in range(16)}
    replica = service.replica(service.deployment)

    def cpu_s() -> float:
        times = replica.cpu_times()
        return float(times.user + times.system)

    with closing(events(service.client, ENDLESS, user=users["rev-1"])) as stream:
        for _ in range(5):
            next(stream)
        before = cpu_s()
        wait(lambda: cpu_s() - before > 0.2)
    left_at = time.monotonic()

    def rests() -> bool:
        before = cpu_s()
        time.sleep(0.5)
        return cpu_s() - before < 0.1

    wait(rests)
    print(f"\nwork stopped {time.monotonic() - left_at - 0.5:.1f} s after the client had left")  # a figure
    assert service.version(user=users["rev-1"]) == "rev-1"


def test_one_call_rolls_back_under_load_with_no_5xx_but_503(service: Service) -> None:
    with load(service) as told:
        service.wish("rollback")
        assert service.version() == "rev-1", "at once"
        service.texts["rev-4"] = service.texts["rev-3"]  # the same checkpoint again
        service.canary("trl_0000", 50, until="READY")
        service.wish("promote")
        assert service.version() == "rev-4", "at once"
        wait(lambda: service.get("/canary")["state"] == "PROMOTED")
        service.wish("rollback")
        wait(lambda: service.get()["reason"] == "READY")
        assert service.get()["revision"] == 1
        wait(lambda: service.version() == "rev-1")
    assert told.wrong == [] and set(told.statuses) <= {200, 503} and told.statuses[200] > 20, told.statuses


def test_a_champion_that_turns_out_corrupt_leaves_the_one_before_answering(service: Service) -> None:
    service.texts["rev-5"] = service.texts["rev-3"]
    service.canary("trl_0000", 50, until="READY")
    flip(service)
    service.wish("promote")

    def over() -> bool:
        assert service.version() in ("rev-1", "rev-5")
        return bool(service.get("/canary")["state"] != "PROMOTING")

    wait(over)
    assert service.get("/canary")["state"] == "ROLLED_BACK"
    shown = service.get()
    assert (shown["state"], shown["reason"], shown["revision"]) == ("READY", "ROLLED_BACK", 1)
    assert "model.safetensors" in shown["message"]
    replica = service.replica(service.deployment).pid
    wait(lambda: service.version() == "rev-1")
    time.sleep(3)
    assert service.version() == "rev-1" and service.replica(service.deployment).pid == replica, "it never stopped"


def test_a_head_that_is_lost_comes_back_with_both_versions(service: Service, tmp_path: Path) -> None:
    """Ray without fault tolerance: all it ran dies with its head, and the next one knows nothing."""
    flip(service)
    service.texts["rev-6"] = service.texts["rev-3"]
    assert service.canary("trl_0000", 50, until="READY", sticky=True)["revision"] == 6
    users = {f"user-{i}": service.version(user=f"user-{i}") for i in range(16)}
    assert set(users.values()) == {"rev-1", "rev-6"}
    with load(service) as told:
        wait(lambda: told.statuses[200] > 20)
        (store,) = members(service.head.stack_id, "gcs_server")
        store.kill()
        wait(lambda: members(service.head.stack_id, "raylet/raylet") == [])
        assert kill_all(service.head.stack_id) == []
        wait(lambda: service.get()["reason"] == "SERVE_UNREACHABLE")
        shown = service.get()
        assert shown["state"] == "READY" and shown["stale_since"] and service.get("/canary")["state"] == "READY"
        refused = service.ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_unavailable"
        service.head.remove()
        service.head.start(service.token, tmp_path / "ray.log")
        before = told.statuses[200]
        wait(lambda: service.get()["reason"] == "READY", timeout_s=600)
        wait(lambda: told.statuses[200] > before + 20)

        def as_before() -> bool:
            answers = {user: service.ask(user=user) for user in users}
            assert all(answer.status_code in (200, 503) for answer in answers.values())
            return {user: answer.headers.get("x-simpo-version") for user, answer in answers.items()} == users

        wait(as_before)
    assert told.wrong == [] and set(told.statuses) <= {200, 503}, told.statuses
    assert service.get("/canary")["state"] == "READY" and service.get()["revision"] == 1
