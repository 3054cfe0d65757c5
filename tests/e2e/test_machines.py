"""More than one machine, for real: a sweep whose trials run on two of them, one of which dies; the other serves.

What it proves, and nothing on one host can: that API, reconciler, head and workers find each other by addresses alone,
with Ray's token asked for on the way; that drivers and trials need no common directory, only the bucket and what lies
in the image; that the death of a machine, SIGKILL to every process of it, costs a sweep its running trial alone; and
that the machine that is left fetches the winner from the bucket and answers with it.
"""

from pathlib import Path
from typing import Any

import pytest

from service.serving.declared import SERVE_DEPLOYMENT
from simpo.checkpoint import read_manifest
from sweeps.run_dir import read_result
from sweeps.working_copy import open_run
from tests.e2e.cluster import BASE, Installation, installation
from tests.sweeps.faults.invariants import check
from tests.sweeps.tiny import tiny_base, tiny_spec

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SHORT: dict[str, Any] = {
    "budget": {"trials": 4, "steps": 12},
    "parallel": {"trials": 2},
    "judge": None,
    "constraints": {},
    "evaluation": {"rung_prompts": 0},
    "finals": {"candidates": 1, "prompts": 4},
}
"""Two rungs before the end, and nothing is generated but in the finals."""


def test_a_sweep_on_two_machines_outlives_one_and_its_winner_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installation(tiny_base(tmp_path / "base")) as site:
        spec = tiny_spec(Path(BASE), **SHORT)
        # Every rung takes seconds to save, until both machines are in the middle of a trial.
        slow = site.s3.fail("slow", method="PUT", path="/attempts/1/trials/", seconds=4.0, times=10_000)
        sweep = site.post("/v1/sweeps", spec.model_dump(mode="json"))
        path = f"/v1/sweeps/{sweep['id']}"
        site.wait("trials on both workers", lambda: _trials_on(site, path) >= site.workers.keys())
        lost = _lost(site, sweep["id"])
        site.workers[lost].kill()
        slow.times = 0
        ended = site.wait("the end of the sweep", lambda: _ended(site.get(path)))
        assert (ended["state"], ended["attempt"]) == ("SUCCEEDED", 1), (ended, site.said())
        assert sum(ended["trials"].values()) == SHORT["budget"]["trials"]

        for name, value in site.s3.environment().items():
            monkeypatch.setenv(name, value)
        run = open_run(f"{site.bucket}/sweeps/{sweep['id']}", tmp_path / "copies")
        result = read_result(run.attempt(1))
        assert result is not None and result["trials"]["FAILED"] == 0
        for row in result["leaderboard"]:
            if row["checkpoint"] is not None:
                assert run.place.pull(run.root / row["checkpoint"])
        check(run.root)
        assert read_manifest(run.root / result["best"]["checkpoint"])["trial_id"] == ended["result"]["best"]["trial_id"]

        _serve(site, sweep["id"], on=site.workers.keys() - {lost})


def _serve(site: Installation, sweep_id: str, *, on: set[str]) -> None:
    """Deploy its winner and ask it something."""
    deployment = site.post("/v1/deployments", {"name": "winner", "sweep": sweep_id})
    where = f"/v1/deployments/{deployment['id']}"
    site.wait("an end of the deploying", lambda: site.get(where)["state"] in ("READY", "FAILED"))
    assert site.get(where)["state"] == "READY", (site.get(where), site.said())
    served = site.ray.get("/api/serve/applications/").json()["applications"][deployment["id"]]
    replicas = served["deployments"][SERVE_DEPLOYMENT]["replicas"]
    assert {replica["node_ip"] for replica in replicas} == on
    question = {"model": "winner", "messages": [{"role": "user", "content": "Next: 41"}], "max_tokens": 8, "seed": 1}
    answer = site.post("/v1/chat/completions", question)
    assert answer["choices"][0]["message"]["role"] == "assistant", answer
    assert answer["usage"]["completion_tokens"] >= 1


def _trials_on(site: Installation, path: str) -> set[str]:
    """Addresses of the machines on which trials have begun, by the sweep's own events."""
    ended = _ended(site.get(path))
    assert ended is None, (ended, site.said())
    known = site.addresses()
    return {known[event["data"]["node"]] for event in _events(site, path) if event["type"] == "trial.started"}


def _events(site: Installation, path: str) -> list[dict[str, Any]]:
    """All of them."""
    listed = site.get(f"{path}/events?limit=200")
    found: list[dict[str, Any]] = listed["data"]
    while listed["has_more"]:
        listed = site.get(f"{path}/events?limit=200&after={found[-1]['id']}")
        found += listed["data"]
    return found


def _lost(site: Installation, sweep_id: str) -> str:
    """The worker on which the driver does not run."""
    job = site.ray.get(f"/api/jobs/{sweep_id.replace('_', '-')}-a1").json()
    others = site.workers.keys() - {site.addresses()[job["driver_node_id"]]}
    assert len(others) == 1, f"the driver sits on no worker: {job}"
    return others.pop()


def _ended(sweep: dict[str, Any]) -> dict[str, Any] | None:
    return sweep if sweep["state"] in ("SUCCEEDED", "FAILED", "CANCELLED") else None
