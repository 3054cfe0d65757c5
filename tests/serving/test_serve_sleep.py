"""A deployment that sleeps, on a real Ray Serve behind the real service: from one replica to none, and back.

The methods run in the order of the file: Serve reports what is open every 10 s, so falling asleep takes its time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from service.local_process import members
from service.local_ray import RayHead
from service.serving.declared import SERVE_DEPLOYMENT
from service.serving.deployer import APPLICATIONS_PATH
from tests.serving.serve_service import LONG, NO_END, Service, service_on, wait

pytestmark = pytest.mark.ray

WAITING = 3
"""Requests that the gateway lets wait for a replica."""


@pytest.fixture(scope="module")
def service(head: tuple[RayHead, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Nothing is deployed yet."""
    with service_on(*head, tmp_path_factory.mktemp("service"), max_waiting=WAITING, wake_s=240.0) as found:
        found.name = "drowsy"
        yield found


def replicas(service: Service) -> list[psutil.Process]:
    return service.replicas(service.deployment)


def loaded(service: Service) -> int:
    """Replicas that have loaded the model so far, by their logs: these stay when a replica leaves."""
    logs = service.head.temp_dir / "r/session_latest/logs/serve"
    found = logs.glob(f"replica_{service.deployment}_*.log")
    return sum("Finished initializing replica" in log.read_text() for log in found)


def rests(service: Service) -> bool:
    """Whether Serve has no replica, and nothing to do before somebody asks."""
    answer = httpx.get(
        f"{service.head.dashboard_url}{APPLICATIONS_PATH}",
        headers={"authorization": f"Bearer {service.token}"},
        timeout=120,
        trust_env=False,
    )
    told = answer.json()["applications"][service.deployment]
    idle = told["status"] == "RUNNING" and told["deployments"][SERVE_DEPLOYMENT]["replicas"] == []
    return idle and replicas(service) == []


@contextmanager
def nothing_starts(service: Service) -> Iterator[None]:
    """Serve's controller stands still meanwhile: no replica comes, however quick the machine is."""
    (controller,) = members(service.head.stack_id, "ray::ServeController")
    controller.suspend()
    try:
        yield
    finally:
        controller.resume()


def test_it_is_loaded_once_and_then_sleeps(service: Service) -> None:
    wish = {"name": "drowsy", "sweep": service.sweep, "min_replicas": 0, "idle_s": 1}
    made = service.client.post("/v1/deployments", json=wish).json()
    service.deployment = made["id"]
    assert (made["min_replicas"], made["idle_s"]) == (0, 1)
    wait(lambda: service.get()["state"] == "READY")
    assert loaded(service) == 1, "it was loaded, not only declared"
    looks = []

    def asleep() -> bool:
        looks.append(service.get())
        return bool(looks[-1]["reason"] == "ASLEEP")

    wait(asleep)
    assert looks[-1]["state"] == "READY" and "the next request starts one" in looks[-1]["message"]
    wait(lambda: rests(service))
    assert loaded(service) == 1, "that it may sleep from now on starts nothing"
    listed = service.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["drowsy"], "it is there for whoever asks"


def test_requests_wait_for_a_replica_so_many_and_the_rest_is_told(service: Service) -> None:
    """A streamed one waits like the others."""
    answers: list[httpx.Response] = []
    wishes: list[dict[str, Any]] = [{"stream": True}] + [{}] * (WAITING + 1)
    threads = [threading.Thread(target=lambda more=more: answers.append(service.ask(**more))) for more in wishes]
    with nothing_starts(service):
        for thread in threads:
            thread.start()
        wait(lambda: len(answers) == len(wishes) - WAITING)
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert sorted(answer.status_code for answer in answers) == [200] * WAITING + [503] * 2
    for answer in answers:
        if answer.status_code == 200:
            assert answer.headers["x-simpo-version"] == "rev-1"
        else:
            assert answer.json()["error"]["code"] == "model_starting" and answer.headers["retry-after"] == "5"
    wait(lambda: service.version() == "rev-1" and len(replicas(service)) == 1)  # who is slow to look wakes it again


def test_a_stream_is_not_cut_by_the_time_after_which_it_would_sleep(service: Service) -> None:
    body = {"model": "drowsy", "prompt": "hello", "temperature": 0, "max_tokens": LONG, "logit_bias": NO_END}
    number, last = 0, ""
    with service.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                number, last = number + 1, line
    assert last == "data: [DONE]" and number > 100


def test_told_to_stay_it_stays_with_the_replica_that_it_has(service: Service) -> None:
    wait(lambda: service.version() == "rev-1" and len(replicas(service)) == 1)
    process = service.replica(service.deployment)
    before = loaded(service)
    assert service.wish("scaling", min_replicas=1)["idle_s"] is None
    wait(lambda: service.get()["reason"] == "READY")
    assert service.version() == "rev-1"
    time.sleep(5.0)  # a replica that were started anew would be there by then, beside the one that answers
    wait(lambda: replicas(service) == [process] or not process.is_running())  # it may have been about to leave
    assert not process.is_running() or loaded(service) == before
