"""A capability set: prompts whose answers a program can check, so that no judge's taste is part of the figure.

One JSON object a line:

    {"prompt": "What is 17 + 25?", "answer": "42"}
    {"prompt": [{"role": "user", "content": "Capital of France?"}], "answer": ["Paris", "paris"], "match": "contains"}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.errors import DataError
from simpo.records import Message

MATCHES = ("exact", "contains")


@dataclass(frozen=True, kw_only=True)
class CapabilityItem:
    """One prompt and what counts as right."""

    prompt: str | tuple[Message, ...]
    """Plain text, or the turns of a conversation."""
    answers: tuple[str, ...]
    """Any of these."""
    match: str = "exact"
    """exact: the whole answer, outer blanks aside. contains: somewhere in it."""

    def is_right(self, text: str) -> bool:
        """Whether this answer passes the check."""
        if self.match == "contains":
            return any(answer in text for answer in self.answers)
        return text.strip() in {answer.strip() for answer in self.answers}


def load_capability(path: str | Path) -> list[CapabilityItem]:
    """Every item of a .jsonl file, blank lines aside. Raises DataError with the line of the first fault."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DataError(f"cannot read the capability set {path} ({reason}): check the path") from error
    items = [_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if len(items) < 2:
        raise DataError(f"{path} holds {len(items)} capability prompts: give at least two")
    return items


def _item(line: str, where: str) -> CapabilityItem:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be an object with prompt and answer")
    if unknown := sorted(set(row) - {"prompt", "answer", "match"}):
        raise DataError(f"{where}: unknown key {unknown[0]!r}: use prompt, answer, match")
    match = row.get("match", "exact")
    if match not in MATCHES:
        raise DataError(f"{where}: match must be one of {', '.join(MATCHES)}, not {match!r}")
    answers = row.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise DataError(f"{where}: answer must be a text that is not empty, or a list of such")
    return CapabilityItem(prompt=_prompt(row.get("prompt"), where), answers=tuple(answers), match=match)


def _prompt(prompt: Any, where: str) -> str | tuple[Message, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    turns = prompt if isinstance(prompt, list) else []
    texts = [(t.get("role"), t.get("content")) for t in turns if isinstance(t, Mapping)]
    if not turns or len(texts) < len(turns) or not all(isinstance(part, str) for turn in texts for part in turn):
        raise DataError(f"{where}: prompt must be a text, or a list of turns with role and content")
    return tuple(Message(role=str(role), content=str(content)) for role, content in texts)
