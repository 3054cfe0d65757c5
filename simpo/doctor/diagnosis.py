"""Everything the doctor sees about a file of preferences, in one value. Pure: records in, diagnosis out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from simpo.config import TokenPolicy
from simpo.doctor.finding import Finding, Level, finding
from simpo.doctor.rows import length_figures, length_findings, overlap_findings, row_findings
from simpo.doctor.templates import template_findings
from simpo.records import Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ORDER: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was seen."""

    rows: int
    """Rows read."""
    pairs: int
    """Of these, well-formed preferences."""
    findings: list[Finding]
    """Errors first, then warnings, then the rest; each with its remedy."""
    lengths: dict[str, Any] = field(default_factory=dict)
    """Length of chosen minus rejected: mean, median, share longer; in tokens where there was a tokenizer."""
    truncation: dict[str, Any] = field(default_factory=dict)
    """What the token policy cuts and drops; empty without a tokenizer."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """The token policy that was looked through; empty without a tokenizer."""

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(each.level != "error" for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "pairs": self.pairs,
            "counts": {level: sum(each.level == level for each in self.findings) for level in _ORDER},
            "findings": [each.as_dict() for each in self.findings],
            "lengths": self.lengths,
            "truncation": self.truncation,
            "tokens": self.tokens,
        }


def examine(
    records: Records,
    *,
    evaluation: Records | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    policy: TokenPolicy | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Look at training preferences, and at evaluation preferences beside them.

    progress: called with (rows tokenised, rows in all) while a tokenizer is at work.
    Raises ModelError: the tokenizer cannot render conversations, or cannot end an answer.
    """
    rows = records.rows
    findings = list(row_findings(records))
    lengths, unit = [(len(row.chosen), len(row.rejected)) for row in rows], "characters"
    truncation: dict[str, Any] = {}
    known: frozenset[str] | None = None
    policy = policy or TokenPolicy()
    if tokenizer is None:
        findings.append(_no_tokenizer(len(rows)))
    else:
        from simpo.doctor.tokens import token_checks  # noqa: PLC0415  # lazy: torch, for whoever has no tokenizer

        checked = token_checks(rows, tokenizer, policy, progress)
        findings += checked.findings
        truncation, known = checked.truncation, checked.control_tokens
        if checked.lengths:
            lengths, unit = checked.lengths, "tokens"
    findings += template_findings(rows, known)
    figures = length_figures(lengths, unit) if lengths else {}
    findings += length_findings(figures, len(lengths)) if figures else ()
    if evaluation is not None:
        findings += overlap_findings(rows, evaluation.rows)
    return Diagnosis(
        rows=len(rows) + sum(records.dropped.values()),
        pairs=len(rows),
        findings=sorted(findings, key=lambda each: _ORDER.index(each.level)),
        lengths=figures,
        truncation=truncation,
        tokens=asdict(policy) if tokenizer is not None else {},
    )


def _no_tokenizer(rows: int) -> Finding:
    return finding(
        "no_tokenizer",
        "info",
        "no tokenizer was given: truncation, BOS and the chat template were not looked at; lengths are in characters",
        "give --tokenizer the model that is to be trained",
        count=0,
        of=rows,
    )
