"""The ablations' own logic: the un-normalised loss, names of runs, verdicts; and README's tables against the record."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo.evaluation.intervals import Estimate
from simpo.methods import DPO, SimPO
from simpo.objectives import objective_of
from simpo.practice import BaseRecipe
from simpo.scores import Scores
from tests.bench.ablations.recipe import (
    BASE,
    Arm,
    Setting,
    dpo_grid,
    final_arms,
    run_hash,
    setting_record,
    shared_record,
    simpo_grid,
    sums_arm,
    sums_grid,
)
from tests.bench.ablations.runs import constant_reference
from tests.bench.ablations.search import ablate
from tests.bench.ablations.table import AGAIN, CLAIMS, TUNED, claims_table, paired, readme_block, tuned_key, verdict
from tests.bench.readme import in_readme, recorded

quick = pytest.mark.quick


@quick
def test_readme_shows_the_recorded_ablations() -> None:
    assert in_readme("ablations") == readme_block(recorded("ablations")), "run make ablations"


@quick
def test_the_record_is_of_the_recipe_as_it_stands() -> None:
    record = recorded("ablations")
    setting = Setting()
    assert record["setting"] == setting_record(setting), "the setting was changed: run make ablations"
    for arm in record["arms"]:
        assert len(arm["seeds"]) == setting.seeds
    simpo, sums, dpo = (_winner(record, family) for family in ("simpo", "sums", "dpo"))
    expected = final_arms(setting, simpo, sums, dpo)
    found = [{key: value for key, value in arm.items() if key != "seeds"} for arm in record["arms"]]
    assert found == [{"key": arm.key, "label": arm.label, **arm.record()} for arm in expected]


def _winner(record: dict[str, Any], family: str) -> Arm:
    """The best point of a recorded grid."""
    best = max(record["tuning"][family], key=lambda point: float(point["win_rate"]))
    margin = record["tuning"]["sums"][0]["constant_margin"]
    setting = Setting()
    grid = {"simpo": simpo_grid(setting), "sums": sums_grid(setting, margin), "dpo": dpo_grid(setting)}[family]
    return next(arm for arm in grid if arm.record() == {key: best[key] for key in arm.record()})


@quick
def test_without_length_normalisation_is_dpo_against_a_constant_reference() -> None:
    chosen, rejected = torch.tensor([-20.0, -9.0]), torch.tensor([-12.0, -30.0])
    lengths = torch.tensor([20, 12]), torch.tensor([10, 24])
    beta, gamma = 0.3, 1.2
    reference = constant_reference(2, gamma, beta).sums_of([0, 1])
    scores = Scores(chosen, rejected, *lengths, 16.0, reference[0::2], reference[1::2])
    loss = objective_of(DPO(beta=beta)).fn(scores, DPO(beta=beta)).per_pair_B
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(beta * (chosen - rejected) - gamma))


@quick
def test_no_family_is_tuned_over_fewer_points_than_simpo() -> None:
    setting = Setting()
    simpo = simpo_grid(setting)
    for rival in (sums_grid(setting, 1.0), dpo_grid(setting)):
        assert len({str(arm.record()) for arm in rival}) == len(rival) >= len(simpo)


@quick
def test_the_unnormalised_arms_keep_the_margin() -> None:
    setting = Setting()
    simpo = simpo_grid(setting)[1]
    assert isinstance(simpo.method, SimPO)
    margin = simpo.method.margin
    arms = {arm.key: arm for arm in final_arms(setting, simpo, sums_grid(setting, margin)[0], dpo_grid(setting)[0])}
    assert arms["sums"].constant_margin == arms["sums-kept"].constant_margin == margin
    assert arms["sums-kept"].learning_rate == simpo.learning_rate
    assert {claim.higher for claim in CLAIMS} | {claim.lower for claim in CLAIMS} <= {*arms, TUNED}


@quick
def test_a_run_is_named_after_all_that_decides_it() -> None:
    shared, arm = shared_record(Setting()), simpo_grid(Setting())[0]
    name = run_hash(shared, arm, 0)
    others = [
        run_hash(shared, arm, 1),
        run_hash(shared, BASE, 0),
        run_hash(shared, dataclasses.replace(arm, learning_rate=1e-3), 0),
        run_hash(shared, sums_arm("", "", beta=2.0, margin=1.0, learning_rate=arm.learning_rate), 0),
        run_hash(shared_record(Setting(steps=121)), arm, 0),
    ]
    assert len({name, *others}) == 6
    assert run_hash(shared, dataclasses.replace(arm, key="x", label="another name"), 0) == name
    assert run_hash(shared_record(Setting(seeds=2, ratios=(0.0,))), arm, 0) == name


@quick
@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.03, "yes"),
        (-0.01, 0.03, "not told apart"),
        (-0.03, -0.01, "no, the opposite"),
        (0, 0, "not told apart"),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, said: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high, 5)) == said


def _record(win_rates: dict[str, list[float]]) -> dict[str, Any]:
    """A record whose arms differ in win rate alone."""
    measures = {"mean_tokens": 7.0, "spearman": 0.2, "accuracy": 0.9}
    keys = ("base", "simpo", "ratio-0", "ratio-1", "ratio-2", "sums", "sums-kept", "dpo")
    arms = []
    for key in keys:
        splits = [{**measures, "win_rate": rate} for rate in win_rates.get(key, [0.5, 0.5])]
        arms.append({"key": key, "seeds": [{"validation": split, "evaluation": split} for split in splits]})
    return {"setting": {"ratios": [0.0, 1.0, 2.0]}, "arms": arms}


@quick
def test_differences_are_taken_seed_by_seed() -> None:
    record = _record({"simpo": [0.60, 0.70], "sums": [0.58, 0.68]})
    difference = paired(record, "win_rate", "simpo", "sums")
    assert difference.estimate == pytest.approx(0.02)
    assert difference.low == pytest.approx(0.02)
    assert tuned_key(record) == "simpo"
    assert tuned_key(_record({"ratio-1": [0.7, 0.7], "ratio-0": [0.9, 0.9]})) == "ratio-1"


@quick
def test_the_table_says_what_the_figures_say() -> None:
    text = claims_table(_record({"simpo": [0.60, 0.70], "sums": [0.50, 0.61], "ratio-0": [0.68, 0.75]}))
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines())}
    falls = rows[f"{AGAIN}the win rate falls"]
    assert falls[3].strip() == "win rate: `simpo` 0.650, `sums` 0.555; +0.095 [+0.031, +0.159]"
    assert falls[4].strip() == "yes"
    assert rows["gamma = 0 is worse than a tuned gamma"][4].strip() == "not told apart"


def test_a_second_call_reads_what_the_first_one_made(tmp_path: Path) -> None:
    setting = Setting(
        train_pairs=32,
        validation_pairs=16,
        evaluation_pairs=16,
        steps=1,
        prompts=4,
        validation_prompts=4,
        max_new_tokens=4,
        seeds=2,
        learning_rates=(5e-5,),
        simpo_betas=(2.0,),
        sum_betas=(1.0,),
        ratios=(0.0, 2.0),
        base=BaseRecipe(steps=4, width=32, mlp_width=64, layers=1),
    )
    said: list[str] = []
    first = ablate(setting, tmp_path, said.append)
    assert readme_block(first)
    assert not any("(kept)" in line for line in said)
    said.clear()
    assert ablate(setting, tmp_path, said.append) == first
    runs = [line for line in said if line.startswith("[")]
    assert len(runs) == 15  # 7 arms with 2 seeds; the grids are their winners and one point more
    assert all("(kept)" in line for line in runs)
