"""Who goes next: shares between projects, quotas and priorities within them. No database."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from service.admission import QUEUED, QUOTA, Decision, Limits, Taken, Waiting, decide, never

pytestmark = pytest.mark.quick

_BEGAN = datetime(2026, 9, 1, tzinfo=UTC)


def test_a_place_goes_to_who_has_fewest_then_to_who_waits_longest() -> None:
    waiting = [_waits("a1"), _waits("a2"), _waits("a3"), _waits("b1"), _waits("b2"), _waits("c1")]
    assert _decided(waiting, places=6).admitted == ["a1", "b1", "c1", "a2", "b2", "a3"]
    taken = {"a": Taken(sweeps=1), "b": Taken(sweeps=2)}
    assert _decided(waiting, taken, places=4).admitted == ["c1", "a1", "a2", "b1"]


def test_priority_counts_within_a_project_alone() -> None:
    waiting = [_waits("a1"), _waits("a2", priority=1), _waits("a3", priority=-1), _waits("b1"), _waits("b2")]
    decision = _decided(waiting, places=3)
    assert decision.admitted == ["a2", "b1", "a1"]
    assert _why(decision, "a3") == _why(decision, "b2")


def test_who_is_held_by_a_quota_is_told_which() -> None:
    limits = {"a": Limits(sweeps=1), "b": Limits(trials=4)}
    waiting = [_waits("a1"), _waits("a2"), _waits("b1", slots=3), _waits("b2", slots=2), _waits("b3"), _waits("c1")]
    decision = _decided(waiting, {}, limits, places=3)
    assert decision.admitted == ["a1", "b1", "c1"]
    assert _why(decision, "a2") == (QUOTA, "Its project runs all that it may at once (quota concurrent_sweeps: 1).")
    reason, message = _why(decision, "b2")
    assert reason == QUOTA and "concurrent_trials: 4" in message
    assert _why(decision, "b3") == (reason, message), "nobody overtakes because he is small"


def test_no_place_in_the_installation_is_no_quota() -> None:
    reason, message = _why(_decided([_waits("a1"), _waits("a2")], places=1), "a2")
    assert reason == QUEUED and "10 may run at once" in message


def test_hours_that_are_spent_or_promised_are_waited_for_by_the_side() -> None:
    limits = {"a": Limits(hours=10.0)}
    waiting = [_waits("a1", hours=6.0), _waits("a2", hours=2.0), _waits("a3"), _waits("a4", hours=20.0)]
    decision = _decided(waiting, {"a": Taken(sweeps=1, hours=4.0, reserved=1.0)}, limits, places=5)
    assert decision.admitted == ["a2", "a3"]
    assert "6 accelerator-hours, more than its project has left" in _why(decision, "a1")[1]
    assert "20 accelerator-hours" in _why(decision, "a4")[1]
    spent = _decided(waiting, {"a": Taken(hours=10.0)}, limits, places=5)
    assert spent.admitted == [] and {_why(spent, each.id)[0] for each in waiting} == {QUOTA}
    assert "are spent (quota accelerator_hours: 10 a month)" in _why(spent, "a3")[1]
    promised = _decided(waiting, {"a": Taken(hours=1.0, reserved=9.0)}, limits, places=5)
    assert promised.admitted == [] and "promised" in _why(promised, "a3")[1]


def test_a_limit_that_was_lowered_since_blocks_one_and_not_the_line() -> None:
    decision = _decided([_waits("a1", slots=8), _waits("a2")], {}, {"a": Limits(trials=4)}, places=2)
    assert decision.admitted == ["a2"] and "since then (quota concurrent_trials: 4)" in _why(decision, "a1")[1]


def test_what_alone_is_too_much_is_told_by_field() -> None:
    limits = Limits(sweeps=1, trials=4, hours=10.0, period="total")
    assert never(limits, 4, 10.0) == [] and never(Limits(), 99, 1e9) == [] and never(limits, 1, None) == []
    (trials, says), (hours, says_hours) = never(limits, 5, 10.5)
    assert (trials, hours) == ("parallel.trials", "budget.accelerator_hours")
    assert "ask for at most 4" in says and "10 in all (quota accelerator_hours)" in says_hours


def test_nobody_starves_while_others_keep_asking() -> None:
    """One old sweep of a project that has one running, against two projects that ask again and again."""
    waiting = {each.id: each for each in (_waits("a1"), *(_waits(f"{p}{n}") for n in range(3) for p in "bc"))}
    running: list[str] = ["a0", "b9"]
    for turn in range(60):
        done = running.pop(0)
        waiting[f"{done[0]}x{turn}"] = _waits(f"{done[0]}x{turn}", later=turn + 100)
        taken = {p: Taken(sweeps=sum(each.startswith(p) for each in running)) for p in "abc"}
        for admitted in _decided(list(waiting.values()), taken, places=1).admitted:
            running.append(admitted)
            del waiting[admitted]
        if "a1" not in waiting:
            return
    pytest.fail("a1 never ran")


def _waits(
    name: str, *, priority: int = 0, slots: int = 1, hours: float | None = None, later: int | None = None
) -> Waiting:
    """Of the project of its first letter, older where the letter and its number are lower."""
    age = later if later is not None else ord(name[0]) + int(name[1:])
    created_at = _BEGAN + timedelta(seconds=age)
    return Waiting(
        id=name, project=name[0], priority=priority, created_at=created_at, slots=slots, hours_asked=hours
    )


def _decided(
    waiting: list[Waiting],
    taken: Mapping[str, Taken] | None = None,
    limits: Mapping[str, Limits] | None = None,
    *,
    places: int,
) -> Decision:
    all_limits = {each.project: Limits() for each in waiting} | dict(limits or {})
    return decide(waiting, taken or {}, all_limits, places, 10)


def _why(decision: Decision, name: str) -> tuple[str, str]:
    return next(why for why, ids in decision.held.items() if name in ids)
