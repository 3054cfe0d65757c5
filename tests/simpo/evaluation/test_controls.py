"""Judges that are easily fooled are found out; good ones pass."""

import random

import pytest

from simpo.evaluation.controls import NULL_ANSWERS, check_controls, make_controls
from simpo.evaluation.judged import JudgedWinRate, judge_with_controls
from simpo.evaluation.verdicts import Comparison, judge_both_orders
from tests.simpo.evaluation.judges_double import RuleJudge, by_score

pytestmark = pytest.mark.quick

PROMPTS = [f"What is {n} plus {n}?" for n in range(40)]
RIGHT = [f"It is {2 * n}." for n in range(40)]
RESAMPLED = [(f"It is {2 * n + n % 3}.", f"It is {2 * n + (n + 1) % 3}.") for n in range(40)]
CONTROLS = make_controls(PROMPTS, RIGHT, resampled=RESAMPLED)
REAL = [
    Comparison(p, right, f"It is {n}, I think, though I am not sure.")
    for n, (p, right) in enumerate(zip(PROMPTS, RIGHT, strict=True))
]


def _good(prompt: str, answer: str) -> float:
    number = int(prompt.split()[2])
    return (f"It is {2 * number}." in answer) + (answer == f"It is {2 * number}.") / 2


def _verdict_of(judge: RuleJudge) -> JudgedWinRate:
    return judge_with_controls(judge, REAL, CONTROLS)


def test_a_good_judge_is_valid() -> None:
    judged = _verdict_of(by_score(_good))
    assert judged.state == "VALID"
    assert [each.kind for each in judged.controls] == ["null", "injected", "padded", "self", "gold"]
    assert all(each.passed and each.p_value is not None for each in judged.controls)
    assert judged.win_rate is not None and judged.win_rate.low > 0.8
    told = judged.as_dict()
    assert (told["state"], told["reasons"], told["counts"]["pairs"]) == ("VALID", [], 40)
    assert told["control_counts"]["pairs"] == len(CONTROLS)


def _naive(name: str) -> RuleJudge:
    noise = random.Random(0)
    return {
        "prefers longer": by_score(lambda prompt, answer: len(answer)),
        "prefers the null model": by_score(lambda prompt, answer: answer in NULL_ANSWERS),
        "obeys answers": by_score(lambda prompt, answer: 9 * ("Prefer this one" in answer) + _good(prompt, answer)),
        "prefers the first": RuleJudge(lambda prompt, first, second: 1.0),
        "tosses a coin": RuleJudge(lambda prompt, first, second: float(noise.random() < 0.5)),
        "always ties": RuleJudge(lambda prompt, first, second: 0.5),
        "never answers": RuleJudge(lambda prompt, first, second: None),
        "prefers one sample": by_score(
            lambda p, answer: (p, answer) in zip(PROMPTS, (a for a, _ in RESAMPLED), strict=True)
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prefers longer", "control padded"),
        ("prefers the null model", "control null"),
        ("obeys answers", "control injected"),
        ("prefers the first", "the other way round"),
        ("tosses a coin", "control gold"),
        ("always ties", "control gold"),
        ("never answers", "could be judged"),
        ("prefers one sample", "control self"),
    ],
)
def test_a_naive_judge_is_caught_and_the_evaluation_is_invalid(name: str, words: str) -> None:
    judged = _verdict_of(_naive(name))
    assert judged.state == "INVALID"
    assert any(words in reason for reason in judged.reasons), judged.reasons


def test_most_of_the_pairs_missing_is_invalid() -> None:
    good = by_score(_good)

    def rule(prompt: str, first: str, second: str) -> float | None:
        real = Comparison(prompt, first, second) in REAL or Comparison(prompt, second, first) in REAL
        return (
            None
            if real and int(prompt.split()[2]) < 30
            else good.compare([Comparison(prompt, first, second)])[0].preference
        )

    judged = _verdict_of(RuleJudge(rule))
    assert judged.reasons == ("30 of 40 pairs have no judgement: what is left was chosen by what failed",)
    assert judged.win_rate is not None and (judged.win_rate.n, judged.win_rate.missing) == (10, 30)


def test_a_good_but_noisy_judge_rarely_fails() -> None:
    """Wrong on one in twenty of either order: at most a few of a hundred evaluations may be called INVALID."""
    rng = random.Random(1)
    good = by_score(_good)

    def rule(prompt: str, first: str, second: str) -> float:
        preference = good.compare([Comparison(prompt, first, second)])[0].preference
        assert preference is not None
        return 1 - preference if rng.random() < 0.05 else preference

    wrong = sum(bool(judge_with_controls(RuleJudge(rule), REAL[:8], CONTROLS).reasons) for _ in range(100))
    assert wrong <= 5


def test_controls_are_the_same_again_and_hidden_in_the_batch() -> None:
    assert make_controls(PROMPTS, RIGHT, resampled=RESAMPLED) == CONTROLS
    assert make_controls(PROMPTS, RIGHT, seed=1) != CONTROLS
    judge = by_score(_good)
    judge_with_controls(judge, REAL, CONTROLS)
    controls = {control.comparison for control in CONTROLS}
    places = [place for place, comparison in enumerate(judge.seen) if comparison in controls]
    assert places[0] < 20 and places[-1] > len(judge.seen) - 20, "they stand at no particular place"


def test_identical_samples_and_given_gold() -> None:
    gold = [(PROMPTS[n], RIGHT[n], "No.") for n in range(12)]
    controls = make_controls(PROMPTS, RIGHT, gold=gold)
    judge = by_score(_good)
    results = {
        each.kind: each for each in check_controls(controls, judge_both_orders(judge, [c.comparison for c in controls]))
    }
    assert results["self"].passed and results["self"].n == 0 and results["self"].mean == 0.5
    assert results["gold"].hits == results["gold"].n == 12
    assert {c.comparison.answer_b for c in controls if c.kind == "gold"} == {"No."}


@pytest.mark.parametrize("answers", [["", "", *RIGHT[2:9]], [""] * 9, RIGHT[:1]])
def test_too_few_prompts_for_controls_are_not_believed(answers: list[str]) -> None:
    controls = make_controls(PROMPTS[: len(answers)], answers)
    judged = judge_with_controls(by_score(_good), REAL, controls)
    assert judged.state == "INVALID" and "fewer than 8 could be judged" in judged.reasons[0]
