"""`simpo sweep pause` and the like, and the client under them, against the real application in this process."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from service.cli import app
from service.cli_edits import EDIT_COMMANDS
from service.client import Client
from service.client_edits import Edits
from service.client_errors import ApiError, WaitTimeout
from tests.house import REPO
from tests.service.conftest import Plane
from tests.service.test_cli_datasets import into, simpo
from tests.service.test_edits import answer, edits, started


def control(plane: Plane, *words: str) -> Any:
    return simpo(plane, "sweep", *words)


def test_every_command_stores_its_edit(plane: Plane, tmp_path: Path) -> None:
    sweep_id, _ = started(plane)
    axes = tmp_path / "axes.yaml"
    axes.write_text("beta: {type: float, low: 1, high: 3}\n")
    for words, edit in (
        (("extend", "a", "--trials", "24"), {"trials": 24}),
        (("space", "a", "{beta: 2.0}"), {"axes": {"beta": 2.0}}),
        (("space", sweep_id, str(axes)), {"action": "space"}),
        (("stop-trial", "a", "0"), {"trial_id": "trl_0000"}),
        (("clone-trial", "a", "trl_0000", "--set", "beta=2"), {"params": {"beta": 2}}),
        (("add-point", "a", "--set", "beta=2.5", "--set", "learning_rate=1e-5"), {"action": "add_point"}),
        (("resume", "a"), {"action": "resume"}),
    ):
        result = control(plane, *words, "--no-wait", "--json")
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert told["state"] == "pending" and edit.items() <= told["edit"].items()
    assert edits(plane, sweep_id)[5]["edit"]["params"] == {"beta": 2.5, "learning_rate": 1e-5}
    listed = control(plane, "edits", "a")
    assert "stop_trial" in listed.stdout and "pending" in listed.stdout
    assert json.loads(control(plane, "edits", "a", "--json").stdout) == edits(plane, sweep_id)


def test_a_run_is_paused_by_its_name(plane: Plane) -> None:
    run_id = plane.post("one", "runs")["id"]
    for verb in ("pause", "resume"):
        result = simpo(plane, "run", verb, "one", "--no-wait")
        assert result.exit_code == 0 and f"({verb}) is pending" in result.stdout, result.stderr
    with Client("http://testserver", plane.key, transport=into(plane)) as client:
        assert [edit["action"] for edit in client.run_edits.iterate(run_id)] == ["pause", "resume"]


def test_the_answer_is_the_exit_code(plane: Plane) -> None:
    sweep_id, driver = started(plane)
    answer(driver.attempt, 1, "pause", edit={"action": "pause"})  # before it is asked: nobody waits in a test
    driver.run.put_edit(1, {"action": "pause"})
    plane.turn()
    late = control(plane, "resume", "a", "--timeout", "0")
    assert late.exit_code == 1 and "edt_00000002 is still pending" in late.stderr
    plane.turn()
    answer(driver.attempt, 2, "resume", refused="is not paused")
    plane.turn()
    with Client("http://testserver", plane.key, transport=into(plane)) as client:
        assert client.edits.wait(sweep_id, "edt_00000001")["state"] == "applied"
        assert client.edits.wait(sweep_id, "edt_00000002")["message"] == "is not paused"
        with pytest.raises(WaitTimeout):
            client.edits.wait(sweep_id, client.edits.pause(sweep_id)["id"], timeout_s=0)
        with pytest.raises(ApiError) as caught:
            client.edits.extend(sweep_id)
    assert caught.value.pointers == (("/trials", "name a limit to raise"),)


@pytest.mark.parametrize(("refused", "code"), [("", 0), ("is paused already: resume it", 1)])
def test_a_command_waits_for_the_driver(plane: Plane, refused: str, code: int) -> None:
    _, driver = started(plane)
    whole = into(plane)

    def driven(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/edits/edt_00000001"):
            plane.turn()
            answer(driver.attempt, 1, "pause", refused=refused)
            plane.turn()
        return whole.handle_request(request)

    words = ("--url", "http://testserver", "--key", plane.key, "sweep", "pause", "a", "--json")
    result = CliRunner().invoke(app, words, obj=httpx.MockTransport(driven), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.stderr
    assert json.loads(result.stdout)["state"] == ("refused" if refused else "applied")
    assert refused in result.stderr


def test_mistakes_are_one_sentence_and_exit_code_2(plane: Plane) -> None:
    started(plane)
    for words, sentence in (
        (("pause", "nobody"), "There is no sweep nobody"),
        (("extend", "a"), "trials: name a limit to raise"),
        (("add-point", "a", "--set", "beta"), "must be KEY=VALUE"),
        (("space", "a", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("space", "a", "{beta: [}"), "not valid YAML"),
        (("stop-trial", "a", "7"), "There is no trial trl_0007"),
    ):
        result = control(plane, *words)
        assert result.exit_code == 2 and sentence in result.stderr, result.stderr


def test_the_table_in_readme_names_every_command_method_and_route(plane: Plane) -> None:
    section = (
        (REPO / "service/README.md").read_text(encoding="utf-8").partition("## Live control\n")[2].partition("\n## ")[0]
    )
    rows = [[cell.strip() for cell in row.split(" | ")] for row in re.findall(r"^\| `(.*) \|$", section, re.MULTILINE)]
    assert {word for row in rows for word in re.findall(r"([a-z-]+) REF", row[0])} == set(EDIT_COMMANDS)
    known: Any = typer.main.get_command(app)
    commands = known.commands["sweep"].commands
    paths = plane.client.get("/openapi.json").json()["paths"]
    for command, methods, route, *_ in rows[1:]:
        name = command.partition(" ")[0]
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", command)) <= options, command
        assert all(hasattr(Edits, method) for method in re.findall(r"(\w+)\(", methods)), methods
        for part in re.findall(r"\.\.\.(/[a-z{}/]+)", route):
            path = "/v1/sweeps/{sweep_id}" + part.replace("{trial}", "{trial_id}")
            assert path in paths, path
