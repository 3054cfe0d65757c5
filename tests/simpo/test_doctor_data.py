"""The doctor on real preference data: the known length gaps, splits that do not leak, few false alarms."""

from pathlib import Path

import pytest

from simpo.doctor.diagnosis import Diagnosis, examine
from simpo.records import load_preferences

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "preferences"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the repository is not here")


def codes(diagnosis: Diagnosis) -> set[str]:
    return {each.code for each in diagnosis.findings}


SEEN = {  # share of chosen longer, errors, codes beside repeated_prompts and no_tokenizer
    "hh_helpful": (0.60, {"length_bias"}),
    "hh_harmless": (0.44, set()),
    "qa_feedback": (0.52, set()),
    "alpacaeval1_gpt4": (0.75, {"flipped_pairs", "length_bias"}),
}


@pytest.mark.parametrize(("name", "share", "expected"), [(name, *seen) for name, seen in SEEN.items()])
def test_real_data(name: str, share: float, expected: set[str]) -> None:
    train, evaluation = (load_preferences(SHARED / f"{name}_{part}.jsonl.gz") for part in ("train", "eval"))
    diagnosis = examine(train, evaluation=evaluation)
    assert diagnosis.ok, "no first user turn is in two splits"
    assert round(diagnosis.lengths["chosen_longer"], 2) == share
    assert codes(diagnosis) - {"repeated_prompts", "no_tokenizer"} == expected


@pytest.mark.parametrize(("name", "share", "repeats"), [("pandalm_human_eval", 0.65, 74), ("llmbar_eval", 0.27, 0)])
def test_real_data_for_evaluation(name: str, share: float, repeats: int) -> None:
    diagnosis = examine(load_preferences(SHARED / f"{name}.jsonl.gz"))
    assert round(diagnosis.lengths["chosen_longer"], 2) == share
    assert sum(each.count for each in diagnosis.findings if each.code == "duplicate_rows") == repeats
    assert "length_bias" in codes(diagnosis)
