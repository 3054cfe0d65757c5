"""What one answer takes, as the gateway learns of it while it passes the answer on.

A whole answer says so in its `usage`. Of a stream the replica tells the gateway alone, where it is asked by a header:
the prompt's tokens in a header, those of the answer in a comment of the stream, which stays here. A stream that breaks
off counts as its prompt and a token for each event.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json

ASKED = "x-simpo-usage"
"""Header of a request: tell what the stream takes."""
PROMPT_TOKENS = "x-simpo-prompt-tokens"
"""Header of a stream."""
_COMMENT = b": tokens "
_MOST_READ = 8 << 20  # bytes of a whole answer that are parsed; one with more says nothing


def comment(tokens: int) -> str:
    """The part of a stream that says what its answer took."""
    return f"{_COMMENT.decode()}{tokens}\n\n"


def asked_tokens(values: Mapping[str, Any]) -> int:
    """What a request may take at most, as far as it says; its prompt at four characters a token. Never raises."""
    most = next((n for name in ("max_completion_tokens", "max_tokens") if (n := _count(values.get(name)))), 0)
    read = _letters(values.get("messages", values.get("prompt")), 5) // 4
    return read + most * (_count(values.get("n")) or 1)


class Account:
    """Of one request."""

    def __init__(self, settle: Callable[[int, int], None], seen: Callable[[bytes], None] = lambda block: None) -> None:
        """`settle`: told the tokens read and written, once. `seen`: shown whole events of a stream as they come."""
        self._settle: Callable[[int, int], None] | None = settle
        self._seen = seen
        self._prompt = 0
        self._events = 0
        self._written: int | None = None

    def begin(self, headers: Mapping[str, str]) -> None:
        """The head of the answer is there."""
        said = headers.get(PROMPT_TOKENS, "")
        self._prompt = int(said) if said.isdecimal() else 0

    def events(self, block: bytes) -> bytes:
        """Whole events of a stream, with the blank line between them: back comes what is for the client."""
        self._seen(block)
        parts = block.split(b"\n\n")
        passed = [part for part in parts if not part.startswith(_COMMENT)]
        if len(passed) < len(parts):
            said = next(part for part in parts if part.startswith(_COMMENT))[len(_COMMENT) :]
            self._written = int(said) if said.isdigit() else None
        self._events += len(passed)
        return b"\n\n".join(passed)

    def whole(self, body: bytes) -> None:
        """All of an answer that is no stream; closes."""
        self._prompt, self._written = _usage(body)
        self.close()

    def close(self) -> None:
        """The stream is over, or broke off, or there was no answer."""
        if self._settle is None:
            return
        settle, self._settle = self._settle, None
        settle(self._prompt, self._events if self._written is None else self._written)


def _usage(body: bytes) -> tuple[int, int]:
    if len(body) > _MOST_READ:
        return 0, 0
    try:
        usage = from_json(body)["usage"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, KeyError, TypeError, IndexError):
        return 0, 0  # a refusal


def _count(value: Any) -> int:
    """A whole number above 0, or 0 for whatever else was sent."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _letters(value: Any, depth: int) -> int:
    """Characters of a prompt or of messages, of token ids four for each; nothing of what is nested deeper."""
    if isinstance(value, str):
        return len(value)
    if depth and isinstance(value, dict):
        return _letters(value.get("content", value.get("text")), depth - 1)
    if depth and isinstance(value, list):
        return sum(_letters(each, depth - 1) for each in value)
    return 4 if isinstance(value, int) else 0
