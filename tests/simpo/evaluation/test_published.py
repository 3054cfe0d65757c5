"""Published figures of the benchmarks, from the judgements they were made of (data beside the checkout)."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo.evaluation.alpaca import preference_from_logprobs
from simpo.evaluation.arena import as_verdict, markdown_counts, parse_verdict
from simpo.evaluation.length_control import length_controlled
from simpo.evaluation.mt_bench import judge_prompt, parse_rating
from simpo.score_files import STYLE_CONTROLS, Scores, score_alpaca, score_arena, score_mt_bench
from simpo.tables import TableRow, read_table

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
ALPACA, ARENA, MT_BENCH = DATA / "alpaca_eval", DATA / "arena_hard", DATA / "mt_bench"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' published data is not beside this checkout")


def rows(path: Path) -> tuple[TableRow, ...]:
    return read_table(path).rows


def expected(path: Path) -> Any:
    return json.loads(path.read_text())


# -- AlpacaEval 2


@pytest.fixture(scope="module")
def alpaca() -> Scores:
    """With cross-validated C."""
    return score_alpaca(
        str(ALPACA / "annotations.csv.gz"),
        str(ALPACA / "instruction_difficulty.csv"),
        str(ALPACA / "gamed_baselines_reconstructed.csv"),
    )


def test_alpaca_win_rates_are_exact(alpaca: Scores) -> None:
    official = rows(ALPACA / "official.csv")
    assert len(official) == len(alpaca) == 12
    for row in official:
        found = alpaca[row.text("model")]
        assert found["win_rate"] == pytest.approx(row.number("win_rate"), abs=1e-6)
        assert found["standard_error"] == pytest.approx(row.number("standard_error"), abs=1e-6)
        counts = (row.number("n_wins"), row.number("n_wins_base"), row.number("n_draws"), row.number("n_total"))
        assert (found["wins"], found["losses"], found["draws"], found["n"]) == counts


def test_length_controlled_win_rates_are_the_published_ones(alpaca: Scores) -> None:
    for row in rows(ALPACA / "official.csv"):
        published = row.number("length_controlled_winrate")
        assert alpaca[row.text("model")]["lc_win_rate"] == pytest.approx(published, abs=0.1), row.text("model")


def test_at_the_recovered_strength_the_fit_is_the_official_one() -> None:
    for row in rows(ALPACA / "official.csv"):
        found = score_alpaca(
            str(ALPACA / "annotations.csv.gz"),
            str(ALPACA / "instruction_difficulty.csv"),
            str(ALPACA / "gamed_baselines_reconstructed.csv"),
            strength=row.number("C_recovered"),
        )[row.text("model")]
        assert found["lc_win_rate"] == pytest.approx(row.number("length_controlled_winrate"), abs=0.002)
        assert found["lc_standard_error"] == pytest.approx(row.number("lc_se_from_published_weights"), abs=0.001)


def test_raw_judge_outputs_give_the_recorded_preferences() -> None:
    samples = rows(ALPACA / "logprob_samples_gemma-7b-it.jsonl.gz")
    assert len(samples) == 119
    for row in samples:
        tokens = ("m", "M") if row.values["is_switched"] else ("M", "m")
        found = preference_from_logprobs(row.values["top_logprobs"], model_token=tokens[0], baseline_token=tokens[1])
        assert found == pytest.approx(row.number("preference"), abs=1e-9)


# -- Arena-Hard


@pytest.mark.parametrize(
    ("battles", "scores"),
    [
        ("battles_official.csv.gz", "official_scores.csv"),
        ("community_gpt-4o-judge_8models_battles.csv.gz", "community_gpt-4o-judge_8models_scores.csv"),
    ],
)
def test_arena_scores_and_intervals(battles: str, scores: str) -> None:
    found = score_arena(str(ARENA / battles))
    for row in rows(ARENA / scores):
        model = found[row.text("model")]
        assert model["score"] == pytest.approx(row.number("score"), abs=0.01)
        assert model["low"] == pytest.approx(row.number("rating_q025"), abs=0.8)
        assert model["high"] == pytest.approx(row.number("rating_q975"), abs=0.8)


@pytest.mark.parametrize("control", STYLE_CONTROLS)
def test_arena_style_control_is_the_official_code_s(control: str) -> None:
    official = expected(ARENA / "official_code_output.json")
    style = str(ARENA / "style_metadata.csv.gz")
    found = score_arena(str(ARENA / "battles_official.csv.gz"), style=style, control=control)
    for kind, prefix in (("plain", ""), (control, "style_")):
        for row in official[kind] if kind == "plain" else official[kind]["winrate"]:
            model = found[row["model"]]
            assert model[prefix + "score"] == pytest.approx(row["score"], abs=0.01)
            assert model[prefix + "low"] == pytest.approx(row["lower"], abs=0.8)
            assert model[prefix + "high"] == pytest.approx(row["upper"], abs=0.8)


def test_arena_verdicts_of_raw_judgments() -> None:
    for each in expected(ARENA / "raw_judgments_expected.json"):
        raw = ARENA / each["file"]
        found = score_arena(str(raw), baseline="gpt-4-0314")[each["model"]]
        assert found["score"] == pytest.approx(each["score"], abs=0.01)
        assert found["missing"] == each["games_without_verdict"]
        assert found["n"] == each["weighted_baseline_wins"] + each["weighted_model_wins"] + each["ties"]
        for row in rows(raw):
            for game in row.values["games"]:
                assert parse_verdict(game["judgment"]) == as_verdict(game["score"])


def test_markdown_counts_of_the_baseline_are_the_shipped_ones() -> None:
    shipped = {
        row.text("question_id"): tuple(int(row.number(name)) for name in STYLE_CONTROLS["markdown"])
        for row in rows(ARENA / "style_metadata.csv.gz")
        if row.text("model") == "gpt-4-0314"
    }
    answers = rows(ARENA / "baseline_answers_gpt-4-0314.jsonl.gz")
    assert {row.text("question_id"): markdown_counts(row.text("answer")) for row in answers} == shipped


# -- MT-Bench


def test_mt_bench_scores_are_exact() -> None:
    found = score_mt_bench(str(MT_BENCH / "judgments.jsonl.gz"))
    for row in expected(MT_BENCH / "expected_scores.json"):
        model = found[row["model"]]
        assert (model["first_turn"], model["second_turn"], model["average"]) == pytest.approx(
            (row["first_turn"], row["second_turn"], row["average"]), abs=1e-12
        )
        assert (model["failed"], model["n"] + model["failed"]) == (row["failed_parses"], row["rows"])
        assert model["categories"] == pytest.approx(row["per_category"], abs=1e-6)


def test_mt_bench_ratings_and_templates_of_real_judgments() -> None:
    templates = {row.text("name"): row.text("prompt_template") for row in rows(MT_BENCH / "judge_prompts.jsonl")}
    for row in rows(MT_BENCH / "judgments.jsonl.gz"):
        assert parse_rating(row.text("judgment")) == (None if row.number("score") == -1 else row.number("score"))
        prompt = judge_prompt(row.text("category"), int(row.number("turn")))
        assert prompt.name == row.values["judge"][1]
        assert ("{ref_answer_1}" in templates[prompt.name]) == prompt.needs_reference
    for pairwise in (False, True):
        for category in ("math", "writing"):
            assert all(judge_prompt(category, turn, pairwise=pairwise).name in templates for turn in (1, 2))


def test_length_control_needs_the_regularisers_for_published_figures() -> None:
    """Without them, length and quality of a model that is always shorter cannot be told apart (published: 12.2)."""
    annotations = [row for row in rows(ALPACA / "annotations.csv.gz") if row.text("model") == "gpt4_gamed"]
    bare = length_controlled(
        [row.number("preference") for row in annotations],
        [row.number("len_baseline") - row.number("len_model") for row in annotations],
        strength=2.78,
    )
    assert bare.win_rate > 30
