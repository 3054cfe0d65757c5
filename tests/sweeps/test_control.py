"""Edits of a running sweep without Ray: what is refused by name, what an attempt answers, what its successor knows."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from simpo.errors import ConfigError
from sweeps.__main__ import main
from sweeps.board import Board
from sweeps.budget import WallClock
from sweeps.control import (
    EDITS,
    AddPoint,
    ChangeSpace,
    CloneTrial,
    Edit,
    Extend,
    answers,
    edits_told,
    parse_edit,
    read_edits,
    write_edit,
)
from sweeps.desk import Desk
from sweeps.edited import edited_spec, point_by_hand
from sweeps.faults import SpecError
from sweeps.hours import Hours
from sweeps.ledger import Ledger
from sweeps.limits import Watch
from sweeps.outcome import Outcome
from sweeps.run_dir import Record, RunDir, read_journal
from sweeps.signals import Signals
from sweeps.study import Study
from sweeps.trial import Update
from tests.sweeps.toy_search import search_spec, searched

pytestmark = pytest.mark.quick

POINT = {"learning_rate": 1e-4, "gamma_beta_ratio": 0.3}


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ([], "action", "must be one of pause, resume, cancel, extend, space, stop_trial, clone_trial, add_point"),
        ({"action": "puase"}, "action", "not 'puase'"),
        ({"action": "pause", "for": 9}, "for", "unknown key"),
        ({"action": "extend"}, "trials", "name a limit"),
        ({"action": "extend", "trials": 0}, "trials", "greater than or equal to 1"),
        ({"action": "extend", "trials": "many"}, "trials", "must be a valid integer"),
        ({"action": "space", "axes": {}}, "axes", "at least 1"),
        ({"action": "space", "axes": {"beta": None}}, "axes.beta", "cannot be removed"),
        ({"action": "space", "axes": {"beta": {"type": "float", "low": 3, "high": 1}}}, "axes.beta.high", "greater"),
        ({"action": "stop_trial", "trial_id": "3"}, "trial_id", "pattern"),
        ({"action": "add_point", "params": {"beta": [1]}}, "params.beta", "must be"),
    ],
)
def test_what_is_no_edit_is_refused_by_name(values: Any, field: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_edit(values)
    assert refused.value.faults[0][0].startswith(field)
    assert words in str(refused.value)


def test_edits_are_one_union_and_survive_json() -> None:
    edit = ChangeSpace(axes={"beta": {"type": "log_float", "low": 1, "high": 4}, "learning_rate": 1e-4})
    union: TypeAdapter[Any] = TypeAdapter(Edit)
    assert union.validate_python(edit.model_dump(mode="json")) == parse_edit(edit.model_dump(mode="json")) == edit
    assert set(EDITS) == set(union.json_schema()["discriminator"]["mapping"])


def test_edits_are_numbered_and_never_replaced(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert read_edits(run) == []
    assert [write_edit(run, parse_edit({"action": action})) for action in ("pause", "resume")] == [1, 2]
    (run.control / "7.json").write_text('{"action": "cancel"}')
    (run.control / ".00000009.json.1-1").write_text("half")
    assert write_edit(run, Extend(trials=9)) == 8
    found = read_edits(run, known={"00000001.json"})
    assert [(each.seq, each.edit.action) for each in found] == [(2, "resume"), (7, "cancel"), (8, "extend")]


@pytest.mark.parametrize(
    ("changes", "edit", "field", "words"),
    [
        ({}, Extend(trials=16), "trials", "must be more than 16, the limit of now"),
        ({}, Extend(wall_clock_s=9.0), "wall_clock_s", "has no limit to raise"),
        (
            {"sampler": {"type": "grid", "points": 3}, "space": {"beta": 2.0, "learning_rate": 1e-4}},
            Extend(trials=20),
            "trials",
            "the grid has only 3 points",
        ),
        ({}, {"axes": {"sft_weight": 0.1}}, "axes.sft_weight", "is no axis of this search"),
        ({}, {"axes": {"beta": -2.0}}, "axes.beta", "must be greater than 0"),
        ({"sampler": "nsga2"}, {"axes": {"beta": 3.0}}, "axes", "nsga2 learns from generations"),
        ({"sampler": {"type": "grid", "points": 2}}, {"axes": {"beta": 3.0}}, "axes", "a grid was laid"),
        (
            {"sampler": "cmaes", "constraints": {}, "space": {}},
            {"axes": {"beta": {"type": "categorical", "choices": [1.0, 2.0]}}},
            "axes",
            "cmaes",
        ),
        (
            {"sampler": "random", "scheduler": {"type": "pbt", "population": 4, "generations": 4}},
            {"axes": {"beta": 3.0}},
            "action",
            "pbt lays down beforehand",
        ),
    ],
)
def test_what_a_search_cannot_be_changed_to(changes: dict[str, Any], edit: Any, field: str, words: str) -> None:
    wanted = edit if isinstance(edit, Extend) else ChangeSpace.model_validate(edit)
    with pytest.raises(ConfigError, match=words) as refused:
        edited_spec(search_spec(**changes), wanted)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("edit", "field", "words"),
    [
        (AddPoint(params={"learning_rate": 1e-4}), "params.gamma_beta_ratio", "is missing"),
        (AddPoint(params={**POINT, "temperature": 1}), "params.temperature", "has no axis"),
        (AddPoint(params={**POINT, "gamma": 1.0}), "params.gamma", "use gamma_beta_ratio"),
        (AddPoint(params={**POINT, "learning_rate": 0.0}), "params.learning_rate", "greater than 0"),
        (AddPoint(params={**POINT, "beta": "high"}), "params.beta", "must be"),
        (CloneTrial(trial_id="trl_0009"), "trial_id", "there are trl_0000 to trl_0001"),
        (CloneTrial(trial_id="trl_0001", params={"beta": -1}), "params.beta", "greater than 0"),
    ],
)
def test_points_by_hand_are_legal_points(edit: Any, field: str, words: str) -> None:
    known = {name: {**POINT, "beta": 2.0} for name in ("trl_0000", "trl_0001")}
    with pytest.raises(ConfigError) as refused:
        point_by_hand(search_spec(), edit, known)
    assert refused.value.field == field
    assert words in refused.value.message


def test_a_point_by_hand_may_lie_outside_of_the_space() -> None:
    point = point_by_hand(search_spec(), AddPoint(params={**POINT, "beta": 99, "sft_weight": 0.1}), {})
    assert point == {**POINT, "beta": 99, "sft_weight": 0.1}


def test_points_by_hand_take_their_turn_and_leave_the_random_ones_alone() -> None:
    study = Study(search_spec(sampler="random", random_stratum=0.5))
    plain = searched(Study(search_spec(sampler="random", random_stratum=0.5)))
    for seq, value in ((1, 0.11), (2, 0.22)):
        edit = AddPoint(params={**POINT, "gamma_beta_ratio": value})
        study.apply(study.admit(seq, edit))
    searched(study)
    by_hand = {number: ask.params["gamma_beta_ratio"] for number, ask in study.asks.items() if ask.edit}
    assert list(by_hand.values()) == [0.11, 0.22]
    assert len(study.asks) == len(plain.asks), "each takes one trial of the budget"
    others = [number for number in study.asks if number not in by_hand]
    assert [study.asks[n].params for n in others] == [plain.asks[n].params for n in others]


def test_a_spent_budget_takes_no_point_before_it_is_extended() -> None:
    study = searched(Study(search_spec(sampler="random", budget={"trials": 2, "steps": 100})))
    with pytest.raises(ConfigError, match="extend it first"):
        study.admit(1, AddPoint(params=POINT))
    study.apply(study.admit(1, Extend(trials=3)))
    assert not study.exhausted
    study.apply(study.admit(2, AddPoint(params=POINT)))
    ask = study.ask()
    assert ask is not None
    assert (ask.number, ask.params["gamma_beta_ratio"], ask.edit) == (2, 0.3, 2)
    assert study.ask() is None
    assert study.exhausted


def test_a_grid_gains_a_point_and_loses_none() -> None:
    spec = search_spec(sampler={"type": "grid", "points": 3}, space={"beta": 2.0, "learning_rate": 1e-4})
    plain, study = searched(Study(spec)), Study(spec)
    study.apply(study.admit(1, AddPoint(params=POINT)))
    searched(study)
    grid = [ask.params["gamma_beta_ratio"] for ask in study.asks.values() if not ask.edit]
    assert grid == [ask.params["gamma_beta_ratio"] for ask in plain.asks.values()]
    assert len(study.asks) == 4


def test_a_changed_space_takes_along_what_lies_in_it() -> None:
    """Choices too, which Optuna itself refuses to change; of an axis that is now held, what it said of the others."""
    space = {"loss_type": {"type": "categorical", "choices": ["sigmoid", "hinge"]}, "label_smoothing": 0.0}
    study = Study(search_spec(sampler="tpe", space={"beta": 2.0, **space}, budget={"trials": 12, "steps": 100}))
    for number in range(4):
        study.ask()
        if number < 3:
            study.complete(number, Outcome(state="COMPLETE", step=100, value=0.1 * number))
    assert study.ask() is not None, "with a window of 4, trial 0 is told by now"
    other = {"loss_type": {"type": "categorical", "choices": ["hinge"]}, "gamma_beta_ratio": 0.4}
    study.apply(study.admit(1, ChangeSpace.model_validate({"axes": other})))
    ask = study.ask()
    assert ask is not None
    assert (ask.params["loss_type"], ask.params["gamma_beta_ratio"]) == ("hinge", 0.4)
    hinges = sum(ask.params["loss_type"] == "hinge" for ask in study.asks.values())
    assert len(study.optuna.trials) == hinges, "the others lie outside; the value that is held now excludes nobody"
    for number in (3, 4, 5):
        study.complete(number, Outcome(state="COMPLETE", step=100, value=0.5))
    searched(study)
    assert all(trial.state.is_finished() for trial in study.optuna.trials)
    assert {study.asks[n].params["loss_type"] for n in range(5, 12)} == {"hinge"}


# -- the desk


class Office:
    """An attempt's books and desk on a directory."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.run = RunDir(root)
        self.attempt, self.clock = self.run.claim_next(), WallClock(changes.pop("wall_clock_s", None))
        spec = search_spec(**({"sampler": "random", "budget": {"trials": 4, "steps": 100}} | changes))
        self.cancelled = False
        self.desk = Desk(self.attempt, self.clock, self._cancel)
        self.ledger = Ledger(self.attempt, spec, root / "made", self.clock)
        self._searching = self.desk.searching(self.ledger)

    def open(self) -> "Office":
        self._searching.__enter__()
        return self

    def close(self) -> None:
        self._searching.__exit__(None, None, None)

    def ask(self, **edit: Any) -> Record:
        """What the journal says of an edit."""
        write_edit(self.run, parse_edit(edit))
        self.desk.heed()
        return read_journal(self.attempt)[-1]

    def end(self, number: int, value: float = 0.5) -> None:
        outcome = Outcome(state="COMPLETE", step=100, value=value)
        self.ledger.end(number, Update(kind="end", step=100, outcome=outcome))

    def signals(self) -> Any:
        return json.loads(self.attempt.signals.read_text())

    def _cancel(self) -> None:
        self.cancelled = True


