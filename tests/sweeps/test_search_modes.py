"""Control groups, median stopping, generations, several objectives, earlier sweeps, a search where nobody waits."""

from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from simpo.packing import TokenPair, build_plan
from sweeps.budget import WallClock, plan_budget
from sweeps.generations import heirs
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ended, Ledger
from sweeps.outcome import Ask, Lesson, Outcome, Replay
from sweeps.pareto import fronts
from sweeps.run_dir import RunDir, read_journal
from sweeps.search_facts import rank_correlation, rung_order, search_facts, trained_tokens
from sweeps.spec import parse_spec
from sweeps.study import Study
from sweeps.trial import Assignment, Update
from sweeps.warm_start import check_sources
from tests.sweeps.toy_search import asks_of, search_spec, searched, trained, worth

pytestmark = pytest.mark.quick


# -- rungs


def test_a_control_group_is_never_stopped_and_the_seed_chooses_it() -> None:
    scheduler = {"type": "asha", "control_group": 0.25}
    studies = [searched(Study(search_spec(scheduler=scheduler, seed=seed))) for seed in range(3)]
    groups = [{ask.number for ask in asks_of(study) if ask.control} for study in studies]
    assert all(len(group) == 4 for group in groups)
    assert len({frozenset(group) for group in groups}) > 1
    for study, group in zip(studies, groups, strict=True):
        assert all(study.outcomes[number].state == "COMPLETE" and not study.asks[number].cutoffs for number in group)
    assert any(outcome.state == "PRUNED" for study in studies for outcome in study.outcomes.values())
    assert (
        plan_budget(search_spec(scheduler=scheduler)).likely_steps
        > plan_budget(search_spec(scheduler="asha")).likely_steps
    )


def test_median_stopping_compares_with_the_others_averages() -> None:
    spec = search_spec(scheduler={"type": "median", "startup_trials": 3}, parallel={"trials": 1})
    study = Study(spec)
    for number, (early, late) in enumerate([(0.2, 0.4), (0.6, 0.8), (0.1, 0.5), (0.3, 0.3)]):
        ask = study.ask()
        assert ask is not None and (number >= 4 or ask.cutoffs == {})
        study.complete(number, Outcome(state="COMPLETE", step=100, value=late, rungs={25: early, 50: late}))
    ask = study.ask()
    assert ask is not None
    # Told by now: trials 0 to 2; their averages up to step 50 are 0.3, 0.7 and 0.3.
    assert ask.cutoffs == {25: pytest.approx(0.2), 50: pytest.approx(0.3)}


def test_the_rank_correlation_is_spearmans_with_an_interval() -> None:
    found = rank_correlation([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    assert found["rho"] == pytest.approx(1 - 6 * 6 / (6 * 35))
    assert found["low"] is not None and found["high"] is not None and found["rho"] is not None
    assert -1 < found["low"] < found["rho"] < found["high"] < 1
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 3])["rho"] == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [1, 2, 3])["rho"] is None, "three trials have no interval"
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])["rho"] is None, "equal values have no order"


# -- population-based training


PBT = {"scheduler": {"type": "pbt"}, "space": {}, "budget": {"trials": 16, "steps": 100}}


def test_generations_wait_for_each_other_and_descend_from_the_best() -> None:
    study = searched(Study(search_spec(**PBT)), shuffle=3)
    asks = asks_of(study)
    assert [ask.until for ask in asks] == [25] * 4 + [50] * 4 + [75] * 4 + [None] * 4
    assert [ask.start for ask in asks] == [0] * 4 + [25] * 4 + [50] * 4 + [75] * 4
    for generation in range(1, 4):
        before = range(4 * generation - 4, 4 * generation)
        value = {number: study.outcomes[number].value or 0.0 for number in before}
        best, worst = max(value, key=value.__getitem__), min(value, key=value.__getitem__)
        for member, ask in enumerate(asks[4 * generation : 4 * generation + 4]):
            own = 4 * generation - 4 + member
            assert ask.parent == (best if own == worst else own)
            changed = {key for key in ask.params if ask.params[key] != asks[ask.parent].params[key]}
            assert changed <= ({"learning_rate", "beta"} if own == worst else set())
    assert [asks_of(searched(Study(search_spec(**PBT)), shuffle=n, parallel=n)) for n in (1, 2)] == [asks, asks]
    assert {study.outcomes[number].state for number in range(12, 16)} == {"COMPLETE"}


