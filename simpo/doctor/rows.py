"""Checks of the rows as they are written: no tokenizer, no model, standard library only."""

import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simpo.doctor.finding import Finding, finding, stray_or_many
from simpo.records import DROP_REASONS, Preference, Prompt, Records

FLIPPED_MANY = 0.05
"""Share of contradicting pairs from which the file, not its annotators, is at fault."""
BIASED = 0.1
"""Distance from one half at which the share of longer chosen answers is called biased ..."""
BIASED_ROWS = 20
"""... with at least so many pairs."""

_DROPPED_REMEDIES: Mapping[str, str] = {
    "identical_responses": "ties teach nothing: leave them out, or have them judged again",
    "empty_response": "leave them out, or find out why an answer is missing",
}


def row_findings(records: Records) -> Iterator[Finding]:
    """All checks of one file by itself, the length gap excepted."""
    rows = records.rows
    yield from _dropped(records)
    yield from _duplicates(rows)
    yield from _flipped(rows)
    yield from _nearly_tied(rows)
    yield from _repeated_prompts(rows)
    yield from _turns(rows)


def overlap_findings(train: Sequence[Preference], evaluation: Sequence[Preference]) -> Iterator[Finding]:
    """Evaluation prompts that training saw: whole prompts, and first user turns, after normalisation."""
    seen_whole = {_whole(row.prompt) for row in train}
    seen_first = {_first_user_turn(row.prompt) for row in train}
    whole, first = [], []
    for row in evaluation:
        if _whole(row.prompt) in seen_whole:
            whole.append(row)
        elif _first_user_turn(row.prompt) in seen_first:
            first.append(row)
    if whole:
        yield finding(
            "prompt_overlap",
            "error",
            "{rows} ({share}) of the evaluation data have a prompt that is also trained on: held-out figures would "
            "partly measure memory",
            "take these prompts out of one of the two files",
            count=len(whole),
            of=len(evaluation),
            rows=(row.id for row in whole),
        )
    if first:
        yield finding(
            "first_turn_overlap",
            "warning",
            "{rows} ({share}) of the evaluation data begin with a user turn that a training conversation begins with",
            "split by first user turn, so that no conversation is continued across the two files",
            count=len(first),
            of=len(evaluation),
            rows=(row.id for row in first),
        )


def length_figures(lengths: Sequence[tuple[int, int]], unit: str) -> dict[str, Any]:
    """The gap chosen minus rejected, from (chosen, rejected) lengths of at least one pair."""
    gaps = [chosen - rejected for chosen, rejected in lengths]
    n = len(gaps)
    return {
        "unit": unit,
        "chosen_mean": statistics.fmean(chosen for chosen, _ in lengths),
        "rejected_mean": statistics.fmean(rejected for _, rejected in lengths),
        "gap_mean": statistics.fmean(gaps),
        "gap_median": float(statistics.median(gaps)),
        "chosen_longer": sum(gap > 0 for gap in gaps) / n,
        "rejected_longer": sum(gap < 0 for gap in gaps) / n,
    }


def length_findings(figures: Mapping[str, Any], pairs: int) -> Iterator[Finding]:
    """A warning where length alone tells chosen from rejected too often."""
    longer, shorter = figures["chosen_longer"], figures["rejected_longer"]
    side, share = ("longer", longer) if longer >= shorter else ("shorter", shorter)
    # Equal lengths are no evidence either way: half of them count for each side.
    if pairs < BIASED_ROWS or abs(longer - shorter) / 2 <= BIASED:
        return
    remedy = (
        "use an objective that normalises by length, and read length-controlled win rates: objectives on summed "
        "log-probabilities learn to write longer"
        if side == "longer"
        else "check that the labels are meant so: a model trained on them learns to write shorter"
    )
    yield finding(
        "length_bias",
        "warning",
        f"the chosen answer is the {side} one in {share:.0%} of the pairs (mean gap {figures['gap_mean']:+.0f} "
        f"{figures['unit']}): 'the {side} one wins' is already that accurate",
        remedy,
        count=round(share * pairs),
        of=pairs,
    )


