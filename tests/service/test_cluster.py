"""RayJobs against a scripted REST API, and the contract on the fake."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cluster import Jobs, JobsError, RayJobs, driver_command, driver_env
from service.ids import submission_id
from tests.contracts import JobsContract
from tests.fakes import FakeJobs

pytestmark = pytest.mark.quick

TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: Job with id x already exists. Please\n.\n"


def jobs_on(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> RayJobs:
    """RayJobs whose Ray is a function."""
    return RayJobs("http://ray.test:8265", "secret", transport=httpx.MockTransport(answer), **options)


@pytest.fixture(scope="module")
def jobs() -> Jobs:
    return FakeJobs()


@pytest.fixture
def sleeper() -> str:
    return "sleep 60"


class TestFakeJobs(JobsContract):
    """The fake of the control plane's tests keeps the promises of the real one."""


def test_a_submit_says_everything_and_no_secret() -> None:
    seen: list[httpx.Request] = []

    def ray(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"submission_id": "swp-a-a1"})

    jobs_on(ray, driver_resource="driver").submit("swp-a-a1", "run it", driver_env(15))
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/api/jobs/")
    assert request.headers["authorization"] == request.headers["x-ray-authorization"] == "Bearer secret"
    assert json.loads(request.content) == {
        "submission_id": "swp-a-a1",
        "entrypoint": "run it",
        "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "15", "PYTHONUNBUFFERED": "1"}},
        "entrypoint_resources": {"driver": 0.01},
    }
    assert b"secret" not in request.content


def test_the_entrypoint_is_safe_in_a_shell() -> None:
    command = driver_command("/opt/a b/python", Path("/store/$(x)/swp_1"), 3)
    assert command == (
        "'/opt/a b/python' -m sweeps run '/store/$(x)/swp_1/spec.json' --out '/store/$(x)/swp_1' --attempt 3"
    )
    assert driver_command("python", Path("/s"), 1, public_judge=True).endswith(" --attempt 1 --public-judge")


@pytest.mark.parametrize("odd", ["a/b", "../../etc/passwd", "x" * 300, "A", "é", "1a", ""])
def test_an_id_that_ray_would_keep_pending_for_ever_is_never_sent(odd: str) -> None:
    with pytest.raises(AssertionError):
        jobs_on(lambda request: httpx.Response(200)).submit(odd, "x", {})


def test_our_ids_fit() -> None:
    assert submission_id("swp_01j8x0000000000000000000zz", 12) == "swp-01j8x0000000000000000000zz-a12"


@pytest.mark.parametrize(
    ("answer", "unreachable", "words"),
    [
        (httpx.Response(500, text=TRACEBACK), False, "already exists"),
        (httpx.Response(400, text="bad"), False, "answered 400: bad"),
        (httpx.Response(503), True, "answered 503"),
        (httpx.Response(401, text="x"), True, "SIMPO_RAY_TOKEN"),
        (httpx.Response(403, text="x"), True, "SIMPO_RAY_TOKEN"),
    ],
)
def test_anything_but_200_is_no_clear_yes(answer: httpx.Response, unreachable: bool, words: str) -> None:
    with pytest.raises(JobsError, match=words) as caught:
        jobs_on(lambda request: answer).submit("swp-a-a1", "x", {})
    assert caught.value.unreachable == unreachable
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("too slow")])
def test_silence_is_unreachable_for_every_call(error: httpx.HTTPError) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise error

    jobs = jobs_on(silent)
    calls: list[Callable[[], object]] = [
        lambda: jobs.submit("swp-a-a1", "x", {}),
        lambda: jobs.get("swp-a-a1"),
        jobs.list,
        lambda: jobs.stop("swp-a-a1"),
        lambda: jobs.logs("swp-a-a1"),
    ]
    for call in calls:
        with pytest.raises(JobsError, match=r"ray\.test:8265 does not answer") as caught:
            call()
        assert caught.value.unreachable


def test_jobs_that_others_started_are_not_ours_to_see() -> None:
    driver = {"submission_id": None, "status": "RUNNING", "type": "DRIVER"}
    ours = {"submission_id": "swp-a-a1", "status": "FAILED", "message": "exit 1", "type": "SUBMISSION"}
    jobs = jobs_on(lambda request: httpx.Response(200, json=[driver, ours])).list()
    assert list(jobs) == ["swp-a-a1"] and jobs["swp-a-a1"].terminal


def test_the_end_of_a_long_log_without_its_colours() -> None:
    log = "x" * 9000 + "\x1b[31mboom\x1b[0m"
    tail = jobs_on(lambda request: httpx.Response(200, json={"logs": log})).logs("swp-a-a1")
    assert tail.endswith("xboom") and len(tail) == 4000