def test_a_pause_holds_and_its_end_lifts_it(tmp_path: Path) -> None:
    office = Office(tmp_path, wall_clock_s=3600.0).open()
    assert office.ledger.next() is not None
    paused = office.ask(action="pause")
    assert (paused["type"], paused["data"]["after"], paused["message"]) == ("control.applied", 1, "edit 1: paused")
    assert office.signals() == {"hold": True, "stop": [], "deadline": None}
    left = office.clock.left_s()
    assert office.ledger.next() is None
    assert not office.ledger.drained
    assert office.clock.left_s() == left, "the budget stands still"
    assert office.ask(action="pause")["data"]["message"] == "is paused already: resume it"
    heir = Office(tmp_path).open()
    assert heir.ledger.next() is None, "a successor is as paused as its predecessor"
    assert heir.signals()["hold"]
    office.ask(action="resume")
    assert not office.signals()["hold"]
    assert office.signals()["deadline"] is not None
    assert office.ledger.next() is not None
    assert office.clock.paused_s > 0
    assert office.ask(action="resume")["type"] == "control.refused"


def test_a_trial_is_stopped_by_hand_in_this_attempt_or_the_next(tmp_path: Path) -> None:
    office = Office(tmp_path).open()
    assert office.ask(action="stop_trial", trial_id="trl_0000")["data"]["message"] == "no trial trl_0000 was asked yet"
    told = office.ledger.next()
    assert told is not None
    assert told.signals == str(office.attempt.signals)
    assert office.ask(action="stop_trial", trial_id="trl_0000")["type"] == "control.applied"
    assert office.signals()["stop"] == ["trl_0000"]
    heir = Office(tmp_path).open()
    assert heir.signals()["stop"] == ["trl_0000"], "its end was not recorded"
    heir.ledger.next()
    heir.end(0)
    assert "is over already: COMPLETE" in heir.ask(action="stop_trial", trial_id="trl_0000")["data"]["message"]