def _dropped(records: Records) -> Iterator[Finding]:
    read = len(records.rows) + sum(records.dropped.values())
    for reason, count in sorted(records.dropped.items(), key=lambda item: (-item[1], item[0])):
        yield finding(
            reason,
            "warning",
            f"{{rows}} ({{share}}) cannot be used: {DROP_REASONS[reason]}",
            _DROPPED_REMEDIES.get(reason, "mend these rows, or leave them out; training drops and counts them"),
            count=count,
            of=read,
            rows=map(str, records.examples.get(reason, ())),
        )
    lost = sum(records.dropped.values())
    if lost > len(records.rows):
        yield finding(
            "mostly_unusable",
            "error",
            "{rows} ({share}) cannot be used: more than half of the file",
            "see the reasons above: the file is probably not in the form that it is taken for",
            count=lost,
            of=read,
        )


def _duplicates(rows: Sequence[Preference]) -> Iterator[Finding]:
    seen: set[tuple[Prompt, str, str]] = set()
    again = []
    for row in rows:
        key = row.prompt, row.chosen, row.rejected
        if key in seen:
            again.append(row.id)
        seen.add(key)
    if again:
        yield finding(
            "duplicate_rows",
            "warning",
            "{rows} ({share}) repeat an earlier row exactly: they weigh double",
            "leave the repetitions out",
            count=len(again),
            of=len(rows),
            rows=again,
        )


def _flipped(rows: Sequence[Preference]) -> Iterator[Finding]:
    preferred = {(row.prompt, row.chosen, row.rejected) for row in rows}
    flipped = [row.id for row in rows if (row.prompt, row.rejected, row.chosen) in preferred]
    if flipped:
        yield finding(
            "flipped_pairs",
            "error" if len(flipped) / len(rows) >= FLIPPED_MANY else "warning",
            "{rows} ({share}) contradict each other: the same two answers, preferred in both orders",
            "keep the order that more annotators chose, or neither; look for a step that swapped the columns",
            count=len(flipped),
            of=len(rows),
            rows=flipped,
        )


def _nearly_tied(rows: Sequence[Preference]) -> Iterator[Finding]:
    tied = [row.id for row in rows if row.chosen.split() == row.rejected.split()]
    if tied:
        yield finding(
            "tied_but_for_white_space",
            "warning",
            "{rows} ({share}) have answers that differ in white space alone",
            "leave them out, unless white space is what you want to teach",
            count=len(tied),
            of=len(rows),
            rows=tied,
        )


def _repeated_prompts(rows: Sequence[Preference]) -> Iterator[Finding]:
    times = Counter(row.prompt for row in rows)
    if len(times) < len(rows):
        shared = sum(count for count in times.values() if count > 1)
        yield finding(
            "repeated_prompts",
            "info",
            f"{{rows}} ({{share}}) share their prompt with another row: {len(times)} different prompts, at most "
            f"{max(times.values())} rows of one",
            "nothing to do: splits keep rows of one prompt together. Count prompts, not rows, when judging size",
            count=shared,
            of=len(rows),
        )


def _turns(rows: Sequence[Preference]) -> Iterator[Finding]:
    wrong = [row.id for row in rows if not isinstance(row.prompt, str) and not _alternates(row.prompt)]
    if wrong:
        yield finding(
            "turns_do_not_alternate",
            stray_or_many(len(wrong), len(rows)),
            "{rows} ({share}) have turns that do not alternate user, assistant, ..., user after one system turn",
            "join neighbouring turns of one role: many chat templates refuse such rows, others render them wrongly",
            count=len(wrong),
            of=len(rows),
            rows=wrong,
        )


def _alternates(prompt: Prompt) -> bool:
    roles = [turn.role for turn in prompt if not isinstance(turn, str)]
    if roles[:1] == ["system"]:
        del roles[0]
    return roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def _whole(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return _normal(prompt)
    return "\n".join(f"{turn.role}: {_normal(turn.content)}" for turn in prompt)


def _first_user_turn(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return _normal(prompt)
    return _normal(next(turn.content for turn in prompt if turn.role == "user"))


def _normal(text: str) -> str:
    """Letters in one form and case, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
