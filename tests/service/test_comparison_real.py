"""A comparison through the service on a real Ray: asked for, driven by a Ray job, told, reported, its winner loaded."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.cluster import RayJobs
from service.serving.engines.transformers import TransformersEngine
from service.settings import Settings
from sweeps.comparison_view import comparison_view
from tests.ray_head import private_head
from tests.service.conftest import Plane, make_plane
from tests.sweeps.tiny import tiny_base

pytestmark = pytest.mark.ray

METHODS = ["sft", "simpo"]
REST = ("length_ratio", "repetition", "eos_rate", "empty_rate", "chosen_drop")
EVERYONE = {"conditions": {"win_rate": ">=0", **dict.fromkeys(REST)}, "capability": None}
Json = dict[str, Any]


@pytest.fixture
def real(settings: Settings, tmp_path: Path) -> Iterator[Plane]:
    """A control plane over the Jobs API of a Ray with ports of its own.

    That of the session's Ray listens on a port that is the same for all on a machine: a second one has none.
    """
    with private_head(tmp_path / "ray.log") as (head, token), closing(RayJobs(head.dashboard_url, token)) as jobs:
        yield from make_plane(settings, real_jobs=jobs)


def body(base: Path) -> Json:
    return {
        "name": "tiny",
        "methods": METHODS,
        "base_model": str(base),
        "dataset": {"train": "practice", "limit": 100},
        "learning_rate": {"type": "log_float", "low": 1e-4, "high": 1e-2},
        "objective": "accuracy",
        "constraints": {},
        "sampler": "random",
        "scheduler": "none",
        "budget": {"trials": 2, "steps": 4},
        "parallel": {"trials": 2},
        "train": {"batch_pairs": 8, "token_budget": 1024},
        "tokens": {"max_length": 256},
        "evaluation": {"rung_prompts": 4, "max_new_tokens": 8},
        "finals": {"candidates": 1, "prompts": 8},
    }


def test_a_comparison_from_the_request_to_the_winner_that_answers(real: Plane, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    asked = real.client.post("/v1/comparisons", json=body(base))
    assert asked.status_code == 202, asked.text
    comparison = f"/v1/comparisons/{asked.json()['id']}"
    done = ended(real, comparison)
    assert done["state"] == "SUCCEEDED", (done["error"], done["message"])

    # What it found, as the API tells it and as people read it.
    result = done["result"]
    assert {row["name"] for row in result["leaderboard"]} == set(result["curves"]) == set(METHODS)
    assert all(row["best"] and row["trials"] == {"COMPLETE": 2} for row in result["leaderboard"]), result["leaderboard"]
    assert len(result["verdicts"]) == 1 and result["unequal"] == []
    assert comparison_view(result) is not None
    run_dir = real.settings.run_dir(done["id"])
    assert (run_dir / "comparison.md").read_text() and "<html" in (run_dir / "comparison.html").read_text()
    told = real.client.get(f"{comparison}/events?limit=200").json()["data"]
    assert [event["data"]["method"] for event in told if event["type"] == "method.finished"] == METHODS
    assert (told[0]["type"], told[-1]["type"]) == ("job.queued", "job.succeeded")

    # Whoever leads is deployed, and its directory is a model that loads; what its finals showed is evidence.
    best = real.client.post("/v1/deployments", json={"name": "best", "comparison": done["id"]})
    assert best.status_code == 202, best.text
    assert best.json()["checkpoint"] == result["leaderboard"][0]["name"]
    real.turn()
    declared = real.deployer.declared[best.json()["id"]]
    engine = TransformersEngine.load(declared.model_path)
    engine.close()
    wish = {"model": "chat", "comparison": done["id"], "approval": "auto", "gate": EVERYONE}
    promotion = real.client.post("/v1/promotions", json=wish)
    assert promotion.status_code == 202, promotion.text
    real.turn(2)
    promoted = real.client.get(f"/v1/promotions/{promotion.json()['id']}").json()
    passed = promoted["evidence"]["state"] == "VALID"  # a model of width 32 may fail the controls too
    assert promoted["state"] == ("SUCCEEDED" if passed else "FAILED"), promoted
    assert (promoted["evidence"]["source"], promoted["evaluation"]) == ("finals", None)


def ended(plane: Plane, path: str, timeout_s: float = 1800) -> Json:
    """What is shown of it once it is over. The plane's clock goes no faster than ours."""
    until = time.monotonic() + timeout_s
    while True:
        plane.turn()
        found: Json = plane.client.get(path).json()
        if found["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"):
            return found
        assert time.monotonic() < until, found
        time.sleep(1.0)
