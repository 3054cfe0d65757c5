"""From the pieces that engines give to one HTTP answer: several choices at a time, whole or as they come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from service.serving.accounts import comment
from service.serving.engines.base import EngineError, Piece, Pieces, Sampling
from service.serving.openai_answers import SSE_DONE, Answer, Choice, sse
from service.serving.openai_strict import WireError


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one choice answers."""

    prompt_ids: Sequence[int]
    """The prompt."""
    sampling: Sampling
    """How its tokens are chosen."""


async def whole(streams: Sequence[Pieces], questions: Sequence[Question], answer: Answer) -> dict[str, Any]:
    """The JSON of the answer. Being cancelled abandons all streams. Raises EngineError."""
    choices = [Choice() for _ in streams]
    async for index, piece in _merged(streams):
        choices[index].add(piece)
    return answer.whole(choices, prompt_tokens(questions))


async def events(
    streams: Sequence[Pieces], questions: Sequence[Question], answer: Answer, *, tell_tokens: bool = False
) -> AsyncGenerator[str]:
    """The events of a stream. Its status is already sent, so a failure becomes an error event in place of [DONE].

    `tell_tokens`: say in a comment what was written (`accounts`).
    """
    choices = [Choice() for _ in streams]
    merged = _merged(streams)
    try:
        if answer.chat:
            for index in range(len(streams)):
                yield answer.opening(index)
        async for index, piece in merged:
            begins = choices[index].add(piece)
            if piece.text or piece.scores:
                yield answer.part(index, piece, begins)
            if piece.finish_reason:
                yield answer.closing(index, piece.finish_reason)
    except EngineError as error:
        yield sse(WireError(str(error), code="engine_error", status=500).body())
        return
    finally:
        await merged.aclose()
        await _abandon(streams)
    tokens = sum(choice.tokens for choice in choices)
    if tell_tokens:
        yield comment(tokens)
    if answer.include_usage:
        yield answer.usage(prompt_tokens(questions), tokens)
    yield SSE_DONE


def prompt_tokens(questions: Sequence[Question]) -> int:
    """Tokens read: a prompt with several answers is read once."""
    return sum(len(ids) for ids in {id(question.prompt_ids): question.prompt_ids for question in questions}.values())


async def _merged(streams: Sequence[Pieces]) -> AsyncGenerator[tuple[int, Piece]]:
    """(stream, piece) of all streams as they come; whatever ends it, no stream is left at work."""
    waiting = {asyncio.ensure_future(_next(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, piece = waiting.pop(task), task.result()
                if piece is not None:
                    waiting[asyncio.ensure_future(_next(streams[index]))] = index
                    yield index, piece
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await _abandon(streams)


async def _next(stream: Pieces) -> Piece | None:
    return await anext(stream, None)


async def _abandon(streams: Sequence[Pieces]) -> None:
    for stream in streams:
        await stream.aclose()
