"""Rows become validated preferences; what cannot be used is dropped, counted by reason and shown by row number.

Accepted shapes, after TRL's data formats and OpenAI's for preferences:

    explicit prompt, text           {"prompt": "...", "chosen": "...", "rejected": "..."}
    explicit prompt, conversation   {"prompt": [turns], "chosen": [assistant turn], "rejected": [assistant turn]}
    implicit prompt                 {"chosen": prompt + answer, "rejected": prompt + answer}, text or turns
    both                            a prompt beside whole conversations (UltraFeedback): the conversations decide
    OpenAI's                        {"input": {"messages": [turns]}, "preferred_output": [assistant turn],
                                     "non_preferred_output": [assistant turn]}

A turn is {"role": ..., "content": ...}. Malformed rows (wrong types) stop the reading with the line number: they are a
mistake in the file. Unusable rows (an empty response, nothing to prefer) are a fact about the data: they are counted.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpo.errors import DataError
from simpo.sources import read_rows

DROP_REASONS: Mapping[str, str] = {
    "empty_prompt": "the prompt is empty",
    "empty_response": "chosen or rejected is empty or only white space",
    "identical_responses": "chosen and rejected are the same text",
    "no_shared_prompt": "there is no prompt column, and chosen and rejected do not begin alike",
    "prompt_mismatch": "the prompt column is not what the conversations in chosen and rejected begin with",
    "prompt_not_ending_in_user_turn": "the last turn of the prompt is not the user's",
    "response_not_one_assistant_turn": "after the shared prompt, chosen or rejected is not exactly one assistant turn",
    "tools": "input offers tools, and calls of tools are not trained here",
    "content_not_text": "a turn's content is not text (null, images or tool calls)",
    "invalid_unicode": "the text holds half a surrogate pair and cannot be written as UTF-8",
}
"""Why a row is dropped: the key under which it is counted, and a sentence for people."""

_EXAMPLES_KEPT = 5
_DIALOGUE_MARK = "\n\nAssistant:"  # Anthropic HH: dialogues as plain text


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant; which others exist is the chat template's affair."""
    content: str
    """The text, as written."""


Prompt = str | tuple[Message, ...]
"""Plain text that the response continues, or the turns of a conversation that end in the user's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Of two responses to one prompt, `chosen` is the better."""

    prompt: Prompt
    """What both responses answer."""
    chosen: str
    """The better response: the continuation of a text, or the content of one assistant turn."""
    rejected: str
    """The worse response, in the same form."""
    id: str
    """The row's own id, or its number in the source."""

    @property
    def conversational(self) -> bool:
        """Whether the prompt is made of turns, and so needs a chat template."""
        return not isinstance(self.prompt, str)

    @property
    def instruction(self) -> str:
        """The prompt as one text for judges and people: the last user turn, or the plain prompt itself."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a source gave."""

    rows: list[Preference]
    """The usable preferences, in the order of the source."""
    dropped: dict[str, int]
    """Rows left out, counted by a key of DROP_REASONS."""
    examples: dict[str, list[int]]
    """The first few row numbers for each reason."""

    def describe(self) -> str:
        """One line for people: how many pairs, how many dropped, why and where."""
        return f"{len(self.rows)} pairs, {sum(self.dropped.values())} rows dropped{_reasons(self)}"


def load_preferences(
    source: str | os.PathLike[str], *, limit: int | None = None, progress: Callable[[int], None] | None = None
) -> Records:
    """Read a source (see `simpo.sources.read_rows`) into preferences.

    limit: stop after this many usable rows; None reads all. progress: called with each row's number.
    Raises DataError: the source cannot be read, a row is malformed (with its line), or nothing usable is in it.
    """
    name = os.fspath(source)
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1 or left out, not {limit}", name)
    records = Records(rows=[], dropped={}, examples={})
    for number, values in read_rows(name):
        if progress is not None:
            progress(number)
        try:
            records.rows.append(_preference(values, str(number)))
        except _Unusable as unusable:
            records.dropped[unusable.reason] = records.dropped.get(unusable.reason, 0) + 1
            shown = records.examples.setdefault(unusable.reason, [])
            if len(shown) < _EXAMPLES_KEPT:
                shown.append(number)
        except _Malformed as error:
            raise DataError(str(error), name, number) from None
        if limit is not None and len(records.rows) == limit:
            break
    if not records.rows:
        if not records.dropped:
            raise DataError("there is no row in it: give a source with at least one preference pair", name)
        raise DataError(f"no row of {sum(records.dropped.values())} can be used{_reasons(records)}", name)
    return records


