"""Whose Ray it is, and when it ends. In a process of its own: this one has a Ray already."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeps.effort_spec import Parallel
from sweeps.ray_session import RayUnavailable, RayUnreachable, Room, ray_ahead, ray_session, room_in
from sweeps.run_dir import RunDir, read_journal
from sweeps.stopping import Stop, ending_told
from tests.house import REPO

AHEAD = """
import tempfile
from pathlib import Path
import psutil, ray
from sweeps.effort_spec import Parallel
from sweeps.ray_session import ray_ahead, ray_session
from tests.sweeps.drivers import leftovers

def homes():
    return [each for each in Path(tempfile.gettempdir()).glob("sw*") if (each / "token").exists()]

before, parallel = homes(), Parallel(trials=3)
with ray_ahead(None, parallel):
    with ray_session(None, parallel):
        node = ray.get_runtime_context().get_node_id()
        assert ray.cluster_resources()["CPU"] == 3
        started = psutil.Process().children(recursive=True)
    with ray_session(None, parallel):
        assert ray.get_runtime_context().get_node_id() == node, "it outlives a session within"
    assert len(homes()) == len(before) + 1
assert not ray.is_initialized()
assert leftovers(started, but=()) == []
assert homes() == before
"""


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wanted", "cpus", "gpus", "cuda", "trials", "share"),
    [
        ({}, 8, 0, True, 4, 0.0),
        ({}, 8, 3, True, 3, 1.0),
        ({}, 8, 3, False, 4, 0.0),
        ({"gpus_per_worker": 0}, 8, 3, True, 4, 0.0),
        ({"gpus_per_worker": 0.5}, 8, 1, True, 2, 0.5),
        ({"gpus_per_worker": 0.3}, 8, 1, True, 3, 0.3),
        ({"gpus_per_worker": 0.4}, 8, 2, True, 4, 0.4),
        ({"workers_per_trial": 2}, 8, 5, True, 2, 1.0),
        ({"workers_per_trial": 2, "gpus_per_worker": 2}, 8, 7, True, 1, 2.0),
    ],
)
def test_trials_share_out_what_the_cluster_has(
    wanted: dict[str, float], cpus: int, gpus: float, cuda: bool, trials: int, share: float
) -> None:
    parallel = Parallel.model_validate({"trials": 4, **wanted})
    room = room_in(parallel, cpus=cpus, gpus=gpus, cuda=cuda, machines=2)
    assert room == Room(trials=trials, workers=parallel.workers_per_trial, gpus=share, lends=False)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wanted", "gpus", "machines", "lends"),
    [({}, 0, 1, True), ({}, 0, 2, False), ({}, 2, 1, False), ({"workers_per_trial": 2}, 0, 1, False)],
)
def test_slots_lend_their_cores_on_one_machine(wanted: dict[str, int], gpus: int, machines: int, lends: bool) -> None:
    parallel = Parallel.model_validate({"trials": 4, **wanted})
    assert room_in(parallel, cpus=8, gpus=gpus, cuda=True, machines=machines).lends is lends


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wanted", "gpus", "cuda", "told"),
    [
        ({"workers_per_trial": 9}, 0, True, "needs 9 CPUs, the Ray cluster has 8"),
        ({"gpus_per_worker": 1}, 0, True, "needs 1 GPUs, the Ray cluster has 0: lower parallel.gpus_per_worker"),
        ({"gpus_per_worker": 1, "workers_per_trial": 4}, 3, True, "needs 4 GPUs, the Ray cluster has 3"),
        ({"gpus_per_worker": 0.5}, 2, False, "torch here is built for CPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(wanted: dict[str, float], gpus: float, cuda: bool, told: str) -> None:
    with pytest.raises(RayUnavailable, match=told):
        room_in(Parallel.model_validate(wanted), cpus=8, gpus=gpus, cuda=cuda, machines=1)


@pytest.mark.quick
@pytest.mark.parametrize(("error", "kind"), [(RayUnreachable, "SYSTEM_ERROR"), (RayUnavailable, "USER_ERROR")])
def test_a_ray_that_does_not_answer_is_nobodys_mistake(error: type[RayUnavailable], kind: str, tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).claim(1)
    with pytest.raises(error), ending_told(attempt, Stop()):
        raise error("as it is said")
    (told,) = read_journal(attempt)
    assert (told["type"], told["data"]["class"]) == ("job.failed", kind), "the service tries the former again"


def test_a_ray_started_ahead_serves_the_sessions_within_and_ends_with_the_context() -> None:
    command = [sys.executable, "-c", AHEAD]
    # Homes of its own: other drivers of this machine come and go. Short, for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp") as homes:
        environment = {**os.environ, "TMPDIR": homes}
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_ray_that_is_there_is_used_and_left(ray_cluster: str) -> None:
    import ray  # noqa: PLC0415  # lazy: Ray starts in the fixture

    with ray_ahead(None, Parallel(trials=1)), ray_session(None, Parallel(trials=1)):
        assert ray.get_runtime_context().gcs_address
    assert ray.is_initialized()