def test_extending_moves_every_limit(tmp_path: Path) -> None:
    office = Office(tmp_path, wall_clock_s=1e-9).open()
    assert office.ledger.next() is None
    assert office.ledger.drained, "nothing runs, and the time is up"
    refused = office.ask(action="extend", trials=9)
    assert (refused["type"], refused["data"]["field"]) == ("control.refused", "action")

    office = Office(tmp_path / "other").open()
    for _ in range(4):
        office.ledger.next()
    assert office.ledger.next() is None
    assert not office.ledger.drained, "while trials run somebody may extend"
    assert office.ask(action="extend", trials=5)["message"] == "edit 1: the budget has now trials 5"
    assert office.ledger.next() is None, "trial 4 waits for trial 0"
    office.end(0)
    assert office.ledger.next() is not None
    heir = Office(tmp_path / "other").open()
    assert heir.ledger.study.edited.budget.trials == 5


@pytest.mark.parametrize(
    ("write", "field", "words"),
    [
        (lambda place: (place / "00000001.json").write_text('{"action": "pa'), "00000001.json", "is not valid JSON"),
        (lambda place: (place / "1.json").write_bytes(b"\xff\xfe"), "1.json", "is not valid JSON"),
        (lambda place: (place / "1.json").write_text("[" * 10**5), "1.json", "is not valid JSON"),
        (lambda place: (place / "1.json").mkdir(), "1.json", "is no file"),
        (lambda place: os.mkfifo(place / "1.json"), "1.json", "is no file"),
        (lambda place: (place / "pause.json").write_text('{"action": "pause"}'), "pause.json", "not named by a number"),
        (lambda place: (place / "1.json").write_text('{"action": "extend", "trials": 1e9}'), "trials", "10000"),
        (lambda place: (place / "1.json").write_text(" " * (2**20 + 1)), "1.json", "is longer than"),
    ],
)
def test_bad_files_are_refused_once_by_name(
    tmp_path: Path, write: Callable[[Path], Any], field: str, words: str
) -> None:
    office = Office(tmp_path).open()
    office.run.control.mkdir()
    write(office.run.control)
    for _ in range(2):
        office.desk.heed()
    (refused,) = read_journal(office.attempt)
    assert (refused["type"], refused["level"], refused["data"]["field"]) == ("control.refused", "warn", field)
    assert words in refused["data"]["message"]
    heir = Office(tmp_path).open()
    heir.desk.heed()
    assert [record["type"] for record in read_journal(heir.attempt)] == ["job.resumed"], "a predecessor has answered"


