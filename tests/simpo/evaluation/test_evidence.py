"""The figures of a promotion: by hand on small data, their coverage by simulation, absent where not measured."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import DataError
from simpo.evaluation.capability import load_capability
from simpo.evaluation.evidence import Behaviour, evidence_of, figures_of
from simpo.evaluation.intervals import mean_interval, ratio_interval, share_interval
from simpo.generate import Generation

pytestmark = pytest.mark.quick


@dataclass
class Pairs:
    """Scores of pairs whose responses have ten tokens."""

    chosen_sum_B: list[float]
    rejected_sum_B: list[float]

    @property
    def chosen_len_B(self) -> list[int]:
        return [10] * len(self.chosen_sum_B)

    rejected_len_B = chosen_len_B


def said(*texts: str, cut: int = 0) -> list[Generation]:
    """One token a letter; the last `cut` answers were cut off."""
    n = len(texts)
    return [Generation(t, tuple(map(ord, t)), "length" if i >= n - cut else "stop") for i, t in enumerate(texts)]


def test_the_figures_by_hand() -> None:
    candidate = Behaviour(
        generations=said("ab", "", "abcdabcd", "x", cut=1),
        scores=Pairs([-10, -20, -30], [-20, -10, -40]),
        right=[True, True, False, False],
    )
    reference = Behaviour(
        generations=said("a", "a", "a", "a"),
        scores=Pairs([-10, -10, -10], [-9, -9, -20]),
        right=[True, False, False, True],
    )
    base = Behaviour(generations=[], scores=Pairs([-5, -15, -25], [-1, -1, -1]))
    figures = figures_of(candidate, reference, base, reference_lengths=[2, 2, 2, 2], judged=None)
    told = {name: round(estimate.estimate, 6) for name, estimate in figures.items()}
    assert told == {
        "length_ratio": 11 / 8,
        "repetition": round(1 / 5 / 4, 6),
        "eos_rate": 0.75,
        "truncation_rate": 0.25,
        "empty_rate": 0.25,
        "chosen_drop": 0.5,
        "accuracy_gain": round(1 / 3, 6),
        "capability": 0.0,
    }
    assert all(each.low < each.estimate < each.high for name, each in figures.items() if name != "chosen_drop")
    wider = figures_of(candidate, reference, base, reference_lengths=[2, 2, 2, 2], judged=None, level=0.99)
    assert all(
        wider[name].high - wider[name].low > figures[name].high - figures[name].low
        for name in told
        if name != "chosen_drop"
    )
    told_all = evidence_of(figures, None, prompts=4)
    assert (told_all["state"], told_all["prompts"], json.loads(json.dumps(told_all))) == ("VALID", 4, told_all)


def test_what_was_not_measured_is_absent_and_what_does_not_fit_is_refused() -> None:
    nothing = Behaviour(generations=[])
    assert figures_of(nothing, nothing, nothing, reference_lengths=[], judged=None) == {}
    with pytest.raises(DataError, match="same data"):
        figures_of(
            Behaviour(generations=[], right=[True]),
            Behaviour(generations=[], right=[]),
            nothing,
            reference_lengths=[],
            judged=None,
        )
    with pytest.raises(DataError, match="not above 0"):
        ratio_interval([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(DataError, match="is of pairs"):
        ratio_interval([1.0], [1.0, 2.0])


def test_a_ratio_covers_the_truth_and_levels_are_quantiles() -> None:
    rng, covered = random.Random(1), 0
    for _ in range(400):
        below = [rng.uniform(5, 15) for _ in range(60)]
        interval = ratio_interval([1.2 * b + rng.gauss(0, 3) for b in below], below)
        covered += interval.low <= 1.2 <= interval.high
    assert covered >= 0.93 * 400
    assert share_interval(5, 10, level=0.95) == share_interval(5, 10)
    assert mean_interval([1.0, 2.0, 4.0], level=0.9).high < mean_interval([1.0, 2.0, 4.0]).high


def test_a_capability_set_is_checked_by_program(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": "What is 17 + 25?", "answer": "42"},
        {"prompt": [{"role": "user", "content": "Capital?"}], "answer": ["Paris", "paris"], "match": "contains"},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    first, second = load_capability(path)
    assert (first.is_right(" 42\n"), first.is_right("It is 42.")) == (True, False)
    assert (second.is_right("It is Paris."), second.is_right("London")) == (True, False)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "must be an object"),
        ('{"prompt": "a", "answer": "b", "mach": "exact"}', "unknown key 'mach'"),
        ('{"prompt": "a", "answer": "b", "match": "regex"}', "exact, contains"),
        ('{"prompt": "a", "answer": " "}', "answer must be"),
        ('{"prompt": [{"role": "user"}], "answer": "b"}', "prompt must be"),
        ("", "give at least two"),
    ],
)
def test_a_malformed_capability_set_names_line_and_remedy(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(DataError, match=words):
        load_capability(path)
    with pytest.raises(DataError, match="check the path"):
        load_capability(tmp_path / "none.jsonl")
