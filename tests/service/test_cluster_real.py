"""The jobs contract on the pinned Ray: an upgrade that changes one of these facts is noticed here."""

from collections.abc import Iterator

import pytest

from service.cluster import Jobs, JobsError, RayJobs
from service.local_ray import RayHead
from tests.contracts import JobsContract
from tests.ray_head import private_head

pytestmark = pytest.mark.ray

PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, str]]:
    """A private Ray head and its token."""
    with private_head(tmp_path_factory.mktemp("jobs") / "ray.log") as head:
        yield head


@pytest.fixture(scope="module")
def jobs(head: tuple[RayHead, str]) -> Iterator[Jobs]:
    jobs = RayJobs(head[0].dashboard_url, head[1], timeout_s=PATIENCE_S)
    yield jobs
    jobs.close()


@pytest.fixture
def sleeper() -> str:
    return "echo the driver speaks; exec sleep 3600"


class TestRayJobs(JobsContract):
    """The contract on Ray's REST API, and what only a real job shows."""

    wait_s = PATIENCE_S

    def test_a_stopped_job_becomes_terminal_and_is_still_known(self, jobs: Jobs) -> None:
        self.wait(lambda: "the driver speaks" in jobs.logs("swp-contract-a1"))  # else it might be stopped before
        super().test_a_stopped_job_becomes_terminal_and_is_still_known(jobs)

    def test_what_it_said_can_be_read(self, jobs: Jobs) -> None:
        assert "the driver speaks" in jobs.logs("swp-contract-a1")

    def test_a_failed_job_says_so(self, jobs: Jobs) -> None:
        jobs.submit("swp-contract-a2", "echo last words; exit 3", {})
        self.wait(lambda: (info := jobs.get("swp-contract-a2")) is not None and info.terminal)
        info = jobs.get("swp-contract-a2")
        assert info is not None and info.status == "FAILED" and "last words" in info.message


def test_a_wrong_token_is_unreachable_with_the_remedy(head: tuple[RayHead, str]) -> None:
    jobs = RayJobs(head[0].dashboard_url, "f" * 32, timeout_s=PATIENCE_S)
    with pytest.raises(JobsError, match="SIMPO_RAY_TOKEN") as caught:
        jobs.list()
    assert caught.value.unreachable
    jobs.close()
