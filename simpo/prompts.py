"""Prompts to answer for an evaluation: any file, or a data set on the hub. Nothing is bundled.

A row holds its prompt in exactly one of these columns:

    instruction       text (AlpacaEval)
    turns             the user's turns in order, as text or {"content": text} (MT-Bench, Arena-Hard)
    prompt, question  text, a list of the user's turns, or a conversation of {"role", "content"} that ends with the user

and, where it has them, an id (question_id, prompt_id, uid, id or index), a category, reference answers (reference) and
the baseline's answer (output). Other columns are left alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo.errors import DataError
from simpo.sources import hub_id, hub_rows
from simpo.tables import FORMATS, read_table

PROMPT_COLUMNS = ("instruction", "turns", "prompt", "question")
ID_COLUMNS = ("question_id", "prompt_id", "uid", "id", "index")


@dataclass(frozen=True, kw_only=True)
class EvaluationPrompt:
    """What one question asks."""

    id: str
    """Unique in its set; the row's number where the row has none."""
    turns: tuple[str, ...]
    """The user's turns, each to be answered before the next is asked; at least one."""
    history: tuple[Mapping[str, str], ...] = ()
    """Messages before the first turn: a system message, an earlier exchange."""
    category: str | None = None
    references: tuple[str, ...] = ()
    """Reference answers by turn."""
    baseline_answer: str | None = None
    """What the benchmark's baseline answered."""

    def messages(self, answers: Sequence[str] = ()) -> list[dict[str, str]]:
        """The conversation up to the turn that comes after these answers."""
        messages = [dict(message) for message in self.history]
        for turn, answer in zip(self.turns, answers, strict=False):
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": self.turns[len(answers)]}]


def load_prompts(source: str) -> list[EvaluationPrompt]:
    """The prompts of a file (JSON lines, JSON, CSV; .gz) or a hub data set `org/name[:split]`, in order.

    Raises DataError: nothing there, no row, a row without a prompt or with two, an id that occurs twice.
    """
    if Path(source).expanduser().is_file():
        rows: Iterable[tuple[int, Mapping[str, Any]]] = ((row.line, row.values) for row in read_table(source).rows)
    elif (hub := hub_id(source)) is not None:
        rows = ((row.number, row.values) for row in hub_rows(*hub, preferences=False))
    else:
        raise DataError(f"there is no such file: give {FORMATS}; or a hub id org/name[:split]", source)
    prompts: dict[str, EvaluationPrompt] = {}
    for number, values in rows:
        try:
            prompt = read_prompt(values, default_id=str(number))
        except DataError as error:
            raise DataError(error.reason, source, number) from error
        if prompt.id in prompts:
            raise DataError(f"the id {prompt.id!r} occurs before: give every prompt its own", source, number)
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError("there is no prompt in it", source)
    return list(prompts.values())


def read_prompt(values: Mapping[str, Any], *, default_id: str) -> EvaluationPrompt:
    """One row. Raises DataError without a place: the caller knows it."""
    present = [column for column in PROMPT_COLUMNS if values.get(column) not in (None, "", [])]
    if len(present) != 1:
        shown = ", ".join(map(str, values)) or "none"
        what = f"the columns {' and '.join(present)} both hold a prompt" if present else "there is no prompt"
        raise DataError(f"{what} (there are: {shown}): fill exactly one of {', '.join(PROMPT_COLUMNS)}")
    if values.get("input"):  # Alpaca's training rows: answering without it would be answering another question
        raise DataError("the column input is not read: write it into the prompt")
    history, turns = _turns(values[present[0]], present[0])
    found_id = next((values[column] for column in ID_COLUMNS if values.get(column) not in (None, "")), default_id)
    references = values.get("reference") or ()
    category, baseline = values.get("category"), values.get("output")
    return EvaluationPrompt(
        id=str(found_id),
        turns=turns,
        history=history,
        category=None if category is None else str(category),
        references=(references,) if isinstance(references, str) else tuple(map(str, references)),
        baseline_answer=baseline if isinstance(baseline, str) else None,
    )


def _turns(value: Any, column: str) -> tuple[tuple[Mapping[str, str], ...], tuple[str, ...]]:
    """(history, the user's turns)."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str | Mapping) for item in items):
        raise DataError(f"{column} must be text or a list of turns, not {type(value).__name__}")
    texts = [item if isinstance(item, str) else item.get("content") for item in items]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"a turn of {column} is empty or not text")
    if not any(isinstance(item, Mapping) and "role" in item for item in items):
        return (), tuple(map(str, texts))
    roles = [item.get("role") if isinstance(item, Mapping) else None for item in items]
    if not set(roles) <= {"system", "user", "assistant"} or roles[-1] != "user":
        raise DataError(f"{column} is a conversation with the roles {roles}: it must end with the user's turn")
    messages = [{"role": str(role), "content": str(text)} for role, text in zip(roles, texts, strict=True)]
    return tuple(messages[:-1]), (str(texts[-1]),)
