"""What goes back: answers whole and in chunks, log-probabilities, lists of models, in OpenAI's shapes."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.serving.engines.base import FinishReason, Piece, TokenScore

SSE_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model as GET /v1/models shows it."""

    name: str
    """What clients put into `model`."""
    created: int
    """Unix time."""
    parent: str | None = None
    """The base that an adapter belongs to, by its name."""

    def body(self) -> dict[str, Any]:
        """The JSON of one entry."""
        parent = {} if self.parent is None else {"parent": self.parent}
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "simpo", **parent}


class Choice:
    """One choice of an answer, as it grows."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.finish_reason: FinishReason = "length"
        self.scores: list[TokenScore] = []
        self._told_chars = 0  # of the scores given so far, for the offsets of completions

    def add(self, piece: Piece) -> int:
        """Take a piece; returns the character at which its scores begin."""
        begins = self._told_chars
        self.text += piece.text
        self.tokens += piece.num_tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.scores += piece.scores
        self._told_chars += sum(len(score.text) for score in piece.scores)
        return begins


class Answer:
    """Builds the JSON of one answer, whole or in chunks; id and time are the same throughout."""

    def __init__(
        self, model: str, *, chat: bool, fingerprint: str, include_usage: bool = False, scored: bool = False
    ) -> None:
        self.model = model
        self.chat = chat
        self.fingerprint = fingerprint
        self.include_usage = include_usage
        self._scored = scored
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        kind = "chat.completion" if self.chat else "text_completion"
        bodies = [self._choice(index, choice) for index, choice in enumerate(choices)]
        used = usage(prompt_tokens, sum(choice.tokens for choice in choices))
        return {**self._head, "object": kind, "choices": bodies, "usage": used}

    def opening(self, index: int) -> str:
        """First event of a chat stream's choice: the role."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def part(self, index: int, piece: Piece, begins: int) -> str:
        """An event with new text; `begins`: the character where its scores begin."""
        content: dict[str, Any] = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        return self._chunk(index, content, self._logprobs(piece.scores, begins), None)

    def closing(self, index: int, finish_reason: FinishReason) -> str:
        """The event that ends a choice."""
        return self._chunk(index, {"delta": {}} if self.chat else {"text": ""}, None, finish_reason)

    def usage(self, prompt_tokens: int, tokens: int) -> str:
        """The event that stream_options.include_usage asks for."""
        return sse({**self._head, "object": self._kind, "choices": [], "usage": usage(prompt_tokens, tokens)})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        content: dict[str, Any] = {"text": choice.text}
        if self.chat:
            content = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        logprobs = self._logprobs(choice.scores, 0)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _logprobs(self, scores: Sequence[TokenScore], begins: int) -> dict[str, Any] | None:
        if not self._scored:
            return None
        return chat_logprobs(scores) if self.chat else completion_logprobs(scores, begins)

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish_reason: FinishReason | None,
    ) -> str:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        null_usage = {"usage": None} if self.include_usage else {}
        return sse({**self._head, "object": self._kind, "choices": [choice], **null_usage})


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    return {"content": [{**_entry(score), "top_logprobs": list(map(_entry, score.top))} for score in scores]}


def completion_logprobs(scores: Sequence[TokenScore], begins: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice; `begins`: where the first of these tokens begins in the choice's text."""
    offsets = []
    for score in scores:
        offsets.append(begins)
        begins += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_by_text(score) for score in scores],
        "text_offset": offsets,
    }


def model_list(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Body of GET /v1/models."""
    return {"object": "list", "data": [card.body() for card in cards]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """`usage` of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def sse(body: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _entry(score: TokenScore) -> dict[str, Any]:
    raw = None if score.bytes is None else list(score.bytes)
    return {"token": score.text, "logprob": score.logprob, "bytes": raw}


def _by_text(score: TokenScore) -> dict[str, float | None] | None:
    if score.logprob is None:
        return None
    # Two tokens that show the same text: the likelier one stays, as it comes first.
    found: dict[str, float | None] = {}
    for other in score.top:
        found.setdefault(other.text, other.logprob)
    return found