def test_edits_wait_for_the_search_and_are_refused_after_it(tmp_path: Path) -> None:
    office = Office(tmp_path)
    for edit in ({"action": "extend", "trials": 6}, {"action": "pause"}):
        write_edit(office.run, parse_edit(edit))
    office.desk.heed()
    assert [record["data"]["action"] for record in read_journal(office.attempt)] == ["pause"]
    office.open().desk.heed()
    assert [record["data"]["action"] for record in read_journal(office.attempt)] == ["pause", "extend"]
    assert office.ledger.paused
    office.close()
    facts: dict[str, Any]
    for action, facts in (("resume", {}), ("stop_trial", {"trial_id": "trl_0000"}), ("extend", {"trials": 9})):
        assert "the search is over" in office.ask(action=action, **facts)["data"]["message"]
    assert [row["state"] for row in edits_told(office.run)] == ["applied"] * 2 + ["refused"] * 3


def test_a_search_that_is_broken_off_leaves_edits_to_its_successor(tmp_path: Path) -> None:
    office = Office(tmp_path)
    with pytest.raises(InterruptedError), office.desk.searching(office.ledger):
        raise InterruptedError
    write_edit(office.run, Extend(trials=9))
    office.desk.heed()
    assert read_journal(office.attempt) == []
    heir = Office(tmp_path).open()
    heir.desk.heed()
    assert heir.ledger.study.edited.budget.trials == 9


def test_a_cancel_is_heard_at_any_time_and_for_good(tmp_path: Path) -> None:
    office = Office(tmp_path)
    assert office.ask(action="cancel")["message"] == "edit 1: cancelled"
    assert office.cancelled
    with pytest.raises(ConfigError, match="was cancelled, which is for good"):
        Office(tmp_path)
    assert list(answers(RunDir(tmp_path), below=2)) == ["00000001.json"]


