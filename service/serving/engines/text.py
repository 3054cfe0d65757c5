"""Token ids -> text while the ids are still coming: whole characters only, stop texts cut off unseen."""

from collections.abc import Callable, Sequence

_BROKEN = "�"  # what a decoder puts for bytes that are no whole UTF-8 character (yet)


class TextStream:
    """The text of one answer, fed token by token.

    A token may end in the middle of a character (byte-level vocabularies), so text is given out only up to the last
    whole one. Two offsets bound the tokens decoded at each step: `_start`, some tokens back for context (vocabularies
    that write word borders into tokens decode the first token of a list differently), and `_read`, where the text
    already given out ends. The text given out in all does not depend on how it was fed.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """`decode` turns ids into text, special tokens skipped."""
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0
        self._read = 0
        self._held = ""  # given out by the decoder, but it may be the beginning of a stop text
        self.stopped = False
        self.released = 0
        """Characters given out."""

    @property
    def seen(self) -> int:
        """Characters that are certain: those given out, and those held back."""
        return self.released + len(self._held)

    def push(self, token_id: int) -> str:
        """New text that is certain. Sets `stopped` when a stop text is complete."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What is left at the end of the answer: held text, and broken bytes as the replacement character."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        text = self._release(after[len(before) :])
        if self.stopped:
            return text
        self.released += len(self._held)
        text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return self._given(text[: min(found)])
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return self._given(text[: len(text) - hold])

    def _given(self, text: str) -> str:
        self.released += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