def test_a_resumed_population_is_the_same() -> None:
    whole = searched(Study(search_spec(**PBT)))
    for known in (3, 6, 8, 13):
        replay = {
            n: Replay(params=whole.asks[n].params, outcome=None if n == known - 1 else whole.outcomes[n])
            for n in range(known)
        }
        assert asks_of(searched(Study(search_spec(**PBT), replay), shuffle=known)) == asks_of(whole)


def test_perturbed_values_stay_on_their_axes() -> None:
    space = {
        "learning_rate": {"type": "log_float", "low": 1e-4, "high": 1.1e-4},
        "beta": {"type": "int", "low": 2, "high": 8, "step": 2},
    }
    spec = search_spec(**{**PBT, "space": space})
    params = {number: {"learning_rate": 1.05e-4, "beta": 8, "gamma_beta_ratio": 0.5} for number in range(4)}
    seen = [heir for g in range(30) for heir in heirs(spec, g, params, {0: 0.9})[1:]]
    assert {heir.parent for heir in seen} == {0}
    assert {heir.params["beta"] for heir in seen} == {6, 8}
    assert {heir.params["learning_rate"] for heir in seen} == {1e-4, 1.1e-4}


def test_a_population_that_died_ends_the_search() -> None:
    study = Study(search_spec(**PBT))
    for _ in range(4):
        ask = study.ask()
        assert ask is not None
        study.complete(ask.number, Outcome(state="FAILED", reason="loss is not finite"))
    assert study.ask() is None
    assert study.exhausted and study.finished


def test_the_books_keep_the_checkpoints_that_heirs_may_want(tmp_path: Path) -> None:
    ledger = Ledger(RunDir(tmp_path).claim(1), search_spec(**PBT), tmp_path / "prepared", WallClock(None))
    told: dict[int, Assignment] = {}

    def end(number: int) -> None:
        assignment = told[number]
        kept = Path(assignment.directory) / ("final" if assignment.until is None else f"rung-{assignment.until:06d}")
        kept.mkdir(parents=True)
        final = str(kept) if assignment.until is None else None
        outcome = trained(ledger.study.asks[number])
        ledger.end(number, Update(kind="end", step=outcome.step, outcome=outcome, checkpoint=final))

    for number in range(16):
        assignment = ledger.next()
        assert assignment is not None
        told[number] = assignment
        parent = ledger.study.asks[number].parent
        if parent is not None:
            wanted = Path(assignment.resume[-1]) / f"rung-{assignment.start:06d}"
            assert wanted.is_dir() and wanted.parent.name == f"trl_{parent:04d}"
        if number % 4 == 3:
            for member in range(number - 3, number + 1):
                end(member)
    assert not list(tmp_path.glob("attempts/1/trials/*/rung-*")), "nobody is left who could want them"
    facts = search_facts(ledger)
    stretches = [(row["from"], row["to"]) for row in facts["lineage"]]
    assert stretches == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert facts["lineage"][-1]["number"] == ledger.study.best()
    created = [record["data"] for record in read_journal(ledger.attempt) if record["type"] == "trial.created"]
    assert created[4]["parent"].startswith("trl_000") and "parent" not in created[0]


def test_tokens_are_counted_once_a_step(tmp_path: Path) -> None:
    pairs = [TokenPair([1] * n, [2] * 3, [3] * 2) for n in (1, 2, 3, 4)]
    plan = build_plan(pairs, batch_pairs=2, steps=4, token_budget=100, seed=1)
    each = plan.step_tokens()
    assert each.tolist() == [sum(batch.num_tokens for batch in plan.step(index)) for index in range(4)]
    assert each.sum() == 2 * sum(len(pair.prompt) + 5 for pair in pairs)
    ended = [
        Ended(
            ask=Ask(number=number, trial_id=f"trl_{number:04d}", params={}, cutoffs={}, start=start),
            outcome=Outcome(state="PRUNED", step=step),
        )
        for number, (start, step) in enumerate([(0, 3), (2, 4)])
    ]
    assert trained_tokens(ended, plan) == each[:3].sum() + each[2:].sum()


# -- several objectives


