"""Fine-tuning jobs over fakes: what becomes of a job when something around it fails, is deleted or cancelled."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.examine import DoctorFailed
from service.settings import Settings
from tests.service.conftest import Plane, make_plane
from tests.service.test_datasets import FakeDoctor, stored

Json = dict[str, Any]
POINT = {"beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 1e-4}


@pytest.fixture
def doctor() -> FakeDoctor:
    return FakeDoctor()


@pytest.fixture
def plane(settings: Settings, doctor: FakeDoctor) -> Iterator[Plane]:
    yield from make_plane(settings, doctor=doctor, max_running_sweeps=4)


def create(plane: Plane, **changes: Any) -> Json:
    file = plane.client.get("/v1/datasets").json()["data"] or [stored(plane)]
    method = {"type": "simpo", "simpo": {"hyperparameters": POINT}}
    body = {"model": "practice", "training_file": file[0]["id"], "method": method, **changes}
    answer = plane.client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    job: Json = answer.json()
    return job


def shown(plane: Plane, job: Json) -> Json:
    found: Json = plane.client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    return found


def trained(plane: Plane, **changes: Any) -> Json:
    """A job whose training has succeeded; the reconciler has not looked yet."""
    job = create(plane, **changes)
    plane.turn(3)
    plane.drive(job["sweep"]).start().search([0.5]).finish()
    plane.jobs.become(f"{job['sweep'].replace('_', '-')}-a1", "SUCCEEDED")
    return job


def told(plane: Plane, job: Json) -> list[str]:
    listed = plane.client.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json()["data"]
    return [event["data"]["event"] for event in listed[::-1]]


def test_it_succeeds_when_its_model_answers_and_not_before(plane: Plane) -> None:
    plane.deployer.ready = False
    job = trained(plane)
    plane.turn(3)
    waiting = shown(plane, job)
    assert (waiting["status"], waiting["state"], waiting["reason"]) == ("running", "RUNNING", "DEPLOYING")
    assert (waiting["fine_tuned_model"], waiting["trained_tokens"]) == (None, None)
    plane.deployer.become(waiting["deployment"], "READY")
    plane.turn(2)
    done = shown(plane, job)
    assert done["status"] == "succeeded" and done["fine_tuned_model"].startswith("ft-")
    assert done["trained_tokens"] == 4321, "as the driver counted them"
    # The next one starts from this one's winner, by name.
    again = create(plane, model=done["fine_tuned_model"])
    spec = plane.client.get(f"/v1/runs/{again['sweep']}").json()["spec"]
    assert job["sweep"] in spec["base_model"]


def test_a_model_that_cannot_be_deployed_fails_the_job_by_name(plane: Plane) -> None:
    job = trained(plane)
    plane.deployer.bad = {
        str(plane.settings.run_dir(job["sweep"]) / "attempts" / "1" / "trials" / "trl_0000" / "checkpoint")
    }
    plane.turn(4)
    failed = shown(plane, job)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "deployment_failed"), failed
    assert "is trained" in failed["error"]["message"] and told(plane, job)[-1] == "job.not_deployed"


def test_a_job_may_be_cancelled_until_its_model_answers(plane: Plane) -> None:
    plane.deployer.ready = False
    job = trained(plane)
    plane.turn(3)
    path = f"/v1/fine_tuning/jobs/{job['id']}/cancel"
    assert plane.client.post(path).json()["status"] == "cancelled"
    plane.turn(3)
    deployments = plane.client.get("/v1/deployments?state=DELETED").json()["data"]
    assert [each["id"] for each in deployments] == [shown(plane, job)["deployment"]]
    refused = plane.client.post(path)
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "illegal_transition"
    assert refused.headers["x-should-retry"] == "false"


def test_a_deployment_that_is_deleted_on_its_way_fails_the_job(plane: Plane) -> None:
    plane.deployer.ready = False
    job = trained(plane)
    plane.turn(3)
    where = f"/v1/deployments/{shown(plane, job)['deployment']}"
    assert plane.client.delete(where, headers={"if-match": "*"}).status_code == 200
    plane.turn(3)
    assert shown(plane, job)["error"]["code"] == "deployment_deleted"


def test_training_that_fails_says_why(plane: Plane) -> None:
    job = create(plane)
    plane.turn(3)
    plane.drive(job["sweep"]).start().fail("no pair fits into max_length")
    plane.turn(2)
    failed = shown(plane, job)
    assert (failed["status"], failed["fine_tuned_model"]) == ("failed", None)
    assert failed["error"]["message"] == "no pair fits into max_length"


def test_a_file_that_nobody_could_look_at_is_trained_on(plane: Plane, doctor: FakeDoctor) -> None:
    doctor.error = DoctorFailed("It took too long.")
    job = create(plane)
    assert (job["status"], job["state"], job["reason"]) == ("validating_files", "VALIDATING", "VALIDATING")
    assert plane.jobs.calls == []
    plane.turn(3)
    assert told(plane, job)[:3] == ["job.validating", "job.not_validated", "job.queued"]
    assert shown(plane, job)["reason"] in ("STARTING", "QUEUED")


def test_a_job_is_cancelled_while_its_file_is_looked_at(plane: Plane) -> None:
    job = create(plane)
    plane.client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    plane.turn(2)
    assert shown(plane, job)["status"] == "cancelled" and plane.jobs.calls == []


def test_the_same_look_is_not_taken_twice(plane: Plane, doctor: FakeDoctor) -> None:
    jobs = [create(plane) for _ in range(2)]
    plane.turn(3)
    assert len(doctor.patients) == 1 and all("job.validated" in told(plane, job) for job in jobs)
