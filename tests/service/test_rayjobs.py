"""KubeRayJobs: the contract on a double of the API server with KubeRay and Kueue, and a whole control plane on it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cluster import Jobs, JobsError, driver_command, driver_env
from service.kube import KubeApi
from service.rayjobs import MANAGED, QUEUE, QUEUE_LABEL, SWEEP, KubeRayJobs
from service.settings import Settings
from tests.contracts import JobsContract
from tests.fakes import FakeClock
from tests.service.conftest import Plane, make_plane
from tests.service.kube_double import NAMESPACE, KubeDouble
from tests.service.kuberay_double import KubeRayDouble
from tests.service.test_rayservice import kubeconfig

Json = dict[str, Any]

TEMPLATE: Json = yaml.safe_load(
    (Path(__file__).parents[2] / "k8s/components/queued-sweeps/template.yaml").read_text(encoding="utf-8")
)
NAME = TEMPLATE["metadata"]["name"]
ENTRYPOINT = driver_command("/opt/simpo/bin/python", Path("/store/sweeps/swp_1"), 1)


class Stage:
    """A template on a double, and a submitter."""

    def __init__(self, kube: KubeDouble, folder: Path) -> None:
        self.kube = kube
        self.ray = KubeRayDouble(kube)
        self.kube.put("rayjobs", TEMPLATE)
        self.clock = FakeClock()
        self.api = KubeApi(kubeconfig=kubeconfig(folder, kube.url))
        self.jobs = KubeRayJobs(self.api, NAME, self.clock, driver_resource="driver")

    def thing(self, name: str) -> Json:
        """The RayJob."""
        return self.kube.objects["rayjobs", NAMESPACE, name]

    def submit(self, name: str = "swp-a-a1") -> None:
        """As the reconciler does."""
        self.jobs.submit(name, ENTRYPOINT, driver_env(15))

    def verbs(self) -> list[str]:
        """Since the last time."""
        found = [verb for verb, _, _ in self.kube.calls]
        self.kube.calls.clear()
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with KubeDouble() as kube:
        yield Stage(kube, tmp_path)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    with KubeDouble() as kube:
        at_work = Stage(kube, tmp_path_factory.mktemp("kube"))
        with at_work.ray.running():
            yield at_work.jobs


@pytest.fixture
def sleeper() -> str:
    return "sleep 60"


class TestKubeRayJobs(JobsContract):
    """The contract; but a stopped job is not known any more: it is deleted."""

    def test_a_stopped_job_becomes_terminal_and_is_still_known(self, jobs: Jobs) -> None:
        jobs.stop("swp-contract-a1")
        self.wait(lambda: jobs.get("swp-contract-a1") is None)
        jobs.stop("swp-contract-a1")
        assert jobs.list() == {}


def test_what_is_submitted_is_the_template_with_the_driver(stage: Stage) -> None:
    stage.submit()
    assert stage.verbs() == ["get", "create"]
    job = stage.thing("swp-a-a1")
    spec = job["spec"]
    assert spec["suspend"] and spec["shutdownAfterJobFinishes"] and spec["submissionMode"] == "K8sJobMode"
    assert (spec["backoffLimit"], spec["jobId"], spec["entrypoint"]) == (0, "swp-a-a1", ENTRYPOINT)
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": driver_env(15)}
    assert spec["entrypointResources"] == '{"driver": 0.01}'
    labels = job["metadata"]["labels"]
    assert (labels[QUEUE_LABEL], labels[MANAGED], labels[SWEEP]) == ("sweeps", "yes", "swp-a-a1")
    assert job["metadata"].get("annotations") is None
    cluster = spec["rayClusterSpec"]
    pods = [
        spec["submitterPodTemplate"],
        *(g["template"] for g in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]),
    ]
    assert {pod["metadata"]["labels"][SWEEP] for pod in pods} == {"swp-a-a1"}
    image = TEMPLATE["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == image
    assert stage.thing(NAME)["metadata"]["generation"] == 1, "the template is not touched"
    assert QUEUE_LABEL not in stage.thing(NAME)["metadata"]["labels"], "and never runs"
    (ours,) = job["metadata"]["managedFields"]
    assert ours["manager"] == "simpo"


def test_a_second_submit_changes_nothing_though_the_template_did(stage: Stage) -> None:
    stage.submit()
    stage.ray.tick(4)
    before = stage.thing("swp-a-a1")
    assert not before["spec"]["suspend"], "Kueue admitted it"
    stage.kube.edit("rayjobs", NAME, lambda t: t["spec"]["rayClusterSpec"].update(rayVersion="2.60.1"), "kubectl")
    with pytest.raises(JobsError, match="already exists") as caught:
        stage.submit()
    assert not caught.value.unreachable
    assert stage.thing("swp-a-a1") == before
    info = stage.jobs.get("swp-a-a1")
    assert info is not None and info.status == "RUNNING"


@pytest.mark.parametrize(
    ("status", "suspend", "expected"),
    [
        ({}, True, ("PENDING", "Waits in the queue sweeps of Kueue.")),
        ({"jobDeploymentStatus": "Suspended"}, True, ("PENDING", "Waits in the queue sweeps of Kueue.")),
        ({"jobDeploymentStatus": "Initializing"}, False, ("PENDING", "Its Ray cluster starts.")),
        ({"jobDeploymentStatus": "Waiting", "message": "m"}, False, ("PENDING", "m")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, False, ("PENDING", "Its Ray cluster starts.")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, False, ("RUNNING", "")),
        ({"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"}, False, ("SUCCEEDED", "")),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, False, ("SUCCEEDED", "")),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, False, ("STOPPED", "")),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit 1"},
            False,
            ("FAILED", "AppFailed exit 1"),
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, False, ("FAILED", "DeadlineExceeded")),
        ({"jobDeploymentStatus": "Suspending", "jobStatus": "RUNNING"}, True, ("RUNNING", "")),
        ({"jobDeploymentStatus": "A word of KubeRay 2"}, False, ("PENDING", "Its Ray cluster starts.")),
    ],
)
def test_states(stage: Stage, status: Json, suspend: bool, expected: tuple[str, str]) -> None:
    stage.submit()
    stage.kube.edit("rayjobs", "swp-a-a1", lambda t: t["spec"].update(suspend=suspend), "kueue")
    stage.kube.set_status("rayjobs", "swp-a-a1", status)
    job = stage.jobs.list()["swp-a-a1"]
    assert (job.status, job.message) == expected


def test_a_stop_deletes_this_very_object(stage: Stage) -> None:
    stage.submit()
    stage.kube.remove("rayjobs", "swp-a-a1")
    stage.kube.put("rayjobs", {**TEMPLATE, "metadata": {"name": "swp-a-a1"}})  # somebody's, of the same name
    with pytest.raises(JobsError, match="UID in precondition"):
        stage.jobs.stop("swp-a-a1")
    assert stage.thing("swp-a-a1")
    stage.jobs.stop("swp-never-a1")


def test_after_a_restart_the_uid_is_looked_up(stage: Stage) -> None:
    stage.submit()
    again = KubeRayJobs(stage.api, NAME, stage.clock)
    stage.verbs()
    again.stop("swp-a-a1")
    assert stage.verbs() == ["get", "delete"]
    assert again.list() == {}


def test_a_stuck_finalizer_is_told_and_the_job_is_not_over(stage: Stage) -> None:
    stage.submit()
    stage.ray.tick(3)
    stage.ray.stuck = True
    for _ in range(3):
        stage.jobs.stop("swp-a-a1")
        stage.ray.tick()
    job = stage.jobs.list()["swp-a-a1"]
    assert not job.terminal and "held by ray.io/rayjob-finalizer" in job.message
    stage.ray.stuck = False
    stage.ray.tick()
    assert stage.jobs.list() == {}


def test_nothing_of_a_strangers_text_gets_to_a_shell(stage: Stage) -> None:
    for odd in ("$(x)", "`x`", "a;b", "a'b", 'a"b', "a\\b", "a\nb", "a&b", "é"):
        with pytest.raises(JobsError, match="to a shell"):
            stage.jobs.submit("swp-a-a1", f"python {odd}", {})
        with pytest.raises(JobsError, match="to a shell"):
            stage.jobs.submit("swp-a-a1", ENTRYPOINT, {"NAME": odd})
    with pytest.raises(AssertionError):
        stage.jobs.submit("swp-$(x)", ENTRYPOINT, {})
    assert "create" not in stage.verbs()


def test_without_a_template_or_its_queue_it_waits_and_says_why(stage: Stage) -> None:
    stage.kube.edit("rayjobs", NAME, lambda t: t["metadata"].pop("annotations"), "kubectl")
    with pytest.raises(JobsError, match=f"needs the annotation {QUEUE}") as caught:
        stage.submit()
    assert caught.value.unreachable
    stage.kube.remove("rayjobs", NAME)
    with pytest.raises(JobsError, match=f"there is no RayJob {NAME}; kubectl apply -k") as caught:
        stage.submit()
    assert caught.value.unreachable


def test_a_full_quota_waits_and_a_refusal_does_not(stage: Stage) -> None:
    stage.kube.quota = {"rayjobs": 1}
    with pytest.raises(JobsError, match="exceeded quota") as caught:
        stage.submit()
    assert caught.value.unreachable
    stage.kube.quota, stage.kube.rules = {}, [{"resources": ["rayjobs"], "verbs": ["get"]}]
    with pytest.raises(JobsError, match="cannot create resource") as caught:
        stage.submit()
    assert not caught.value.unreachable


def test_what_is_long_over_is_cleared_away_a_few_at_a_time(stage: Stage) -> None:
    for number in range(25):
        stage.submit(f"swp-{number:02d}x-a1")
    stage.ray.tick(4)
    names = sorted(stage.jobs.list())
    assert len(names) == 25
    for name in names[1:]:
        stage.ray.finish(name, "SUCCEEDED")
    stage.verbs()
    stage.jobs.list()
    assert stage.verbs() == ["list"], "not at once: people may want to look"
    stage.clock.advance(2 * 3600)
    stage.jobs.list()
    assert stage.verbs().count("delete") == 20
    stage.ray.tick()
    stage.jobs.list()
    stage.ray.tick()
    assert sorted(stage.jobs.list()) == names[:1]


# -- a whole control plane


@pytest.fixture
def wired(settings: Settings, stage: Stage) -> Iterator[Plane]:
    """Sweeps are RayJobs; several at once."""
    yield from make_plane(settings, real_jobs=stage.jobs, max_running_sweeps=50)


def turn(plane: Plane, stage: Stage, times: int = 1) -> None:
    """Seconds pass for everybody."""
    for _ in range(times):
        plane.turn()
        stage.ray.tick()


def of(sweep: Json) -> str:
    """The RayJob of its first attempt."""
    return f"{sweep['id'].replace('_', '-')}-a1"


def test_a_sweep_waits_in_the_queue_runs_and_succeeds(wired: Plane, stage: Stage) -> None:
    stage.ray.slots = 0
    sweep = wired.post()
    turn(wired, stage, 3)
    shown = wired.sweep(sweep["id"])
    assert (shown["reason"], shown["message"]) == ("QUEUED", "Waits in the queue sweeps of Kueue.")
    stage.ray.slots = 1
    turn(wired, stage, 4)
    wired.drive(sweep["id"]).start().search([0.5, 0.7]).finish(winner=1)
    stage.ray.finish(of(sweep), "SUCCEEDED")
    turn(wired, stage, 2)
    assert wired.sweep(sweep["id"])["state"] == "SUCCEEDED"
    assert re.fullmatch(r"[\w./ =-]+", stage.thing(of(sweep))["spec"]["entrypoint"])


def test_a_lost_answer_is_adopted(wired: Plane, stage: Stage) -> None:
    real = stage.api.create

    def lost(plural: str, body: Json) -> Json:
        real(plural, body)
        stage.kube.faults = [(503, "ServiceUnavailable", None)]
        return real(plural, body)

    stage.api.create = lost  # type: ignore[method-assign]
    sweep = wired.post()
    turn(wired, stage, 3)
    assert wired.sweep(sweep["id"])["reason"] == "STARTING"
    assert [t["metadata"]["name"] for t in stage.kube.all("rayjobs")].count(of(sweep)) == 1


def test_cancel_is_confirmed_by_the_objects_end(wired: Plane, stage: Stage) -> None:
    sweep = wired.post()
    turn(wired, stage, 5)
    stage.ray.stuck = True
    wired.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
    turn(wired, stage, 5)
    assert wired.sweep(sweep["id"])["state"] == "CANCELLING"
    stage.ray.stuck = False
    turn(wired, stage, 3)
    assert wired.sweep(sweep["id"])["state"] == "CANCELLED"
    assert [t["metadata"]["name"] for t in stage.kube.all("rayjobs")] == [NAME]


def test_a_rayjob_that_a_human_deleted_is_the_next_attempt(wired: Plane, stage: Stage) -> None:
    sweep = wired.post()
    turn(wired, stage, 5)
    wired.drive(sweep["id"]).start()
    turn(wired, stage)
    stage.kube.remove("rayjobs", of(sweep))
    turn(wired, stage, 3)
    assert wired.sweep(sweep["id"])["reason"] == "DRIVER_GONE"
    turn(wired, stage, 30)
    assert [a.state for a in wired.attempts(sweep["id"])] == ["LOST", "SUBMITTED"]


def test_a_place_that_kueue_takes_away_costs_an_attempt_and_nothing_else(wired: Plane, stage: Stage) -> None:
    sweep = wired.post()
    turn(wired, stage, 5)
    wired.drive(sweep["id"]).start()
    turn(wired, stage)
    stage.ray.slots = 0
    stage.kube.edit("rayjobs", of(sweep), lambda t: t["spec"].update(suspend=True), "kueue")
    turn(wired, stage, 5)
    wired.clock.advance(3600)
    turn(wired, stage, 2)
    shown = wired.sweep(sweep["id"])
    assert (shown["state"], shown["reason"]) == ("RUNNING", "QUEUED"), "it waits, however long"
    assert [a.state for a in wired.attempts(sweep["id"])] == ["SUBMITTED"]
    stage.ray.slots = 1
    turn(wired, stage, 3)
    stage.ray.finish(of(sweep), "FAILED", "the attempt is claimed already")  # what its second driver says
    turn(wired, stage, 30)
    assert [a.state for a in wired.attempts(sweep["id"])] == ["LOST", "SUBMITTED"]


def test_a_list_that_lags_behind_declares_nobody_lost(wired: Plane, stage: Stage) -> None:
    stage.kube.freeze_lists()
    sweep = wired.post()
    turn(wired, stage, 5)
    driver = wired.drive(sweep["id"]).start()
    for _ in range(40):
        driver.beat()
        turn(wired, stage)
    assert [a.state for a in wired.attempts(sweep["id"])] == ["SUBMITTED"]


def test_an_idle_pass_is_one_list_however_many_sweeps(wired: Plane, stage: Stage) -> None:
    for number in range(20):
        wired.post(f"s{number}")
    turn(wired, stage, 5)
    stage.verbs()
    turn(wired, stage, 10)
    assert stage.verbs() == ["list"] * 10
