"""`simpo deploy canary, weight, show, promote, abort, rollback`, against the real application in this process."""

import json
from pathlib import Path

from tests.service.conftest import Plane
from tests.service.test_cli_datasets import simpo
from tests.service.test_deployments import deploy, succeeded


def test_a_roll_out_from_the_command_line(plane: Plane, tmp_path: Path) -> None:
    deploy(plane, succeeded(plane, "mine"))
    plane.turn()
    guard = tmp_path / "guard.yaml"
    guard.write_text("max_latency_ratio: 3\n")
    words = ("--sweep", "mine", "--checkpoint", "base", "--weight", "5", "--sticky", "--guard", str(guard))
    begun = simpo(plane, "deploy", "canary", "best", *words)
    assert begun.exit_code == 0, begun.stderr
    assert begun.stdout.startswith("best: revision 2 beside 1, 5 %, one user to one version: PENDING")
    plane.turn(2)
    assert json.loads(simpo(plane, "deploy", "show", "best", "--json").stdout)["guard"]["max_latency_ratio"] == 3
    assert "beside 1, 40 %" in simpo(plane, "deploy", "weight", "best", "40").stdout
    assert "PROMOTING" in simpo(plane, "deploy", "promote", "best").stdout
    plane.turn(4)
    shown = simpo(plane, "deploy", "show", "best").stdout
    assert "PROMOTED" in shown and "error rate" in shown and "candidate" in shown
    assert "Revision 1 comes back" in simpo(plane, "deploy", "rollback", "best").stdout
    plane.turn(2)
    simpo(plane, "deploy", "canary", "best", "-s", "mine", "--checkpoint", "base", "--unguarded")
    assert "ABORTED" in simpo(plane, "deploy", "abort", "best").stdout


def test_mistakes_are_named(plane: Plane, tmp_path: Path) -> None:
    deploy(plane, succeeded(plane, "mine"))
    plane.turn()
    (tmp_path / "guard.yaml").write_text("max_latency: 3\n")
    for words, says in (
        (("canary", "best"), "give --sweep, or --model"),
        (("canary", "best", "-s", "mine", "--guard", "x", "--unguarded"), "exclude each other"),
        (("canary", "best", "-s", "mine", "--guard", str(tmp_path / "guard.yaml")), "max_latency"),
        (("canary", "nobody", "-s", "mine"), "nobody"),
        (("promote", "best"), "has no candidate"),
        (("show", "best"), "never had a candidate"),
        (("rollback", "best"), "is the first: nothing was before"),
    ):
        result = simpo(plane, "deploy", *words)
        assert result.exit_code in (1, 2) and says in result.stderr, (words, result.stderr)