class _Unusable(Exception):
    """This row is well formed but nothing can be learnt from it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        assert reason in DROP_REASONS
        self.reason = reason


class _Malformed(Exception):
    """This row is not of an accepted shape."""


def _preference(values: Mapping[str, Any], number: str) -> Preference:
    if "preferred_output" in values and "chosen" not in values:
        values = _from_openai(values)
    prompt, chosen, rejected = (values.get(key) for key in ("prompt", "chosen", "rejected"))
    if chosen is None or rejected is None:
        raise _Unusable("empty_response")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _Malformed("chosen and rejected must both be text or both be lists of turns")
    settled: tuple[Prompt, str, str]
    if not isinstance(chosen, str):
        settled = _conversation(_prompt(prompt), _turns(chosen, "chosen"), _turns(rejected, "rejected"))
    elif prompt is None:
        settled = _split_texts(chosen, rejected)
    else:
        settled = _prompt(prompt) or "", chosen, rejected
    identity = values.get("id")
    identity = number if identity is None or isinstance(identity, Mapping | list) else str(identity)
    return _checked(Preference(prompt=settled[0], chosen=settled[1], rejected=settled[2], id=identity))


def _from_openai(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI's preference row under our names. A model that is served here calls no tools."""
    given = values.get("input")
    if not isinstance(given, Mapping) or not isinstance(given.get("messages"), list):
        raise _Malformed('input must be {"messages": [turns]}')
    if given.get("tools"):
        raise _Unusable("tools")
    chosen, rejected = values["preferred_output"], values.get("non_preferred_output")
    return {"id": values.get("id"), "prompt": given["messages"], "chosen": chosen, "rejected": rejected}


def _prompt(value: Any) -> Prompt | None:
    return value if value is None or isinstance(value, str) else _turns(value, "prompt")


def _turns(value: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _Malformed(f"{column} must be text or a list of turns, not {type(value).__name__}")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise _Malformed(f'a turn of {column} must be {{"role": "user", "content": "..."}}, not {turn!r:.80}')
        if not isinstance(turn["content"], str):
            raise _Unusable("content_not_text")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    return tuple(turns)


def _conversation(
    prompt: Prompt | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Prompt, str, str]:
    """Settle prompt and answers of a row whose chosen and rejected are turns."""
    if not chosen or not rejected:
        raise _Unusable("empty_response")
    if chosen == rejected:
        raise _Unusable("identical_responses")
    shared = _shared_prefix(chosen, rejected)
    if prompt is None or (isinstance(prompt, str) and shared):
        if not shared:
            raise _Unusable("no_shared_prompt")
        if prompt is not None and all(prompt.strip() not in turn.content for turn in chosen[:shared]):
            raise _Unusable("prompt_mismatch")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),)
    elif shared:  # an explicit prompt that the conversations repeat
        if prompt != chosen[:shared]:
            raise _Unusable("prompt_mismatch")
        chosen, rejected = chosen[shared:], rejected[shared:]
    if any([turn.role for turn in answer] != ["assistant"] for answer in (chosen, rejected)):
        raise _Unusable("response_not_one_assistant_turn")
    return prompt, chosen[0].content, rejected[0].content


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """TRL's rule for texts without a prompt column: what both begin with is the prompt.

    Two refinements keep the prompt a prompt: a dialogue is cut after its last shared `Assistant:`, and elsewhere a
    shared space before the first difference goes to the responses (TRL does this too), where tokenizers want it.
    """
    if chosen == rejected:
        raise _Unusable("identical_responses")
    cut = _shared_prefix(chosen, rejected)
    mark = chosen.rfind(_DIALOGUE_MARK, 0, cut)
    if mark >= 0:
        cut = mark + len(_DIALOGUE_MARK)
    elif cut and chosen[cut - 1] == " ":
        cut -= 1
    if not chosen[:cut].strip():
        raise _Unusable("no_shared_prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _shared_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _checked(preference: Preference) -> Preference:
    """The rules that hold for every shape, most telling first."""
    prompt = preference.prompt
    turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    if not turns or not any(turn.content.strip() for turn in turns):
        raise _Unusable("empty_prompt")
    if turns[-1].role != "user":
        raise _Unusable("prompt_not_ending_in_user_turn")
    # Chat templates strip answers: what differs only in outer white space would become the same ids.
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if not chosen or not rejected:
        raise _Unusable("empty_response")
    if chosen == rejected:
        raise _Unusable("identical_responses")
    try:
        "".join([preference.chosen, preference.rejected, *(turn.content for turn in turns)]).encode()
    except UnicodeEncodeError:
        raise _Unusable("invalid_unicode") from None
    return preference


def _reasons(records: Records) -> str:
    parts = []
    for reason, count in sorted(records.dropped.items(), key=lambda item: (-item[1], item[0])):
        rows = ", ".join(map(str, records.examples[reason]))
        more = ", ..." if count > len(records.examples[reason]) else ""
        parts.append(f"{count} x {reason} ({DROP_REASONS[reason]}; rows {rows}{more})")
    return ": " + "; ".join(parts) if parts else ""