def test_sweeps_of_a_comparison_keep_their_common_budget(tmp_path: Path) -> None:
    office = Office(tmp_path).open()
    office.run.prepared.mkdir()
    for edit in ({"action": "extend", "trials": 9}, {"action": "cancel"}, {"action": "add_point", "params": POINT}):
        assert "comparison" in office.ask(**edit)["data"]["message"]
    assert office.ask(action="pause")["type"] == "control.applied"


def test_an_edit_that_breaks_us_is_refused_and_told(tmp_path: Path) -> None:
    office = Office(tmp_path).open()
    office.ledger.study.admit = None  # type: ignore[assignment, method-assign]
    refused = office.ask(action="extend", trials=9)
    assert (refused["type"], refused["data"]["field"]) == ("control.refused", "action")
    assert "TypeError" in refused["data"]["message"]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("extend",), "trials: name a limit"),
        (("stop", "x"), "trial_id: "),
        (("add", "--set", "beta"), "--set: must be KEY=VALUE"),
        (("add",), "params: "),
        (("space", "{beta: null}"), "axes.beta: cannot be removed"),
        (("space", "/nowhere.yaml"), "cannot read the spec file"),
    ],
)
def test_the_command_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], field: str
) -> None:
    RunDir(tmp_path).write_spec(search_spec().model_dump(mode="json"))
    with pytest.raises(SystemExit) as left:
        main(["control", str(tmp_path), *words])
    assert left.value.code == 2
    assert field in capsys.readouterr().err
    assert not RunDir(tmp_path).control.exists()


def test_the_command_says_where_its_edit_is_when_nobody_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDir(tmp_path).write_spec(search_spec().model_dump(mode="json"))
    with pytest.raises(SystemExit) as left:
        main(["control", str(tmp_path), "clone", "3", "--set", "beta=2", "--timeout", "0"])
    assert left.value.code == 3
    assert "edit 1 has no answer yet: no attempt has begun" in capsys.readouterr().err
    (found,) = read_edits(RunDir(tmp_path))
    assert found.edit == CloneTrial(trial_id="trl_0003", params={"beta": 2})


def test_the_board_knows_of_edits() -> None:
    board = Board.of({"name": "x", "budget": {"trials": 4}})
    board.apply("job.phase", "", {"phase": "searching"})
    for action in ("pause", "extend"):
        board.apply("control.applied", "", {"action": action, "edit": {"action": action, "trials": 6}})
    assert (board.where, board.total) == ("searching, paused", 6)
    board.apply("control.applied", "", {"action": "resume", "edit": {}})
    assert board.where == "searching"


def test_hours_that_are_spent_can_be_raised_while_trials_end(tmp_path: Path) -> None:
    office = Office(tmp_path, budget={"trials": 4, "steps": 100, "accelerator_hours": 1.0})
    later = datetime.now(UTC) + timedelta(hours=1.5)
    watch = Watch(office.attempt, office.clock, Hours(1, now=lambda: later), 1.0)
    office.open().ledger.next()
    watch.look(office.desk.tell)
    assert office.ledger.next() is None
    assert office.signals()["deadline"] is not None
    assert office.ask(action="extend", accelerator_hours=2)["type"] == "control.applied"
    assert office.signals()["deadline"] is None
    watch.look(office.desk.tell)
    assert office.ledger.next() is not None
    heir = Office(tmp_path, budget={"trials": 4, "steps": 100, "accelerator_hours": 1.0})
    Watch(heir.attempt, heir.clock, Hours(1), 1.0)
    assert heir.clock.hours == 2.0


def test_a_trial_reads_its_signals(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).claim(1)
    now = [100.0]
    watch = Signals(str(attempt.signals), "trl_0001", 150.0, lambda: now[0])
    assert watch.word() == "go"
    attempt.signal({"hold": True, "stop": [], "deadline": None})
    now[0] = 200.0
    assert watch.word() == "hold", "the clock does not run in a pause"
    attempt.signal({"hold": False, "stop": [], "deadline": 250.0})
    assert watch.word() == "go"
    now[0] = 300.0
    assert watch.word() == "late"
    attempt.signal({"hold": True, "stop": ["trl_0001"], "deadline": None})
    assert watch.word() == "stop", "a held trial can be stopped"
    attempt.signals.write_text("{")
    assert watch.word() == "stop", "what cannot be read changes nothing"
    assert Signals(None, "trl_0001", None, lambda: 0.0).word() == "go"
