"""`simpo quotas`, `simpo capacity` and --priority, against the real application in this process."""

import json
from pathlib import Path

import pytest

from service.client import Client
from service.client_errors import ApiError
from tests.service.conftest import Plane
from tests.service.test_cli_datasets import into, simpo


def test_quotas_are_set_and_shown(plane: Plane, tmp_path: Path) -> None:
    shown = simpo(plane, "quotas", "set", "default", "--sweeps", "1", "--hours", "20.5", "--period", "total")
    assert shown.exit_code == 0, shown.stderr
    assert "accelerator-hours in all  20.5" in shown.stdout and "unlimited" in shown.stdout
    spec = tmp_path / "a.yaml"
    for name, priority in (("a", "normal"), ("b", "low"), ("c", "high")):
        spec.write_text(f"name: {name}\nbudget: {{accelerator_hours: 2}}\n")
        assert simpo(plane, "sweep", "create", "-f", str(spec), "--priority", priority).exit_code == 0
        plane.turn()
    told = json.loads(simpo(plane, "quotas", "--json").stdout)
    assert [each["name"] for each in told["queue"]] == ["c", "b"] and told["promised_hours"] == 2.0
    table = simpo(plane, "quotas", "--project", "default").stdout
    assert "quota concurrent_sweeps: 1" in table and "2 h are promised" in table and "high" in table
    assert "Place 1 of 2" in simpo(plane, "sweep", "show", "c").stdout
    full = simpo(plane, "capacity")
    assert full.stdout.startswith("1 of 1 places taken, 2 waiting, 0 trials train; of your project 1 run and 2 wait")
    assert json.loads(simpo(plane, "capacity", "--json").stdout)["sweeps"]["limit"] == 1
    simpo(plane, "quotas", "set", "default", "--sweeps", "unlimited", "--hours", "default", "--period", "default")
    assert json.loads(simpo(plane, "quotas", "--json").stdout)["said"]["concurrent_sweeps"] == "unlimited"


def test_mistakes_are_named(plane: Plane, tmp_path: Path) -> None:
    for words, says in (
        (("set", "default"), "nothing to change"),
        (("set", "default", "--trials", "many"), "--trials: must be a number"),
        (("set", "default", "--trials", "0"), "concurrent_trials"),
        (("set", "prj_none", "--trials", "1"), "no project prj_none"),
        (("--project", "prj_none"), "no project prj_none"),
    ):
        result = simpo(plane, "quotas", *words)
        assert result.exit_code == 2 and says in result.stderr, (words, result.stderr)
    spec = tmp_path / "a.yaml"
    spec.write_text("name: a\n")
    result = simpo(plane, "run", "create", "-f", str(spec), "--priority", "urgent")
    assert result.exit_code == 2 and "priority" in result.stderr


def test_the_client_guards_a_change_by_its_tag(plane: Plane) -> None:
    client = Client("http://testserver", plane.key, transport=into(plane))
    assert client.quotas.set("default", concurrent_trials=3, if_match='"0"')["limits"]["concurrent_trials"] == 3
    with pytest.raises(ApiError) as caught:
        client.quotas.set("default", concurrent_trials=4, if_match='"0"')
    assert caught.value.status == 412 and client.quotas.get()["limits"]["concurrent_trials"] == 3
