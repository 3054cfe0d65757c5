"""Checks of the rows under a tokenizer and a token policy: what is dropped, what is cut, how often a text begins."""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from simpo.config import TokenPolicy
from simpo.doctor.finding import Finding, finding, stray_or_many
from simpo.encoder import DROP_REASONS, Encoder
from simpo.packing import TokenPair
from simpo.records import Preference
from simpo.tokenize import tokenize_rows
from simpo.truncate import truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 500
"""Rows tokenised between two reports of progress."""
CUT_MANY = 0.1
"""Share of pairs without an end token from which a model unlearns to stop."""


@dataclass(frozen=True, kw_only=True)
class TokenChecks:
    """What a tokenizer showed about the rows."""

    findings: list[Finding] = field(default_factory=list)
    lengths: list[tuple[int, int]] = field(default_factory=list)
    """(chosen, rejected) tokens of every usable pair, before anything is cut, end token included."""
    truncation: dict[str, Any] = field(default_factory=dict)
    """What the policy's rule does: counts, shares, and the max_length that would keep 99 % of the pairs whole."""
    control_tokens: frozenset[str] = frozenset()
    """Every token that this tokenizer keeps for itself."""


def token_checks(
    rows: Sequence[Preference],
    tokenizer: "PreTrainedTokenizerBase",
    policy: TokenPolicy,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenChecks:
    """All checks that need token ids. progress: called with (rows done, rows in all).

    Raises ModelError: conversations without a chat template; no token can end a response.
    """
    encoder = Encoder(tokenizer, replace(policy, truncation="drop", max_prompt_length=None, max_length=sys.maxsize))
    pairs: list[TokenPair] = []
    dropped: dict[str, int] = {}
    for start in range(0, len(rows), CHUNK):
        part = tokenize_rows(rows[start : start + CHUNK], encoder)
        pairs += part.pairs
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
        progress(min(start + CHUNK, len(rows)), len(rows))
    truncation = _truncation(pairs, policy, encoder.bos)
    unusable = sum(dropped.values()) + truncation.get("dropped", 0)
    findings = [
        *_dropped(dropped, len(rows)),
        *_cut(truncation, policy, len(pairs)),
        *_begins(rows, encoder),
        *_systems(rows, encoder),
    ]
    if 2 * unusable > len(rows):
        findings.append(
            finding(
                "mostly_dropped",
                "error",
                "{rows} ({share}) are dropped under this tokenizer and policy: more than half",
                "see the reasons above; raise max_length, mend the rows, or use the tokenizer that they were made for",
                count=unusable,
                of=len(rows),
            )
        )
    return TokenChecks(
        findings=findings,
        lengths=[(len(pair.chosen), len(pair.rejected)) for pair in pairs],
        truncation=truncation,
        control_tokens=frozenset(encoder.specials),
    )


def _truncation(pairs: Sequence[TokenPair], policy: TokenPolicy, bos: int | None) -> dict[str, Any]:
    if not pairs:
        return {}
    totals = sorted(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    counts = {"over": 0, "dropped": 0, "prompts_cut": 0, "chosen_without_end": 0, "rejected_without_end": 0}
    lost = 0
    for pair in pairs:
        cut = truncate(pair, policy, bos)
        if cut is None or not cut.pair.chosen or not cut.pair.rejected or cut.pair.chosen == cut.pair.rejected:
            counts["over"] += 1
            counts["dropped"] += 1
        elif cut.counts():
            counts["over"] += 1
            lost += cut.prompt_lost + cut.chosen_lost + cut.rejected_lost
            for key in counts.keys() & cut.counts().keys():
                counts[key] += 1
    return {
        "rule": policy.truncation,
        "max_length": policy.max_length,
        **counts,
        "tokens": sum(len(part) for pair in pairs for part in pair),
        "tokens_cut": lost,
        "longest": totals[-1],
        "max_length_for_99_percent": totals[math.ceil(0.99 * len(totals)) - 1],
    }


def _dropped(dropped: dict[str, int], of: int) -> Iterator[Finding]:
    for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
        yield finding(
            reason,
            "warning",
            f"{{rows}} ({{share}}) are dropped: {DROP_REASONS[reason]}",
            "mend these rows or the chat template; training drops and counts them",
            count=count,
            of=of,
        )


def _cut(figures: dict[str, Any], policy: TokenPolicy, pairs: int) -> Iterator[Finding]:
    if not figures or not figures["over"]:
        return
    longest = f"the longest has {figures['longest']} tokens"
    keeps = f"max_length {figures['max_length_for_99_percent']} would keep 99 % of the pairs whole"
    if figures["dropped"]:
        yield finding(
            "too_long",
            "warning",
            f"{{rows}} ({{share}}) are over max_length {policy.max_length} and dropped; {longest}",
            keeps,
            count=figures["dropped"],
            of=pairs,
        )
    cut = figures["over"] - figures["dropped"]
    ends = figures["chosen_without_end"] + figures["rejected_without_end"]
    if cut:
        yield finding(
            "truncated",
            "error" if figures["chosen_without_end"] >= CUT_MANY * pairs else "warning",
            f"{{rows}} ({{share}}) are cut by truncation: {policy.truncation}: {figures['tokens_cut']} of "
            f"{figures['tokens']} tokens; {figures['prompts_cut']} prompts lose their beginning, {ends} responses "
            f"({figures['chosen_without_end']} chosen) their end token; {longest}",
            f"{keeps}; a model that is rarely shown the end of an answer unlearns to stop",
            count=cut,
            of=pairs,
        )


def _begins(rows: Sequence[Preference], encoder: Encoder) -> Iterator[Finding]:
    """Everything about BOS: there must be one in front, and no other."""
    if encoder.template_writes_bos and encoder.adds_bos:
        yield finding(
            "bos_from_both",
            "info",
            "the chat template and the tokenizer both write BOS; training and serving here keep one",
            "elsewhere, encode rendered text with add_special_tokens=False: a second BOS costs points",
            count=0,
            of=len(rows),
        )
    bos, eos = encoder.tokenizer.bos_token, encoder.tokenizer.eos_token or ""
    if not bos:
        return
    twice = re.compile(rf"\s*{re.escape(bos)}\s*{re.escape(bos)}")
    doubled, inside = [], []
    for row in rows:
        if not isinstance(row.prompt, str):  # turns that spell BOS are dropped: what doubles here is the template's own
            if encoder.template_doubles_bos:
                doubled.append(row.id)
        elif twice.match(row.prompt):
            doubled.append(row.id)
        elif any(bos in text for text in (row.prompt.lstrip().removeprefix(bos), *_without_end(row, eos))):
            inside.append(row.id)
    for code, ids, seen in (
        ("double_bos", doubled, f"begin with {bos} twice: one is kept here, but other tools feed the model both"),
        ("bos_inside", inside, f"spell {bos} inside the text: the model would read a new beginning there"),
    ):
        if ids:
            yield finding(
                code,
                stray_or_many(len(ids), len(rows)),
                f"{{rows}} ({{share}}) {seen}",
                f"take {bos} out of the rows, or out of the chat template where that doubles it",
                count=len(ids),
                of=len(rows),
                rows=ids,
            )


def _without_end(row: Preference, eos: str) -> Iterator[str]:
    """The answers; where BOS and EOS are one token, it may end them."""
    return (answer.rstrip().removesuffix(eos) for answer in (row.chosen, row.rejected))


def _systems(rows: Sequence[Preference], encoder: Encoder) -> Iterator[Finding]:
    if encoder.policy.system == "empty" and encoder.template and not encoder.takes_system:
        yield finding(
            "no_system_turns",
            "info",
            "the chat template writes no system turn, so system: empty inserts none",
            "nothing to do; or give tokens.chat_template one that writes system turns",
            count=0,
            of=len(rows),
        )
