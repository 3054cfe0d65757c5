"""The checker finds each violation when it is there, and nothing in an undisturbed history."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.models import Attempt, Event, Sweep, Trial
from tests.service.faults import world as worlds
from tests.service.faults.history import Call
from tests.service.faults.invariants import Facts, gather, violations


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Facts]:
    """One sweep that succeeds while somebody looks and watches, and one that is cancelled."""
    home = tmp_path_factory.mktemp("sound")
    (home / "simpo.db").write_bytes(migrated.read_bytes())
    with worlds.world(home, f"sqlite:///{home / 'simpo.db'}") as world:
        api = world.api()
        won, cancelled = (world.post_sweep(api, name) for name in ("won", "cancelled"))
        world.cancel(api, cancelled)
        watcher = world.watch(won)
        world.reconciler()
        world.settle()
        watcher.join(240)
        world.post_sweep(api, "won")
        world.history.ask(api.url, "GET", f"/v1/sweeps/{won}")
        facts = gather(world)
        yield facts


def test_an_undisturbed_history_has_no_violation(sound: Facts, undisturbed: Path) -> None:
    assert list(violations(sound, like=undisturbed)) == []


Change = Callable[[Facts], Facts]


def _again(row: Any, **changes: Any) -> Any:
    """A copy of a row."""
    values = {column.key: getattr(row, column.key) for column in type(row).__table__.columns}
    return type(row)(**{**values, **changes})


def _sweep(**changes: Any) -> Change:
    """The one that succeeded is otherwise."""
    return lambda facts: replace(facts, sweeps={**facts.sweeps, _won(facts).id: _again(_won(facts), **changes)})


def _won(facts: Facts) -> Sweep:
    return next(sweep for sweep in facts.sweeps.values() if sweep.state == "SUCCEEDED")


def _first(rows: Any, **changes: Any) -> list[Any]:
    return [_again(rows[0], **changes), *rows[1:]]


def _events(change: Callable[[list[Event]], list[Event]]) -> Change:
    def apply(facts: Facts) -> Facts:
        own = change(list(facts.events[_won(facts).id]))
        return replace(facts, events={**facts.events, _won(facts).id: own})

    return apply


def _call(**changes: Any) -> Change:
    """Somebody was once more answered, otherwise."""

    def apply(facts: Facts) -> Facts:
        asked = Call(**{**vars(facts.calls[-1]), **changes, "answer": {**facts.calls[-1].answer, **changes["answer"]}})
        return replace(facts, calls=[*facts.calls, asked])

    return apply


def _posted(**answer: Any) -> Change:
    def apply(facts: Facts) -> Facts:
        call = facts.posts["key-won"][0]
        more = Call(**{**vars(call), "answer": {**call.answer, **answer}})
        return replace(facts, posts={**facts.posts, "key-won": [call, more]})

    return apply


def _attempt(facts: Facts, **changes: Any) -> list[Attempt]:
    return _first(facts.attempts, **changes)


def _trial(facts: Facts, **changes: Any) -> list[Trial]:
    return _first(facts.trials, **changes)


VIOLATIONS: dict[str, tuple[Change, str]] = {
    "a lost sweep": (
        lambda facts: replace(facts, sweeps={i: s for i, s in facts.sweeps.items() if s.state != "SUCCEEDED"}),
        "was acknowledged and is not there",
    ),
    "a sweep nobody asked for": (
        lambda facts: replace(facts, sweeps={**facts.sweeps, "swp_x": _again(_won(facts), id="swp_x")}),
        "I1: 2 sweeps are called won, 1 were asked for",
    ),
    "another answer to the same key": (_posted(id="swp_x"), "I2: key-won"),
    "a cancel that did not win": (
        lambda facts: replace(
            facts,
            sweeps={i: _again(s, state="SUCCEEDED") for i, s in facts.sweeps.items()},
        ),
        "was acknowledged, and ended as SUCCEEDED",
    ),
    "a state after the last": (_call(answer={"state": "RUNNING"}), "was seen SUCCEEDED, then RUNNING"),
    "a gap in the events": (_events(lambda own: own[:3] + own[4:]), "events are not 1 to"),
    "no ending": (
        _events(lambda own: [_again(e, type="job.phase") if e.type == "job.succeeded" else e for e in own]),
        "its history says",
    ),
    "a word after the end": (
        _events(lambda own: [*own[:-2], _again(own[-1], seq=own[-2].seq), _again(own[-2], seq=own[-1].seq)]),
        "goes on after its end",
    ),
    "an open attempt of what is over": (
        lambda facts: replace(facts, attempts=_attempt(facts, ended_at=None)),
        "is over, an attempt is not",
    ),
    "a fence that names no attempt": (_sweep(attempt=3), "its fence is 3"),
    "a success of nobody": (
        lambda facts: replace(facts, attempts=_attempt(facts, state="LOST")),
        r"attempts \[\] succeeded",
    ),
    "a record told twice": (
        _events(lambda own: [*own, _again(own[5], seq=len(own) + 1)]),
        "of its journal are told",
    ),
    "a record told otherwise": (_events(lambda own: [*own[:5], _again(own[5], data={}), *own[6:]]), "told as"),
    "a stale value": (
        lambda facts: replace(facts, trials=_trial(facts, value=2.0)),
        "the table says",
    ),
    "a result of another": (_sweep(result={"attempt": 7}), "is not that of its attempt 1"),
    "too many trials": (
        lambda facts: replace(facts, trials=[*facts.trials, _again(facts.trials[0], trial_id="trl_9999")]),
        "I6",
    ),
    "an open trial of what is over": (
        lambda facts: replace(facts, trials=_trial(facts, state="RUNNING")),
        "is over, trl_0000 is RUNNING",
    ),
    "a job without a row": (lambda facts: replace(facts, created=[*facts.created, "swp-x-a1"]), "no row knows"),
    "a job made twice": (lambda facts: replace(facts, created=[*facts.created] * 2), "I8: Ray made .* 2 times"),
    "a job that Ray never had": (lambda facts: replace(facts, created=[]), "Ray never had"),
    "a job that runs on": (
        lambda facts: replace(facts, jobs=dict.fromkeys(facts.jobs, "RUNNING")),
        "still runs",
    ),
    "two drivers": (lambda facts: replace(facts, starts=[*facts.starts] * 2), "2 drivers began attempt 1"),
    "a driver that lives on": (
        lambda facts: replace(facts, starts=[{**facts.starts[0], "pid": os.getpid()}]),
        "lives on",
    ),
    "an event nobody heard": (
        lambda facts: replace(facts, watched={i: ids[:-1] for i, ids in facts.watched.items()}),
        "I9",
    ),
    "an event heard twice": (
        lambda facts: replace(facts, watched={i: [*ids, ids[-1]] for i, ids in facts.watched.items()}),
        "I9",
    ),
    "a change that was not noted": (lambda facts: replace(facts, audit=facts.audit[1:]), "I10"),
    "a change that was noted twice": (lambda facts: replace(facts, audit=[*facts.audit, *facts.audit]), "I10"),
    "a secret in a log": (
        lambda facts: replace(facts, logs={"api.log": f"key {facts.secrets[0]}"}),
        "I12: a secret stands in api.log",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found(sound: Facts, name: str) -> None:
    change, sentence = VIOLATIONS[name]
    with pytest.raises(AssertionError, match=sentence):
        assert not (found := list(violations(change(sound)))), "\n".join(found)