def test_fronts_are_peeled_one_after_another() -> None:
    assert fronts([(1, 3), (3, 1), (2, 2), (1, 1), (0, 2), (0, 0), (3, 1)]) == [0, 0, 0, 1, 1, 2, 0]
    assert fronts([]) == []


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_several_objectives_end_in_a_front(sampler: str) -> None:
    spec = search_spec(objective=["accuracy", {"metric": "margin", "goal": "maximize"}], sampler=sampler)
    assert (spec.scheduler.type, spec.objective.metric) == ("none", "accuracy"), "nothing is stopped unless asked for"
    assert parse_spec(spec.model_dump(mode="json")) == spec
    study = searched(Study(spec))
    ratios = [float(study.asks[number].params["gamma_beta_ratio"]) for number in study.front()]
    assert ratios == sorted(ratios), "best accuracy first; each one beyond it has more margin"
    assert min(ratios) == min(r for ask in asks_of(study) if (r := float(ask.params["gamma_beta_ratio"])) >= 0.4)
    assert {trial.number for trial in study.optuna.best_trials} == set(study.front())
    assert asks_of(searched(Study(spec), shuffle=9)) == asks_of(study)


def test_a_leaderboard_of_several_objectives_has_fronts(tmp_path: Path) -> None:
    spec = search_spec(objective=["accuracy", "margin"], budget={"trials": 5, "steps": 100})
    ledger = Ledger(RunDir(tmp_path).claim(1), spec, tmp_path / "prepared", WallClock(None))
    for number in range(5):
        assert ledger.next() is not None
        ledger.end(number, Update(kind="end", step=100, outcome=trained(ledger.study.asks[number])))
    rows = leaderboard(list(ledger.ended.values()), spec.objective, None, spec.other_objectives)
    assert [row["number"] for row in rows] == ledger.study.ranked()
    assert [row["front"] for row in rows] == sorted(row["front"] for row in rows)
    assert [point["number"] for point in search_facts(ledger)["pareto"]] == ledger.study.front()
    assert search_facts(ledger)["pareto"][0]["values"].keys() == {"accuracy", "margin"}


def test_a_missing_second_value_fails_the_trial() -> None:
    study = Study(search_spec(objective=["accuracy", "margin"]))
    study.ask()
    study.complete(0, Outcome(state="COMPLETE", step=100, value=0.5, others={"margin": float("nan")}))
    assert study.outcomes[0].state == "FAILED"


# -- nobody waits


def test_an_asynchronous_search_never_waits_and_learns_in_order_of_completion() -> None:
    study = Study(
        search_spec(mode="asynchronous", parallel={"trials": 2}, sampler={"type": "tpe", "startup_trials": 2})
    )
    asks = [study.ask() for _ in range(16)]
    assert all(asks) and study.ask() is None
    other = Study(search_spec(mode="asynchronous", scheduler="asha", parallel={"trials": 2}))
    first = [other.ask() for _ in range(6)]
    for ask in reversed(first[1:5]):
        assert ask is not None
        other.complete(ask.number, trained(ask))
    later = other.ask()
    assert later is not None and 25 in later.cutoffs, "trial 0 still runs, and nobody waits for it"
    assert [trial.state.name for trial in other.optuna.trials[:2]] == ["RUNNING", "COMPLETE"]
    for ask in (first[0], first[5], later):
        assert ask is not None
        other.complete(ask.number, trained(ask))
    searched(other)
    assert len(other.outcomes) == 16
    assert all(trial.state.is_finished() for trial in other.optuna.trials)


# -- earlier sweeps


def _earlier(root: Path, name: str, **changes: Any) -> Ledger:
    run = RunDir(root / name)
    spec = search_spec(**changes)
    run.write_spec(spec.model_dump(mode="json"))
    (root / name / "prepared").mkdir(parents=True)
    (root / name / "prepared" / "rungs.safetensors").write_bytes(b"rows")
    ledger = Ledger(run.claim(1), spec, root / name / "prepared", WallClock(None))
    for number in range(spec.budget.trials):
        assert ledger.next() is not None
        ledger.end(number, Update(kind="end", step=100, outcome=trained(ledger.study.asks[number])))
    return ledger


