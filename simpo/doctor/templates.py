"""Text that spells the control tokens of a chat template: its own, or another family's."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simpo.doctor.finding import Finding, finding, stray_or_many
from simpo.records import Preference


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of models marks turns in text."""

    marks: tuple[str, ...]
    """What no person writes by chance."""
    opener: str
    """Regular expression of a turn's beginning: where it matches, the text has been through a template."""


_ROLE = r"\s*(?:system|user|assistant|model)\b"

FAMILIES: Mapping[str, Family] = {
    "ChatML": Family(marks=("<|im_start|>", "<|im_end|>"), opener=rf"<\|im_start\|>{_ROLE}"),
    "Llama 3": Family(
        marks=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        opener=rf"<\|start_header_id\|>{_ROLE}",
    ),
    "Llama 4": Family(marks=("<|header_start|>", "<|header_end|>", "<|eot|>"), opener=rf"<\|header_start\|>{_ROLE}"),
    "Llama 2 and Mistral": Family(
        marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), opener=r"\A\s*(?:<s>)?\s*\[INST\].*\[/INST\]"
    ),
    "Gemma": Family(marks=("<start_of_turn>", "<end_of_turn>"), opener=rf"<start_of_turn>{_ROLE}"),
    "Zephyr and Phi": Family(
        marks=("<|system|>", "<|user|>", "<|assistant|>"), opener=r"\A\s*<\|(?:system|user)\|>.*<\|assistant\|>"
    ),
    "Command R": Family(
        marks=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"), opener=r"<\|START_OF_TURN_TOKEN\|>"
    ),
    "DeepSeek": Family(marks=("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), opener="<\uff5cUser\uff5c>"),
}
"""What is looked for. Only marks that are control tokens somewhere; a plain 'User:' is nobody's."""

_DIALOGUE = re.compile(r"\n\n(?:Human|Assistant):")


def template_findings(rows: Sequence[Preference], known: Collection[str] | None) -> Iterator[Finding]:
    """Rows that are templated already, and rows that merely spell a mark.

    known: the control tokens of the tokenizer in use; None when there is none to ask.
    """
    opened: dict[str, list[Preference]] = {}
    spelled: dict[str, list[Preference]] = {}
    openers = {name: re.compile(family.opener, re.DOTALL) for name, family in FAMILIES.items()}
    for row in rows:
        texts = _texts(row)
        joined = "\n".join(texts)
        for name, family in FAMILIES.items():
            if any(mark in joined for mark in family.marks):
                found = opened if any(openers[name].search(text) for text in texts) else spelled
                found.setdefault(name, []).append(row)
    for name, these in opened.items():
        turns = [row.id for row in these if row.conversational]
        plain = [row.id for row in these if not row.conversational]
        if turns:
            yield _templated_twice(name, turns, len(rows))
        if plain:
            yield _templated_text(name, plain, len(rows), known)
    for name, these in spelled.items():
        yield _spelled(name, these, len(rows), known)
    yield from _dialogues(rows)


def _templated_twice(name: str, ids: list[str], of: int) -> Finding:
    return finding(
        "already_templated",
        stray_or_many(len(ids), of),
        f"{{rows}} ({{share}}) are conversations whose turns hold text in {name} form: a chat template would be "
        "written around a chat template",
        "store each turn as role and content without control tokens, or the whole prompt as plain text",
        count=len(ids),
        of=of,
        rows=ids,
    )


def _templated_text(name: str, ids: list[str], of: int, known: Collection[str] | None) -> Finding:
    message = f"{{rows}} ({{share}}) are plain text in {name} form"
    if known is None:
        remedy = "give --tokenizer to see whether its control tokens are these; better: store turns as role and content"
        return finding("templated_text", "warning", message, remedy, count=len(ids), of=of, rows=ids)
    if any(mark in known for mark in FAMILIES[name].marks):
        message += ", the tokenizer's own: it is used as it stands"
        remedy = "nothing to do, if every prompt ends where the answer begins"
        return finding("templated_text", "info", message, remedy, count=len(ids), of=of, rows=ids)
    return finding(
        "template_mismatch",
        stray_or_many(len(ids), of),
        f"{message}, but the tokenizer knows none of its control tokens: the model would read them letter by letter",
        "store turns as role and content, so that the tokenizer's own chat template is used",
        count=len(ids),
        of=of,
        rows=ids,
    )


def _spelled(name: str, rows: Sequence[Preference], of: int, known: Collection[str] | None) -> Finding:
    own = known is not None and any(mark in known for mark in FAMILIES[name].marks)
    effect = "; in turns the tokenizer's own are refused, and such rows are dropped" if own else ""
    return finding(
        "control_tokens",
        stray_or_many(len(rows), of) if own else "warning",
        f"{{rows}} ({{share}}) spell a control token of {name}{effect}",
        "take them out of the text, unless the rows are about such tokens",
        count=len(rows),
        of=of,
        rows=(row.id for row in rows),
    )


def _dialogues(rows: Sequence[Preference]) -> Iterator[Finding]:
    ids = [row.id for row in rows if _DIALOGUE.search(row.chosen) or _DIALOGUE.search(row.rejected)]
    if ids:
        yield finding(
            "answer_goes_on_as_dialogue",
            "warning",
            "{rows} ({share}) have an answer in which another 'Human:' or 'Assistant:' speaks: the model would learn "
            "to talk to itself",
            "cut the answers before the next speaker",
            count=len(ids),
            of=len(rows),
            rows=ids,
        )


def _texts(row: Preference) -> list[str]:
    turns = [row.prompt] if isinstance(row.prompt, str) else [turn.content for turn in row.prompt]
    return [*turns, row.chosen, row.rejected]
