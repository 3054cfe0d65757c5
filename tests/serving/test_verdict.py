"""The decision on a candidate, worked through; and the sums that it is made from."""

import json

import pytest

from service.serving.counts import Counts, Histogram, bucket_of, ranked, repeats, seconds_of
from service.serving.verdict import Guard, judge, least_difference, p95_interval, wilson

pytestmark = pytest.mark.quick


def times(seconds: float, number: int, *, slow: float = 0.0, slow_number: int = 0) -> Histogram:
    """A histogram of two times."""
    return {bucket_of(seconds): number} | ({bucket_of(slow): slow_number} if slow_number else {})


def good(answers: int, **more: int) -> Counts:
    """A version that answers, with these exceptions."""
    return Counts(answers=answers, probed=answers, whole=times(0.5, answers), **more)


def test_two_alike_go_on() -> None:
    verdict = judge(good(900, errors=3), good(100, errors=1), Guard())
    assert not verdict.roll_back and verdict.reasons == ()
    assert verdict.figures["candidate"] == {
        "answers": 100,
        "errors": 1,
        "error_rate": 0.01,
        "p95_first_event_s": None,
        "p95_answer_s": pytest.approx(0.5, rel=0.1),
        "probed": 100,
        "repetition_rate": 0.0,
        "truncation_rate": 0.0,
    }


def test_errors_beyond_the_champions_roll_back_with_both_figures() -> None:
    verdict = judge(good(900, errors=9), good(100, errors=30), Guard())
    assert verdict.roll_back
    (reason,) = verdict.reasons
    assert reason.startswith(
        "answers that fail: 30 of 100 (30.0%) of the candidate's, 9 of 900 (1.0%) of the champion's"
    )
    # Wilson at z = 3: from 0.1838, and up to 0.0259; Newcombe: 0.29 - sqrt(0.1162^2 + 0.0159^2)
    assert least_difference((30, 100), (9, 900)) == pytest.approx(0.1727, abs=1e-4)
    assert "at least 17.3 points more, 2.0 are allowed" in reason


def test_errors_that_both_have_are_nobodys_fault() -> None:
    assert not judge(good(900, errors=450), good(100, errors=52), Guard()).roll_back


@pytest.mark.parametrize(("answers", "rolls_back"), [(29, False), (30, True)])
def test_nothing_is_decided_below_the_smallest_sample(answers: int, rolls_back: bool) -> None:
    assert judge(good(900), good(answers, errors=answers), Guard()).roll_back is rolls_back


def test_without_a_champions_sample_the_rate_alone_decides() -> None:
    bad = good(100, errors=50)
    assert (
        "50 of 100 (50.0%) of the candidate's, at least 35.6%; 20.0% are allowed"
        in judge(Counts(), bad, Guard()).reasons[0]
    )
    assert not judge(Counts(), good(100, errors=20), Guard()).roll_back, "the interval reaches below"
    assert not judge(Counts(), bad, Guard(max_error_rate=None)).roll_back


def test_a_slow_tail_rolls_back_and_a_few_slow_answers_do_not() -> None:
    champion = Counts(answers=900, whole=times(0.5, 900))
    slow = Counts(answers=100, whole=times(0.5, 80, slow=2.0, slow_number=20))
    (reason,) = judge(champion, slow, Guard()).reasons
    assert reason.startswith("p95 of the time to the whole answer: at least 2.") and "more than 1.5 times" in reason
    lucky = Counts(answers=100, whole=times(0.5, 96, slow=60.0, slow_number=4))
    assert not judge(champion, lucky, Guard()).roll_back
    assert not judge(champion, slow, Guard(max_latency_ratio=5)).roll_back
    assert not judge(champion, slow, Guard(max_latency_ratio=None)).roll_back


def test_streams_are_timed_by_their_first_event() -> None:
    champion, slow = (Counts(answers=100, first=times(seconds, 100)) for seconds in (0.1, 0.4))
    (reason,) = judge(champion, slow, Guard()).reasons
    assert "time to the first event of a stream" in reason


@pytest.mark.parametrize(("name", "words"), [("repeated", "repeat themselves"), ("truncated", "are cut off")])
def test_worse_texts_roll_back(name: str, words: str) -> None:
    champion, candidate = good(900, **{name: 45}), good(100, **{name: 60})
    (reason,) = judge(champion, candidate, Guard()).reasons
    assert reason.startswith(f"answers that {words}: 60 of 100 (60.0%)")
    assert not judge(good(900, **{name: 540}), candidate, Guard()).roll_back, "the champion does so too"
    allowed = {"repeated": Guard(max_repetition_increase=None), "truncated": Guard(max_truncation_increase=0.9)}
    assert not judge(champion, candidate, allowed[name]).roll_back


def test_intervals_of_nothing_and_of_all() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 100) == pytest.approx((0.0, 9 / 109)) and wilson(100, 100) == pytest.approx((100 / 109, 1.0))
    assert p95_interval({bucket_of(1.0): 3}) == pytest.approx((1.0, 1.0), rel=0.1)


def test_buckets_hold_their_times() -> None:
    for seconds in (0.0, 0.0005, 0.001, 0.0011, 0.5, 1.0, 60.0, 1500.0):
        end = seconds_of(bucket_of(seconds))
        assert seconds <= end * (1 + 1e-9) and (seconds <= 0.001 or end / seconds < 1.1 + 1e-9)
    assert ranked({0: 2, 24: 1}, 2) == 0.001 and ranked({24: 1, 0: 2}, 3) == seconds_of(24)


def test_counts_add_and_survive_the_table() -> None:
    one, other = good(3, errors=1), Counts(answers=2, first={7: 2})
    one.add(other)
    assert (one.answers, one.errors, one.first, one.probed) == (5, 1, {7: 2}, 3)
    assert Counts.of_json(json.loads(json.dumps(one.to_json()))) == one
    assert Counts.of_json({"answers": 2, "unheard_of": 1}) == Counts(answers=2), "of another release"


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("The cat sat on the mat, and then it went to sleep by the fire.", False),
        ("I am sorry. " * 5, True),
        ("ha " * 7, False),
        ("我喜欢苹果" * 6, True),
        ("", False),
        ("!" * 40, True),
    ],
)
def test_an_answer_that_repeats_itself(text: str, does: bool) -> None:
    assert repeats(text) is does