def test_an_earlier_sweep_teaches_the_sampler(tmp_path: Path) -> None:
    first = _earlier(tmp_path, "swp-1")
    wide = _earlier(tmp_path, "swp-2", warm_start=["swp-1"], sampler={"type": "tpe", "startup_trials": 10})
    assert wide.study.lessons == 16
    assert search_facts(wide)["warm_start"] == {"sources": ["swp-1"], "trials": 16}
    untaught = search_spec(warm_start=[], sampler={"type": "tpe", "startup_trials": 10})
    point = Study(untaught).ask()
    assert point is not None and wide.study.asks[0].params != point.params, (
        "no random start: the estimator knows already"
    )
    assert wide.study.asks[0].params not in [ask.params for ask in asks_of(first.study)], "nor the earlier sweep again"
    narrow = {"gamma_beta_ratio": {"type": "float", "low": 0.0, "high": 0.5}, "beta": 2.0}
    some = _earlier(tmp_path, "swp-3", warm_start=[str(tmp_path / "swp-1")], space=narrow)
    assert 0 < some.study.lessons < 16, "what lies outside the space is left out"


def test_a_successor_learns_what_the_first_attempt_learnt(tmp_path: Path) -> None:
    _earlier(tmp_path, "swp-1")
    first = _earlier(tmp_path, "swp-2", warm_start=["swp-1"])
    (tmp_path / "swp-1" / "spec.json").unlink()
    again = Ledger(first.attempt.run.claim(2), first.spec, tmp_path / "swp-2" / "prepared", WallClock(None))
    assert again.next() is None
    assert asks_of(again.study) == asks_of(first.study)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "had another seed"),
        ({"method": "dpo", "space": {}}, "had another method"),
        ({"budget": {"trials": 4, "steps": 80}}, "trained for 100 steps"),
        ({"evaluation": {"rung_prompts": 32}}, "had another evaluation"),
        ({"warm_start": ["swp-9"]}, "no sweep can be read"),
        ({"warm_start": ["here"]}, "this very sweep"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    _earlier(tmp_path, "swp-1", budget={"trials": 4, "steps": 100})
    with pytest.raises(ConfigError, match=words) as caught:
        check_sources(search_spec(**{"warm_start": ["swp-1"], **changes}), RunDir(tmp_path / "here"))
    assert caught.value.field == "warm_start.0"


def test_other_held_out_rows_are_refused(tmp_path: Path) -> None:
    _earlier(tmp_path, "swp-1", budget={"trials": 4, "steps": 100})
    (tmp_path / "swp-1" / "prepared" / "rungs.safetensors").write_bytes(b"other rows")
    with pytest.raises(ConfigError, match="other held-out rows"):
        _earlier(tmp_path, "swp-2", warm_start=["swp-1"])


def test_infeasible_lessons_keep_their_violation() -> None:
    broken = Outcome(state="INFEASIBLE", step=25, value=0.9, rungs={25: 0.9}, constraints={"repetition": 0.2})
    point: dict[str, Any] = {"learning_rate": 1e-4, "beta": 2.0, "gamma_beta_ratio": 0.3}
    study = Study(search_spec(), lessons=[Lesson(params=point, outcome=broken)])
    assert study.optuna.trials[0].constraints == {"repetition": 0.2}
    assert rung_order([], (25,)) == [{"step": 25, "n": 0, "control": 0, "rho": None, "low": None, "high": None}]


# -- constraints


def test_the_share_of_infeasible_proposals_falls() -> None:
    """Learning rates above 1e-3 collapse: more than a third of the space. The search learns to keep away."""
    spec = search_spec(
        space={"learning_rate": {"type": "log_float", "low": 1e-5, "high": 1e-2}, "beta": 2.0},
        constraints={"repetition": "<=0.3"},
        budget={"trials": 60, "steps": 100},
    )
    study = Study(spec)
    while (ask := study.ask()) is not None or not study.finished:
        assert ask is not None
        broken = float(ask.params["learning_rate"]) > 1e-3
        state, told = ("INFEASIBLE", 0.5) if broken else ("COMPLETE", -0.2)
        study.complete(
            ask.number,
            Outcome(state=state, step=100, value=worth(ask.params), constraints={"repetition": told}),  # type: ignore[arg-type]
        )
    broken_at = [number for number, outcome in study.outcomes.items() if outcome.state == "INFEASIBLE"]
    assert sum(number < 20 for number in broken_at) >= 4
    assert sum(number >= 40 for number in broken_at) <= 2
