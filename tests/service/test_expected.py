"""Hours in a plan, from trials of earlier sweeps that are alike."""

from typing import Any

import pytest

from service.expected import expected_hours
from sweeps.budget import plan_budget
from sweeps.spec import parse_spec
from tests.service.conftest import Plane

pytestmark = pytest.mark.quick


def test_hours_by_hand() -> None:
    """Rates 1 to 11 seconds a step: tenths at 2 and 10, median 6."""
    spec = parse_spec({"name": "x", "scheduler": "none", "budget": {"trials": 4, "steps": 90}})
    hours = expected_hours(spec, plan_budget(spec), [float(rate) for rate in range(1, 12)])
    assert hours["accelerator"] == {"estimate": 0.6, "low": 0.2, "high": 1.0}
    assert hours["wall_clock"] == {"estimate": 0.3, "low": 0.1, "high": 0.5}


def test_a_plan_knows_what_like_trials_took(plane: Plane) -> None:
    def hours(**body: Any) -> Any:
        answer = plane.client.post("/v1/sweeps?validate_only=true", json={"name": "next", **body})
        return answer.json()["hours"]

    assert hours() is None, "nothing is known yet"
    sweep = plane.post("first")["id"]
    plane.turn()
    plane.drive(sweep).start().search([0.5, 0.6, 0.7, 0.8]).finish()
    plane.turn(2)
    assert plane.sweep(sweep)["state"] == "SUCCEEDED"
    told = hours()
    assert (told["sweeps"], told["trials"]) == (1, 4)
    assert told["accelerator"]["low"] <= told["accelerator"]["estimate"] <= told["accelerator"]["high"]
    assert hours(budget={"trials": 4})["trials"] == 4, "another budget costs the same a step"
    assert hours(train={"batch_pairs": 8}) is None, "another batch does not"
    assert hours(method="dpo") is None
